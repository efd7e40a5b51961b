//go:build linux

package ingress

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// open returns the ingress of a namespace, as a daemon that was just started.
func open(t testing.TB, ns string) *Ingress {
	t.Helper()
	var i *Ingress
	err := netns.Do(ns, func() (err error) {
		i, err = New(slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// newHost is a namespace with an uplink, whose other end is a router.
func newHost(t testing.TB) (host, router string) {
	t.Helper()
	nettest.Require(t, "nf_tables", "veth")
	host, router = nettest.NS(t), nettest.NS(t)
	nettest.Link(t, host, router, "", "10.0.0.1/24")
	nettest.With(t, host, func(h *netns.Handle) error {
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := h.LinkSetDown(l); err != nil {
			return err
		}
		return h.LinkSetName(l, "nd-up4096")
	})
	nettest.Addr(t, host, "nd-up4096", "169.254.2.1/32")
	nettest.Addr(t, host, "lo", "192.0.2.1/32")
	nettest.Route(t, host, "10.0.0.0/24", "", "nd-up4096")
	nettest.Route(t, router, "0.0.0.0/0", "169.254.2.1", "eth0")
	return host, router
}

func served() Config {
	return Config{
		Ports: []Port{port(TCP, 8080, "10.0.0.1:80"), port(UDP, 53, "10.0.0.1:80"), port(SCTP, 7, "10.0.0.1:7")},
		Local: []string{"nd-up4096"},
	}
}

// set sets the config and checks the contract: Get returns it and there is
// nothing left to do, for this and for a new daemon.
func set(t testing.TB, ns string, c Config) {
	t.Helper()
	if _, err := open(t, ns).Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	i := open(t, ns)
	got, err := i.Get()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c, got, netipEqual); diff != "" {
		t.Fatalf("get (-want +got)\n%s", diff)
	}
	if ops, err := i.Diff(c); err != nil || ops != nil {
		t.Fatalf("still to do: %q, %v", ops, err)
	}
}

// What is set is what is read, from one state to any other, and the zero Config
// leaves nothing.
func TestRootSet(t *testing.T) {
	host, _ := newHost(t)
	full, some := served(), Config{Ports: []Port{port(TCP, 8080, "10.0.0.1:81")}}
	many := Config{}
	for number := range 5000 {
		many.Ports = append(many.Ports, port(TCP, uint16(number+1), "10.0.0.1:80"))
	}
	for _, c := range []Config{full, some, {}, some, full, many, full, {}} {
		set(t, host, c)
	}
	nettest.With(t, host, func(*netns.Handle) error {
		return netns.Do(host, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := c.ListTables()
			if err == nil && len(tables) > 0 {
				err = fmt.Errorf("%d tables are left, the first is %q", len(tables), tables[0].Name)
			}
			return err
		})
	})
}

// The node's own processes reach a published port by the node's address and as
// localhost, TCP and UDP; what is not published is refused; and a port keeps
// answering while others come and go.
func TestRootOwnNode(t *testing.T) {
	host, router := newHost(t)
	nettest.Serve(t, router, "task", 80)
	set(t, host, served())
	// Localhost becomes the address that the uplink would send from.
	for at, seen := range map[string]string{"192.0.2.1": "task 192.0.2.1", "127.0.0.1": "task 169.254.2.1"} {
		for network, number := range map[string]int{"tcp": 8080, "udp": 53} {
			got, err := nettest.Ask(host, network, "", fmt.Sprintf("%s:%d", at, number))
			if err != nil || got != seen {
				t.Errorf("%s by %s: got %q, %v", network, at, got, err)
			}
		}
		if _, err := nettest.Ask(host, "tcp", "", at+":8081"); !nettest.Refused(err) {
			t.Errorf("a port that nobody published, by %s: got %v", at, err)
		}
	}
	conn, err := nettest.Dial(host, "tcp", "", "127.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fewer := served()
	fewer.Ports = fewer.Ports[:1]
	set(t, host, fewer)
	if got, err := nettest.AskConn(conn); err != nil || got != "task 169.254.2.1" {
		t.Errorf("a connection that was open: got %q, %v", got, err)
	}
	set(t, host, Config{})
	if _, err := nettest.Ask(host, "tcp", "", "192.0.2.1:8080"); !nettest.Refused(err) {
		t.Errorf("a port that was closed: got %v", err)
	}
}

// Nobody behind an uplink reaches what listens on the node's loopback addresses,
// although connections from there may leave by it (CVE-2020-8558).
func TestRootLoopbackGuard(t *testing.T) {
	host, router := newHost(t)
	nettest.Serve(t, host, "private", 9000)
	set(t, host, served())
	// The worst that a router could do: have the loopback's addresses on the wire.
	nettest.Sysctl(t, router, "net/ipv4/conf/all/route_localnet", "1")
	nettest.With(t, router, func(h *netns.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.AddrDel(lo, &netlink.Addr{IPNet: nettest.IPNet(netip.MustParsePrefix("127.0.0.1/8"))})
	})
	nettest.Route(t, router, "127.0.0.0/8", "169.254.2.1", "eth0")
	if got, err := nettest.Ask(router, "tcp", "10.0.0.1", "169.254.2.1:9000"); err != nil || got != "private 10.0.0.1" {
		t.Fatalf("the way to the host is not open, so nothing is proved: got %q, %v", got, err)
	}
	for _, network := range []string{"tcp", "udp"} {
		if got, err := nettest.Ask(router, network, "10.0.0.1", "127.0.0.1:9000"); err == nil {
			t.Errorf("%s: got %q", network, got)
		}
	}
}

// Whatever is removed or changed behind its back is mended by the next Set.
func TestRootHeal(t *testing.T) {
	host, router := newHost(t)
	nettest.Serve(t, router, "task", 80)
	set(t, host, served())
	nft := func(fn func(*nftables.Conn)) func(*testing.T) {
		return func(t *testing.T) {
			err := netns.Do(host, func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				fn(c)
				return c.Flush()
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, damage := range map[string]func(*testing.T){
		"ruleset flushed": nft(func(c *nftables.Conn) { c.FlushRuleset() }),
		"rules flushed":   nft(func(c *nftables.Conn) { c.FlushTable(ourTable()) }),
		"elements flushed": nft(func(c *nftables.Conn) {
			c.FlushSet(portsMap())
		}),
		"a strange chain": nft(func(c *nftables.Conn) { c.AddChain(&nftables.Chain{Table: ourTable(), Name: "strange"}) }),
		"localhost off":   func(t *testing.T) { nettest.Sysctl(t, host, settingOf("nd-up4096"), "0") },
	} {
		t.Run(what, func(t *testing.T) {
			damage(t)
			if ops, err := open(t, host).Diff(served()); err != nil || len(ops) == 0 {
				t.Fatalf("not seen: %q, %v", ops, err)
			}
			set(t, host, served())
			for network, number := range map[string]int{"tcp": 8080, "udp": 53} {
				if got, err := nettest.Ask(host, network, "", fmt.Sprintf("127.0.0.1:%d", number)); err != nil || got != "task 169.254.2.1" {
					t.Errorf("%s: got %q, %v", network, got, err)
				}
			}
		})
	}
}

// A flow that began before its port was published follows it from its next packet.
func TestRootEarlyFlow(t *testing.T) {
	host, router := newHost(t)
	nettest.Serve(t, router, "task", 80)
	set(t, host, Config{Ports: []Port{port(TCP, 1, "10.0.0.1:80")}}) // conntrack is on
	conn, err := nettest.Dial(host, "udp", "", "192.0.2.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, err := nettest.AskConn(conn); err == nil {
		t.Fatalf("got %q before the port is published", got)
	}
	set(t, host, served())
	if got, err := nettest.AskConn(conn); err != nil || got != "task 192.0.2.1" {
		t.Errorf("got %q, %v", got, err)
	}
}
