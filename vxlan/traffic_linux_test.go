//go:build linux

package vxlan

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// answers asks until the server's answer is the expected one.
func answers(t testing.TB, ns, network, to, want string) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, network+" "+to, func() error {
		got, err := nettest.Ask(ns, network, "", to)
		if err == nil && got != want {
			err = fmt.Errorf("got %q, want %q", got, want)
		}
		return err
	})
}

// newTriple is three hosts with one network, a container each, serving port 80.
func newTriple(t testing.TB) (*lab, []string) {
	t.Helper()
	l := newLab(t, 3)
	var containers []string
	for i, h := range l.hosts {
		containers = append(containers, h.container(t, "c"))
		h.set(t, Config{[]Network{h.network(0, 3)}})
		nettest.Serve(t, containers[i], fmt.Sprintf("c%d", h.node), 80)
	}
	return l, containers
}

// Containers on three hosts reach each other by TCP and UDP, each under its own
// address, with full-size packets; nothing in the routers tracks connections.
func TestRootTraffic(t *testing.T) {
	l, containers := newTriple(t)
	for _, network := range []string{"tcp", "udp"} {
		for i, from := range containers {
			for j := range containers {
				answers(t, from, network, fmt.Sprintf("10.0.9.%d:80", 11+j), fmt.Sprintf("c%d 10.0.9.%d", j+1, 11+i))
			}
		}
	}
	full := strings.Repeat("x", 1450-28) + "\n"
	conn, err := nettest.Dial(containers[0], "udp", "", "10.0.9.13:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	nettest.Eventually(t, 10*time.Second, "full-size packet", func() error {
		if _, err := conn.Write([]byte(full)); err != nil {
			return err
		}
		_, err := nettest.AskConn(conn)
		return err
	})
	for _, h := range l.hosts {
		count, err := netns.GetSysctl(h.network(0, 3).Router, "net/netfilter/nf_conntrack_count")
		if err == nil && count != "0" {
			t.Errorf("host %d: %s connections tracked in the router", h.node, count)
		}
	}
}

// A container that sends from an address that is not its own reaches nobody, not
// even on its own host; with its own it does.
func TestRootSpoof(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	mine := h.container(t, "c")
	other := h.container(t, "d")
	far := l.hosts[1].container(t, "c")
	n := h.network(0, 2)
	n.Ports = append(n.Ports, Port{Name: "d", NetNS: other, Iface: "eth0", Addr: netip.MustParsePrefix("10.0.9.20/24"), First: true, Default: true})
	h.set(t, Config{[]Network{n}})
	m := l.hosts[1].network(0, 2)
	m.Remotes = append(m.Remotes, Remote{netip.MustParseAddr("10.0.9.20"), n.Local})
	l.hosts[1].set(t, Config{[]Network{m}})
	nettest.Serve(t, far, "far", 80)
	nettest.Serve(t, other, "near", 80)
	heard := listen(t, 81, far, other)
	for _, to := range []string{"10.0.9.12", "10.0.9.20"} {
		answers(t, mine, "udp", to+":80", map[string]string{"10.0.9.12": "far", "10.0.9.20": "near"}[to]+" 10.0.9.11")
	}
	// Another container's, the router's, a VIP, one of nobody, one from outside.
	for _, from := range []string{"10.0.9.20", "10.0.9.1", "10.0.9.2", "10.0.9.99", "192.0.2.7", "169.254.1.1"} {
		nettest.Addr(t, mine, "eth0", from+"/32")
		for _, to := range []string{"10.0.9.12:81", "10.0.9.20:81"} {
			if from == "10.0.9.20" && to == "10.0.9.20:81" {
				continue // would be its own
			}
			conn, err := nettest.Dial(mine, "udp", from, to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write([]byte("forged")); err != nil {
				t.Logf("send from %s: %v", from, err)
			}
			conn.Close()
		}
		nettest.With(t, mine, func(h *netns.Handle) error {
			link, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return h.AddrDel(link, &netlink.Addr{IPNet: nettest.IPNet(netip.MustParsePrefix(from + "/32"))})
		})
	}
	// The true one comes last: what was sent before has come by then, or never will.
	for _, to := range []string{"10.0.9.12:81", "10.0.9.20:81"} {
		send(t, mine, to, "true")
		if got := heard(); got != "true from 10.0.9.11" {
			t.Errorf("%s heard first: %s", to, got)
		}
	}
}

// listen opens a UDP port in the namespaces; the returned function waits for the
// next packet in any of them.
func listen(t testing.TB, port int, namespaces ...string) func() string {
	t.Helper()
	heard := make(chan string, 100)
	for _, ns := range namespaces {
		var conn net.PacketConn
		err := netns.Do(ns, func() (err error) {
			conn, err = net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		t.Cleanup(func() { conn.Close(); <-done })
		go func() {
			defer close(done)
			buf := make([]byte, 100)
			for {
				n, from, err := conn.ReadFrom(buf)
				if err != nil {
					return
				}
				heard <- fmt.Sprintf("%s from %s", buf[:n], netip.MustParseAddrPort(from.String()).Addr())
			}
		}()
	}
	return func() string {
		select {
		case packet := <-heard:
			return packet
		case <-time.After(10 * time.Second):
			return "nothing"
		}
	}
}

func send(t testing.TB, ns, to, payload string) {
	t.Helper()
	conn, err := nettest.Dial(ns, "udp", "", to)
	if err == nil {
		_, err = conn.Write([]byte(payload))
		conn.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Out of the overlay a container appears under its host's address; an internal
// network has no way out; networks do not reach each other through the host.
func TestRootEgress(t *testing.T) {
	l := newLab(t, 2)
	h, outside := l.hosts[0], l.hosts[1].ns
	// A host may be strict about sources: the uplink must not depend on that.
	nettest.Sysctl(t, h.ns, "net.ipv4.conf.all.rp_filter", "1")
	c, d := h.container(t, "c"), h.container(t, "d")
	open, second, internal := h.network(0, 1), h.network(1, 1), h.network(2, 1)
	second.Ports[0].NetNS, second.Ports[0].First, second.Ports[0].Default = d, true, true
	internal.Uplink = false
	internal.Ports[0].NetNS = h.container(t, "e")
	internal.Ports[0].First = true
	h.set(t, Config{[]Network{open, second, internal}})
	nettest.Serve(t, outside, "outside", 80)
	nettest.Serve(t, d, "d", 80)
	for _, network := range []string{"tcp", "udp"} {
		answers(t, c, network, "10.99.0.2:80", "outside 10.99.0.1")
		answers(t, d, network, "10.99.0.2:80", "outside 10.99.0.1")
	}
	closed := map[string][2]string{
		"internal to outside":    {internal.Ports[0].NetNS, "10.99.0.2:80"},
		"network to network":     {c, "10.0.10.11:80"},
		"outside to container":   {outside, "10.0.10.11:80"},
		"internal to network":    {internal.Ports[0].NetNS, "10.0.10.11:80"},
		"address that is unused": {c, "10.0.9.77:80"},
	}
	nettest.Route(t, outside, "10.0.10.0/24", "10.99.0.1", "eth0")
	for what, path := range closed {
		if got, err := nettest.Ask(path[0], "udp", "", path[1]); err == nil {
			t.Errorf("%s: got %q", what, got)
		}
	}
	answers(t, h.ns, "tcp", "10.0.10.11:80", "d 10.99.0.1") // the host itself may
}

// A container cannot send to the data-path port of any host, where a forged
// overlay packet under its host's address would be believed.
func TestRootNoForgedOverlay(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	c := h.container(t, "c")
	n := h.network(0, 1)
	n.Port = 4790 // so that the test can listen on it in the other host
	h.set(t, Config{[]Network{n}})
	nettest.Serve(t, l.hosts[1].ns, "outside", 4791)
	answers(t, c, "udp", "10.99.0.2:4791", "outside 10.99.0.1")
	heard := listen(t, 4790, l.hosts[1].ns)
	send(t, c, "10.99.0.2:4790", "forged")
	send(t, h.ns, "10.99.0.2:4790", "true") // a host's own packet comes after it
	if got := heard(); got != "true from 10.99.0.1" {
		t.Errorf("heard first: %s", got)
	}
}

// The underlay may be IPv6: the inner routes lead by way of an IPv6 neighbour.
func TestRootUnderlayV6(t *testing.T) {
	l := newLab(t, 2)
	vtep := func(node int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fd00:99::%d", node)) }
	var containers []string
	for _, h := range l.hosts {
		nettest.Addr(t, h.ns, "eth0", vtep(h.node).String()+"/64")
		n := h.network(0, 2)
		n.MTU, n.Local = 1430, vtep(h.node)
		n.Peers[0].VTEP, n.Remotes[0].VTEP = vtep(3-h.node), vtep(3-h.node)
		containers = append(containers, h.container(t, "c"))
		h.set(t, Config{[]Network{n}})
		nettest.Serve(t, containers[h.node-1], "c", 80)
	}
	answers(t, containers[0], "tcp", "10.0.9.12:80", "c 10.0.9.11")
	answers(t, containers[1], "udp", "10.0.9.11:80", "c 10.0.9.12")
}
