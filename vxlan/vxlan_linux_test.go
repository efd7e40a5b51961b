//go:build linux

package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"pgregory.net/rapid"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// lab is several hosts on one underlay, each with its overlay and containers.
type lab struct {
	t     testing.TB
	hosts []*labHost
}

type labHost struct {
	node    int // from 1
	ns, dir string
	overlay *Overlay
}

func newLab(t testing.TB, hosts int) *lab {
	t.Helper()
	nettest.Root(t)
	nettest.Require(t, "vxlan", "veth", "nf_tables")
	l := &lab{t: t}
	for i, ns := range nettest.Underlay(t, hosts) {
		l.hosts = append(l.hosts, &labHost{node: i + 1, ns: ns, dir: nettest.Dir(t)})
		l.hosts[i].open(t)
	}
	return l
}

// open replaces the host's Overlay by a new one, as a restarted daemon does.
func (h *labHost) open(t testing.TB) {
	t.Helper()
	err := netns.Do(h.ns, func() (err error) {
		h.overlay, err = New(h.dir, slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.overlay.Close() })
}

// container makes a container's namespace on the host and returns its path.
func (h *labHost) container(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(h.dir, "task-"+name)
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// network is network i as this host of n shall have it: each host h has one
// container, 10.0.(9+i).(10+h), with the network on its eth<i>.
func (h *labHost) network(i, n int) Network {
	vtep := func(node int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(node)}) }
	mac := func(node int) MAC { return MAC{2, 0, 0, 0, 0, byte(node)} }
	at := func(last int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(9 + i), byte(last)}) }
	c := Network{
		Router: filepath.Join(h.dir, fmt.Sprintf("net-%d", i)), VNI: uint32(4096 + i), MTU: 1450,
		Local: vtep(h.node), Port: 4789, MAC: mac(h.node), Subnet: netip.PrefixFrom(at(0), 24),
		Addrs: []netip.Addr{at(1), at(2), routerAddr}, Alias: netip.AddrFrom4([4]byte{169, 254, 80, byte(i)}), Uplink: true,
	}
	for node := 1; node <= n; node++ {
		if node != h.node {
			c.Peers = append(c.Peers, Peer{vtep(node), mac(node)})
			c.Remotes = append(c.Remotes, Remote{at(10 + node), vtep(node)})
		}
	}
	c.Ports = []Port{{Name: "c", NetNS: filepath.Join(h.dir, "task-c"), Iface: fmt.Sprintf("eth%d", i),
		Addr: netip.PrefixFrom(at(10+h.node), 24), First: i == 0, Default: i == 0}}
	return c
}

// set sets the config and checks the contract: Get returns it and there is
// nothing left to do.
func (h *labHost) set(t testing.TB, c Config) {
	t.Helper()
	if _, err := h.overlay.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	h.is(t, c)
}

func (h *labHost) is(t testing.TB, c Config) {
	t.Helper()
	got, err := h.overlay.Get()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got, netipEqual); diff != "" {
		t.Fatalf("get (-want +got)\n%s", diff)
	}
	if ops, err := h.overlay.Diff(c); err != nil || ops != nil {
		t.Fatalf("still to do: %q, %v", ops, err)
	}
}

// A new Overlay value, as after a daemon's death, finds everything and changes
// nothing; a connection lives through it.
func TestRootAdopt(t *testing.T) {
	l, containers := newTriple(t)
	h := l.hosts[0]
	var conn net.Conn
	nettest.Eventually(t, 10*time.Second, "dial", func() (err error) {
		conn, err = nettest.Dial(containers[0], "tcp", "", "10.0.9.12:80")
		return err
	})
	defer conn.Close()
	h.overlay.Close()
	h.open(t)
	if ops, err := h.overlay.Set(t.Context(), Config{[]Network{h.network(0, 3)}}); err != nil || ops != nil {
		t.Errorf("did %q, %v", ops, err)
	}
	if got, err := nettest.AskConn(conn); err != nil || got != "c2 10.0.9.11" {
		t.Errorf("got %q, %v", got, err)
	}
}

// The zero Config removes every trace.
func TestRootRemove(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	c := h.container(t, "c")
	before := links(t, h.ns)
	h.set(t, Config{[]Network{h.network(0, 3), h.network(1, 3)}})
	h.set(t, Config{})
	if got := links(t, h.ns); got != before {
		t.Errorf("links of the host: %s, were %s", got, before)
	}
	if got := links(t, c); got != "lo" {
		t.Errorf("links of the container: %s", got)
	}
	if got := h.overlay.readEgress(); got != "" {
		t.Errorf("egress table: %s", got)
	}
	nettest.With(t, h.ns, func(h *netns.Handle) error {
		routes, err := h.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Protocol == protocol {
				t.Errorf("route %s left", r)
			}
		}
		return err
	})
	if names, err := netns.List(h.dir); err != nil || len(names) != 1 {
		t.Errorf("namespaces %q, %v", names, err)
	}
}

func links(t testing.TB, ns string) string {
	var names []string
	nettest.With(t, ns, func(h *netns.Handle) error {
		list, err := h.LinkList()
		for _, l := range list {
			names = append(names, l.Attrs().Name)
		}
		return err
	})
	return strings.Join(names, " ")
}

// What is wrong with one network or one container is said, and the others are set.
func TestRootErrors(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	h.container(t, "c")
	good, bad, busy := h.network(0, 1), h.network(1, 1), h.network(2, 1)
	bad.MTU = 0
	good.Ports = append(good.Ports, Port{Name: "gone", NetNS: filepath.Join(h.dir, "task-gone"), Iface: "eth0",
		Addr: netip.MustParsePrefix("10.0.9.99/24"), First: true})
	nettest.Route(t, h.ns, busy.Subnet.String(), "", "eth0")
	_, err := h.overlay.Set(t.Context(), Config{[]Network{good, bad, busy}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"task-gone: no such file", `net-1": mtu 0`, "10.0.11.0/24, so the subnet is in use"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in\n%v", want, err)
		}
	}
	if lines := strings.Count(err.Error(), "\n") + 1; lines != 3 {
		t.Errorf("%d errors for 3 causes:\n%v", lines, err)
	}
	got, err := h.overlay.Get()
	if err != nil || len(got.Networks) != 2 || len(got.Networks[0].Ports) != 1 || !got.Networks[0].Uplink || got.Networks[1].Uplink {
		t.Errorf("got %+v, %v", got, err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if ops, err := h.overlay.Set(canceled, Config{}); ops != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: did %q, %v", ops, err)
	}
}

// From any config to any other: Get returns what was set, nothing is left to do.
func TestRootTransitions(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	containers := []string{h.container(t, "c0"), h.container(t, "c1")}
	draw := rapid.Custom(func(r *rapid.T) Config {
		c := drawConfig(r)
		for i := range c.Networks {
			n := &c.Networks[i]
			n.Router = filepath.Join(h.dir, filepath.Base(n.Router))
			for p := range n.Ports {
				n.Ports[p].NetNS = containers[n.Ports[p].Name[1]-'0']
			}
		}
		return c
	})
	for seed := range 20 {
		h.set(t, draw.Example(seed))
	}
	h.set(t, Config{})
}

// interrupted is a context that ends after a number of looks at it.
type interrupted struct {
	context.Context
	left *int
}

func (i interrupted) Err() error {
	if *i.left--; *i.left < 0 {
		return context.Canceled
	}
	return nil
}

// A daemon that dies anywhere within a Set leaves nothing that the next cannot
// finish, or take away.
func TestRootCrash(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	h.container(t, "c")
	full := Config{[]Network{h.network(0, 2)}}
	full.Networks[0].Return = true
	ops, err := h.overlay.Diff(full)
	if err != nil {
		t.Fatal(err)
	}
	for after := 1; after < len(ops)-1; after += 5 { // ip_forward of the host stays on
		left := after
		done, err := h.overlay.Set(interrupted{t.Context(), &left}, full)
		if !errors.Is(err, context.Canceled) || len(done) != after {
			t.Fatalf("after %d of %d: did %d, %v", after, len(ops), len(done), err)
		}
		if after%2 == 1 {
			h.set(t, full)
		}
		left = after % 7
		if _, err := h.overlay.Set(interrupted{t.Context(), &left}, Config{}); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		h.set(t, Config{})
	}
}

// What a large node costs: reading and planning 5,000 remote containers and 30
// own ones without a change, and the first Set of them.
func BenchmarkRootUnchanged(b *testing.B) {
	l := newLab(b, 1)
	h := l.hosts[0]
	n := h.network(0, 50)
	n.Subnet = netip.MustParsePrefix("10.0.0.0/16")
	n.Remotes, n.Ports = nil, nil
	for i := range 5000 {
		n.Remotes = append(n.Remotes, Remote{netip.AddrFrom4([4]byte{10, 0, byte(100 + i>>8), byte(i)}), n.Peers[i%len(n.Peers)].VTEP})
	}
	for i := range 30 {
		n.Ports = append(n.Ports, Port{Name: fmt.Sprintf("c%02d", i), NetNS: h.container(b, fmt.Sprint(i)), Iface: "eth0",
			Addr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), 16), First: true, Default: true})
	}
	start := time.Now()
	h.set(b, Config{[]Network{n}})
	b.Logf("first Set: %s", time.Since(start))
	for b.Loop() {
		if ops, err := h.overlay.Set(b.Context(), Config{[]Network{n}}); err != nil || ops != nil {
			b.Fatalf("did %q, %v", ops, err)
		}
	}
}

// The path MTU is that of the worst route, an own address counts with its
// device, and a peer without a route is an error that hides no other.
func TestRootPathMTU(t *testing.T) {
	l := newLab(t, 1)
	ns := l.hosts[0].ns
	nettest.With(t, ns, func(h *netns.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteAdd(&netlink.Route{Dst: nettest.IPNet(netip.MustParsePrefix("10.98.0.0/24")), Gw: net.IPv4(10, 99, 0, 9), LinkIndex: link.Attrs().Index, MTU: 1400})
	})
	tests := []struct {
		peers string
		want  int
		fails bool
	}{
		{"", 0, false},
		{"10.99.0.1", 1500, false},
		{"10.99.0.2", 1500, false},
		{"10.99.0.2 10.98.0.7", 1400, false},
		{"10.97.0.1 10.98.0.7", 1400, true},
	}
	for _, test := range tests {
		var peers []netip.Addr
		for _, p := range strings.Fields(test.peers) {
			peers = append(peers, netip.MustParseAddr(p))
		}
		err := netns.Do(ns, func() error {
			got, err := PathMTU(peers)
			if got != test.want || (err != nil) != test.fails {
				t.Errorf("%q: got %d, %v", test.peers, got, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if v4, v6 := OverlayMTU(1500, netip.MustParseAddr("10.0.0.1")), OverlayMTU(1500, netip.MustParseAddr("fd00::1")); v4 != 1450 || v6 != 1430 {
		t.Errorf("overlay mtu %d, %d", v4, v6)
	}
}

// The tests leave nothing in the machine's own namespace.
func TestMain(m *testing.M) {
	before := ownLinks()
	code := m.Run()
	if after := ownLinks(); after != before {
		fmt.Fprintf(os.Stderr, "links of the machine: %s, were %s\n", after, before)
		code = 1
	}
	os.Exit(code)
}

func ownLinks() string {
	var names []string
	ifaces, _ := net.Interfaces()
	for _, i := range ifaces {
		if strings.HasPrefix(i.Name, "nd-") {
			names = append(names, i.Name)
		}
	}
	return strings.Join(names, " ")
}
