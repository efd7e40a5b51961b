//go:build linux

package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd"
	"netd/balancer"
	"netd/gossip"
	"netd/ingress"
	"netd/internal/netns"
	"netd/internal/nettest"
	"netd/vxlan"
)

// meshHost is a node's kernel parts without its daemon: what Compile wants is set
// in a host namespace, and tasks are namespaces with a server.
type meshHost struct {
	in       Input
	ns       string
	overlay  *vxlan.Overlay
	balancer *balancer.Balancer
	ingress  *ingress.Ingress
}

// open replaces the host's parts by new ones, as a restarted daemon does.
func (h *meshHost) open(t testing.TB, kind balancer.Kind) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	err := netns.Do(h.ns, func() error {
		var oerr, berr, ierr error
		h.overlay, oerr = vxlan.New(h.in.NetNSDir, log)
		h.balancer, berr = balancer.New(kind, log)
		h.ingress, ierr = ingress.New(log)
		return errors.Join(oerr, berr, ierr)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.overlay.Close(); h.ingress.Close() })
}

// set makes the kernel as Compile wants it and returns what was done.
func (h *meshHost) set(t testing.TB) []string {
	t.Helper()
	d := Compile(h.in)
	links, oerr := h.overlay.Set(t.Context(), d.Overlay)
	vips, berr := h.balancer.Set(t.Context(), d.Balancer)
	ports, ierr := h.ingress.Set(t.Context(), d.Ingress)
	if err := errors.Join(oerr, berr, ierr); err != nil {
		t.Fatal(err)
	}
	return slices.Concat(links, vips, ports)
}

const client, meshNodes = "10.99.0.4", 3

// newMesh is three hosts, of which the first two run a task of web, with ports
// 8080/tcp and 8053/udp open on all, and a client outside.
func newMesh(t *testing.T, kind balancer.Kind) (hosts []*meshHost, outside string) {
	t.Helper()
	nettest.Require(t, "vxlan", "veth", "nf_tables")
	if kind == balancer.IPVS {
		nettest.Require(t, "ip_vs")
	}
	underlay := nettest.Underlay(t, meshNodes+1)
	snapshot := netd.Snapshot{
		Networks: []netd.Network{{ID: "mesh", Name: "ingress", VNI: 4096, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.1"), Ingress: true}},
		Services: []netd.Service{{ID: "web", Network: "mesh", Name: "web", VIP: addr("10.0.0.2")}},
		Ports: []netd.Port{{Service: "web", Protocol: "tcp", Published: 8080, Target: 80},
			{Service: "web", Protocol: "udp", Published: 8053, Target: 80}},
	}
	view := &gossip.View{Members: map[netd.NodeID]gossip.Member{}}
	for i := range meshNodes {
		id, task := netd.NodeID(fmt.Sprintf("n%d", i+1)), netd.TaskID(fmt.Sprintf("w%d", i+1))
		snapshot.Nodes = append(snapshot.Nodes, netd.Node{ID: id, Name: string(id), Addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)})})
		member := gossip.Member{Alive: true, Version: 1, Entries: map[netd.EndpointKey]netd.EndpointState{}}
		if i < 2 {
			e := netd.Endpoint{Network: "mesh", Task: task, Name: string(task), Service: "web", Node: id, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 5)})}
			snapshot.Endpoints = append(snapshot.Endpoints, e)
			member.Entries[e.Key()] = netd.Ready
		}
		view.Members[id] = member
	}
	for i := range meshNodes {
		dir := nettest.Dir(t)
		h := &meshHost{ns: underlay[i], in: Input{Self: snapshot.Nodes[i].ID, Addr: snapshot.Nodes[i].Addr, Port: 4789, NetNSDir: dir, MTU: 1450, Snapshot: snapshot, Gossip: view}}
		if i < 2 {
			e := snapshot.Endpoints[i]
			task := LocalTask{ID: e.Task, NetNS: filepath.Join(dir, "task-"+string(e.Task)), Attachments: []Attachment{{"mesh", netip.PrefixFrom(e.Addr, 24)}}}
			if err := netns.Create(task.NetNS); err != nil {
				t.Fatal(err)
			}
			nettest.Serve(t, task.NetNS, string(e.Task), 80)
			h.in.Local = []LocalTask{task}
		}
		h.open(t, kind)
		h.set(t)
		hosts = append(hosts, h)
	}
	return hosts, underlay[meshNodes]
}

func forKinds(t *testing.T, test func(t *testing.T, kind balancer.Kind)) {
	for _, kind := range []balancer.Kind{balancer.NFTables, balancer.IPVS} {
		t.Run(string(kind), func(t *testing.T) { test(t, kind) })
	}
}

// published are the ports by network.
func published() map[string]int { return map[string]int{"tcp": 8080, "udp": 8053} }

// answers asks the port at an address until both tasks have answered, and checks
// that each saw the client as seen.
func answers(t *testing.T, ns, network, at, seen string) {
	t.Helper()
	left := map[string]bool{"w1": true, "w2": true}
	for range 60 {
		got, err := nettest.Ask(ns, network, "", fmt.Sprintf("%s:%d", at, published()[network]))
		who, saw, _ := strings.Cut(got, " ")
		if err != nil || saw != seen {
			t.Fatalf("%s by %s: got %q, %v; want a task that saw %s", network, at, got, err, seen)
		}
		if delete(left, who); len(left) == 0 {
			return
		}
	}
	t.Fatalf("%s by %s: %v never answered", network, at, left)
}

// Every node answers on a published port, those without a task too, by TCP and
// UDP, and each task sees the client's own address. So it is for a process of the
// node, by the node's address; localhost and a container of the node are seen as
// the node.
func TestRootIngressSource(t *testing.T) {
	forKinds(t, func(t *testing.T, kind balancer.Kind) {
		hosts, outside := newMesh(t, kind)
		for network := range published() {
			for _, h := range hosts {
				node := h.in.Addr.String()
				answers(t, outside, network, node, client)
				answers(t, h.ns, network, node, node)
				answers(t, h.ns, network, "127.0.0.1", node)
				for _, task := range h.in.Local {
					answers(t, task.NetNS, network, node, node)
				}
			}
			// A process of one node calls another node.
			answers(t, hosts[0].ns, network, hosts[1].in.Addr.String(), hosts[0].in.Addr.String())
		}
	})
}

// A restart of the daemons finds everything and changes nothing, and connections
// through every node live on; silent ones are kept for more than 2 h 15.
func TestRootIngressAdopted(t *testing.T) {
	forKinds(t, func(t *testing.T, kind balancer.Kind) {
		hosts, outside := newMesh(t, kind)
		var conns []net.Conn
		for _, h := range hosts {
			for range 4 {
				conn, err := nettest.Dial(outside, "tcp", "", h.in.Addr.String()+":8080")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				conns = append(conns, conn)
			}
		}
		for _, h := range hosts {
			h.open(t, kind)
			if done := h.set(t); len(done) > 0 {
				t.Errorf("%s: changed %q", h.in.Self, done)
			}
			for _, ns := range []string{h.ns, RouterNetNS(h.in.NetNSDir, "mesh")} {
				var seconds int
				text, err := netns.GetSysctl(ns, "net/netfilter/nf_conntrack_tcp_timeout_established")
				if _, serr := fmt.Sscan(text, &seconds); err != nil || serr != nil || time.Duration(seconds)*time.Second < 2*time.Hour+15*time.Minute {
					t.Errorf("%s: silent connections are kept for %q s, %v", ns, text, err)
				}
			}
		}
		for _, conn := range conns {
			if got, err := nettest.AskConn(conn); err != nil || !strings.HasSuffix(got, " "+client) {
				t.Errorf("%s: got %q, %v", conn.RemoteAddr(), got, err)
			}
		}
	})
}

// A client's flow that comes by another node from one packet to the next is
// answered by the node that it came by last.
func TestRootIngressMoves(t *testing.T) {
	forKinds(t, func(t *testing.T, kind balancer.Kind) {
		hosts, outside := newMesh(t, kind)
		for _, h := range hosts { // one backend, on the first node
			h.in.Gossip.Members["n2"].Entries[netd.EndpointKey{Network: "mesh", Task: "w2"}] = netd.Draining
			h.set(t)
		}
		for _, at := range []string{"10.99.0.2", "10.99.0.3", "10.99.0.2"} {
			var conn net.Conn
			err := netns.Do(outside, func() (err error) {
				d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client), Port: 5555}}
				conn, err = d.DialContext(t.Context(), "udp4", at+":8053")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := nettest.AskConn(conn); err != nil || got != "w1 "+client {
				t.Errorf("by %s: got %q, %v", at, got, err)
			}
			conn.Close()
		}
	})
}

// Whatever is removed behind the daemon's back is there again after the next pass.
func TestRootIngressHeals(t *testing.T) {
	forKinds(t, func(t *testing.T, kind balancer.Kind) {
		hosts, outside := newMesh(t, kind)
		h := hosts[1]
		router := RouterNetNS(h.in.NetNSDir, "mesh")
		flush := func(ns string) func() error {
			return func() error {
				return netns.Do(ns, func() error {
					c, err := nftables.New()
					if err != nil {
						return err
					}
					c.FlushRuleset()
					return c.Flush()
				})
			}
		}
		del := func(ns, link string) func() error {
			return func() error {
				k, err := netns.Open(ns)
				if err != nil {
					return err
				}
				defer k.Close()
				return k.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: link}})
			}
		}
		for what, damage := range map[string]func() error{
			"host's ruleset flushed": flush(h.ns), "router's ruleset flushed": flush(router),
			"uplink removed": del(h.ns, "nd-up4096"), "vxlan device removed": del(router, "vx"),
		} {
			t.Run(what, func(t *testing.T) {
				if err := damage(); err != nil {
					t.Fatal(err)
				}
				if done := h.set(t); len(done) == 0 {
					t.Fatal("nothing was mended")
				}
				if done := h.set(t); len(done) > 0 {
					t.Fatalf("still to do: %q", done)
				}
				for network := range published() {
					for _, to := range hosts {
						answers(t, outside, network, to.in.Addr.String(), client)
					}
				}
			})
		}
	})
}

// When nothing is published any more nothing is left: no table, link or rule in
// the host, and no router on a node without tasks.
func TestRootIngressZero(t *testing.T) {
	hosts, outside := newMesh(t, balancer.NFTables)
	h := hosts[2]
	h.in.Snapshot.Ports, h.in.Snapshot.Networks = nil, nil
	// As the node does: the VIPs and the routers go first, the ports last.
	h.set(t)
	if _, err := nettest.Ask(outside, "tcp", "", h.in.Addr.String()+":8080"); !nettest.Refused(err) {
		t.Errorf("the port still answers: %v", err)
	}
	nettest.With(t, h.ns, func(k *netns.Handle) error {
		links, err := k.LinkList()
		for _, l := range links {
			if strings.HasPrefix(l.Attrs().Name, "nd-") {
				t.Errorf("link %s is left", l.Attrs().Name)
			}
		}
		rules, rerr := k.RuleList(unix.AF_INET)
		if len(rules) != 3 {
			t.Errorf("rules: %v", rules)
		}
		pins, perr := netns.List(h.in.NetNSDir)
		if len(pins) > 0 {
			t.Errorf("namespaces: %v", pins)
		}
		return errors.Join(err, rerr, perr, netns.Do(h.ns, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := c.ListTables()
			if len(tables) > 0 {
				t.Errorf("table %s is left", tables[0].Name)
			}
			return err
		}))
	})
}
