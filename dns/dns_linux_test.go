//go:build linux

package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"netd/internal/netns"
	"netd/internal/nettest"
)

// router returns a namespace with the resolver's and the clients' addresses in it.
func router(t *testing.T) string {
	t.Helper()
	nettest.Root(t)
	ns := nettest.NS(t)
	addresses(t, ns)
	return ns
}

func addresses(t *testing.T, ns string) {
	t.Helper()
	for _, a := range []string{testServer, "10.0.1.20", "10.0.2.20", "10.0.1.66"} {
		nettest.Addr(t, ns, "lo", a+"/32")
	}
}

// running returns a server that runs until the test ends.
func running(t *testing.T) *Server {
	t.Helper()
	s := New(nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s
}

func in(ns string) Config {
	c := testConfig()
	c.Resolvers[0].NetNS = ns
	return c
}

func set(t *testing.T, s *Server, c Config) {
	t.Helper()
	if err := s.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// exchange asks the resolver in the namespace from an address there.
func exchange(ns, network, from string, query *dns.Msg) (reply *dns.Msg, err error) {
	err = netns.Do(ns, func() error {
		client := dns.Client{Net: network, Timeout: 5 * time.Second, UDPSize: dns.DefaultMsgSize}
		local := netip.AddrPortFrom(addr(from), 0)
		client.Dialer = &net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(local), Timeout: 5 * time.Second}
		if network == "tcp" {
			client.Dialer.LocalAddr = net.TCPAddrFromAddrPort(local)
		}
		reply, _, err = client.Exchange(query, testServer+":53")
		return err
	})
	return reply, err
}

func ask(t *testing.T, ns, network, from, name string) string {
	t.Helper()
	reply, err := exchange(ns, network, from, new(dns.Msg).SetQuestion(name, dns.TypeA))
	if err != nil {
		return err.Error()
	}
	return describe(reply, false)
}

// Over real sockets, UDP and TCP: each client gets its own answers, strangers none.
func TestRootServe(t *testing.T) {
	ns := router(t)
	s := running(t)
	set(t, s, in(ns))
	for _, network := range []string{"udp", "tcp"} {
		for _, tt := range []struct{ from, name, want string }{
			{"10.0.1.20", "web.", "NOERROR 10.0.1.2"},
			{"10.0.2.20", "db.", "NOERROR 10.0.2.2"},
			{"10.0.2.20", "web.", "NXDOMAIN SOA"},
			{"10.0.1.66", "web.", "REFUSED"},
		} {
			if got := ask(t, ns, network, tt.from, tt.name); got != tt.want {
				t.Errorf("%s from %s over %s: got %s, want %s", tt.name, tt.from, network, got, tt.want)
			}
		}
	}
}

// An answer that does not fit says so, at 512 bytes or what the client's EDNS
// allows, and is whole over TCP.
func TestRootTruncate(t *testing.T) {
	ns := router(t)
	s := running(t)
	c := in(ns)
	many := Record{Name: "many"}
	for i := range 200 {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}))
	}
	c.Resolvers[0].Zones[0].Records = append(c.Resolvers[0].Zones[0].Records, many)
	set(t, s, c)
	var got []int
	for _, size := range []uint16{0, 512, 1000, 4096} {
		query := new(dns.Msg).SetQuestion("many.", dns.TypeA)
		if size > 0 {
			query.SetEdns0(size, false)
		}
		reply, err := exchange(ns, "udp", "10.0.1.20", query)
		if err != nil {
			t.Fatal(err)
		}
		reply.Compress = true // as it came
		if limit := min(max(int(size), 512), udpSize); !reply.Truncated || reply.Len() > limit || len(reply.Answer) < limit/20 {
			t.Errorf("EDNS %d: truncated %v, %d bytes, %d answers", size, reply.Truncated, reply.Len(), len(reply.Answer))
		}
		got = append(got, len(reply.Answer))
	}
	if got[0] >= got[2] || got[2] >= got[3] {
		t.Errorf("answers by size: %v, want more for more", got)
	}
	reply, err := exchange(ns, "tcp", "10.0.1.20", new(dns.Msg).SetQuestion("many.", dns.TypeA))
	if err != nil || reply.Truncated || len(reply.Answer) != 200 {
		t.Errorf("over TCP: %v, %d answers", err, len(reply.Answer))
	}
}

// Other names are asked of the upstream for a client that may, and never for one
// on internal networks only.
func TestRootForward(t *testing.T) {
	ns := router(t)
	u := newUpstream(t, func(reply *dns.Msg, _ bool) { give(reply, 1) })
	s := running(t)
	c := in(ns)
	c.Upstreams = []netip.AddrPort{u.addr}
	set(t, s, c)
	for _, network := range []string{"udp", "tcp"} {
		if got := ask(t, ns, network, "10.0.1.20", "example.com."); got != "NOERROR 192.0.2.0" {
			t.Errorf("over %s: got %s", network, got)
		}
		if got := ask(t, ns, network, "10.0.2.20", "example.com."); got != "NXDOMAIN SOA" {
			t.Errorf("internal, over %s: got %s", network, got)
		}
		if got := ask(t, ns, network, "10.0.1.20", "web."); got != "NOERROR 10.0.1.2" {
			t.Errorf("own name, over %s: got %s", network, got)
		}
	}
	if n := u.asked.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times, want 2", n)
	}
}

// While Set changes everything that can change, no query goes unanswered and
// the sockets stay the same.
func TestRootSwap(t *testing.T) {
	ns := router(t)
	s := running(t)
	a, b := in(ns), in(ns)
	b.Resolvers[0].Zones[0].Records[0].Addrs = []netip.Addr{addr("10.0.1.99")}
	set(t, s, a)
	before := s.open[socketKey{ns, addr(testServer)}]
	stop := make(chan struct{})
	var asking sync.WaitGroup
	counts := map[string]int{}
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				counts[ask(t, ns, "udp", "10.0.1.20", "web.")]++
			}
		}
	})
	for i := range 200 {
		c := a
		if i%2 == 0 {
			c = b
		}
		set(t, s, c)
		ask(t, ns, "udp", "10.0.1.20", "web.")
	}
	close(stop)
	asking.Wait()
	delete(counts, "NOERROR 10.0.1.2")
	delete(counts, "NOERROR 10.0.1.99")
	if len(counts) > 0 {
		t.Errorf("other answers: %v", counts)
	}
	if after := s.open[socketKey{ns, addr(testServer)}]; after != before {
		t.Error("the sockets were opened anew")
	}
}

// A resolver that is gone, or whose namespace is, is closed; a namespace that
// was made anew under the same path is served again; one that cannot be entered
// does not keep the others from being served.
func TestRootNamespaces(t *testing.T) {
	ns := router(t)
	other := filepath.Join(nettest.Dir(t), "other")
	s := running(t)
	c := in(ns)
	second := in(other).Resolvers[0]
	c.Resolvers = append([]Resolver{second}, c.Resolvers...)
	if err := s.Set(t.Context(), c); err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("no namespace: got %v", err)
	}
	if got := ask(t, ns, "udp", "10.0.1.20", "web."); got != "NOERROR 10.0.1.2" {
		t.Errorf("beside it: got %s", got)
	}
	for round := range 2 {
		if err := netns.Create(other); err != nil {
			t.Fatal(err)
		}
		addresses(t, other)
		set(t, s, c)
		for _, path := range []string{ns, other} {
			if got := ask(t, path, "tcp", "10.0.1.20", "web."); got != "NOERROR 10.0.1.2" {
				t.Errorf("round %d in %s: got %s", round, path, got)
			}
		}
		if err := netns.Delete(other); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Set(t.Context(), c); err == nil {
		t.Error("the namespace is gone again: got no error")
	}
	if n := len(s.open); n != 1 {
		t.Errorf("%d sockets are open, want 1", n)
	}
	set(t, s, Config{})
	nettest.Eventually(t, 5*time.Second, "closed", func() error { return free(ns) })
}

// free says whether the resolver's port can be bound in the namespace.
func free(ns string) error {
	return netns.Do(ns, func() error {
		packets, conns, err := listenHere(context.Background(), testServer+":53")
		if err != nil {
			return err
		}
		return errors.Join(packets.Close(), conns.Close())
	})
}

// What is no DNS message gets no answer and ends nothing, and idle connections
// of one client do not keep another out.
func TestRootGarbage(t *testing.T) {
	ns := router(t)
	s := running(t)
	set(t, s, in(ns))
	var held []net.Conn
	err := netns.Do(ns, func() error {
		for _, b := range [][]byte{{}, {1}, make([]byte, 11), []byte(strings.Repeat("\xff", 600)), []byte(strings.Repeat("\xc0\x0c", 40))} {
			for _, network := range []string{"udp", "tcp"} {
				conn, err := net.Dial(network, testServer+":53")
				if err != nil {
					return err
				}
				if _, err := conn.Write(b); err != nil {
					return err
				}
				if err := conn.Close(); err != nil {
					return err
				}
			}
		}
		for range 3 * maxConnsPerAddr {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr("10.0.1.66"), 0))}
			conn, err := d.Dial("tcp", testServer+":53")
			if err != nil {
				return err
			}
			held = append(held, conn)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"udp", "tcp"} {
		if got := ask(t, ns, network, "10.0.1.20", "web."); got != "NOERROR 10.0.1.2" {
			t.Errorf("over %s: got %s", network, got)
		}
	}
	for _, conn := range held {
		conn.Close()
	}
}

// After the end of Run the port is free and Set is refused.
func TestRootEnd(t *testing.T) {
	ns := router(t)
	s := New(nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	set(t, s, in(ns))
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := free(ns); err != nil {
		t.Errorf("bind after the end: %v", err)
	}
	if err := s.Set(t.Context(), in(ns)); err == nil {
		t.Error("set after the end: got no error")
	}
}
