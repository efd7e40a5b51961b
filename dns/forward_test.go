package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// upstream is a name server on loopback that the test runs.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int32
	last  atomic.Pointer[dns.Msg]
}

// newUpstream starts a name server that lets handle fill each reply.
func newUpstream(t *testing.T, handle func(reply *dns.Msg, tcp bool)) *upstream {
	t.Helper()
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: packets.LocalAddr().(*net.UDPAddr).AddrPort()}
	conns, err := net.Listen("tcp", u.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) {
		u.asked.Add(1)
		u.last.Store(query)
		reply := new(dns.Msg).SetReply(query)
		_, tcp := w.RemoteAddr().(*net.TCPAddr)
		handle(reply, tcp)
		_ = w.WriteMsg(reply)
	})
	var ended sync.WaitGroup
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: conns, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		ended.Go(func() { _ = s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

func give(reply *dns.Msg, n int) {
	for i := range n {
		reply.Answer = append(reply.Answer, &dns.A{Hdr: header(reply.Question[0].Name, dns.TypeA), A: net.IPv4(192, 0, 2, byte(i))})
	}
}

// deadUpstream is an address where nobody listens.
func deadUpstream(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Upstreams are asked in order, one that fails or refuses makes way for the next
// and is asked last for a while, and long answers come over TCP.
func TestForward(t *testing.T) {
	good := newUpstream(t, func(reply *dns.Msg, tcp bool) {
		if strings.HasPrefix(reply.Question[0].Name, "big.") && !tcp {
			reply.Truncated = true
			return
		}
		give(reply, 1)
		if tcp {
			give(reply, 99)
		}
	})
	refusing := newUpstream(t, func(reply *dns.Msg, _ bool) { reply.Rcode = dns.RcodeRefused })
	failing := newUpstream(t, func(reply *dns.Msg, _ bool) { reply.Rcode = dns.RcodeServerFailure })
	absent := newUpstream(t, func(reply *dns.Msg, _ bool) { reply.Rcode = dns.RcodeNameError })
	lying := newUpstream(t, func(reply *dns.Msg, _ bool) {
		give(reply, 1)
		reply.Question[0].Name = "other.example."
	})
	dead := deadUpstream(t)
	for _, tt := range []struct {
		name      string
		upstreams []netip.AddrPort
		ask       string
		want      string
	}{
		{"first", []netip.AddrPort{good.addr, absent.addr}, "a.example.", "NOERROR 1"},
		{"long answer", []netip.AddrPort{good.addr}, "big.example.", "NOERROR 100"},
		{"first is dead", []netip.AddrPort{dead, good.addr}, "a.example.", "NOERROR 1"},
		{"first refuses", []netip.AddrPort{refusing.addr, good.addr}, "a.example.", "NOERROR 1"},
		{"first fails", []netip.AddrPort{failing.addr, good.addr}, "a.example.", "NOERROR 1"},
		{"first answers another question", []netip.AddrPort{lying.addr, good.addr}, "a.example.", "NOERROR 1"},
		{"absence is an answer", []netip.AddrPort{absent.addr, good.addr}, "a.example.", "NXDOMAIN 0"},
		{"all fail", []netip.AddrPort{failing.addr, dead}, "a.example.", "SERVFAIL 0"},
		{"all dead", []netip.AddrPort{dead}, "a.example.", "SERVFAIL 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			query := new(dns.Msg).SetQuestion(tt.ask, dns.TypeA)
			reply := newForwarder().forward(tt.upstreams, forwardKey{}, query)
			if got := fmt.Sprint(dns.RcodeToString[reply.Rcode], " ", len(reply.Answer)); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if reply.Id != query.Id || !slices.Equal(reply.Question, query.Question) || !reply.Response || !reply.RecursionAvailable {
				t.Errorf("not a reply to the query: %v", reply)
			}
		})
	}
	f := newForwarder()
	query := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	before := lying.asked.Load()
	for range 5 {
		f.forward([]netip.AddrPort{lying.addr, good.addr}, forwardKey{}, query)
	}
	if n := lying.asked.Load() - before; n != 1 {
		t.Errorf("a failed upstream was asked %d times of 5, want once", n)
	}
}

// A client's own EDNS options and ID stay with us; its wish for DNSSEC records
// and the answer's flags go through.
func TestForwardEDNS(t *testing.T) {
	u := newUpstream(t, func(reply *dns.Msg, _ bool) {
		give(reply, 1)
		reply.AuthenticatedData = true
		reply.SetEdns0(4096, true)
	})
	query := new(dns.Msg).SetQuestion("a.example.", dns.TypeA).SetEdns0(4096, true)
	query.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"}}
	reply := newForwarder().forward([]netip.AddrPort{u.addr}, forwardKey{}, query)
	asked := u.last.Load()
	if opt := asked.IsEdns0(); opt == nil || !opt.Do() || len(opt.Option) != 0 || asked.Id == query.Id {
		t.Errorf("asked: %v", asked)
	}
	if opt := reply.IsEdns0(); opt == nil || opt.UDPSize() != udpSize || !reply.AuthenticatedData || len(reply.Extra) != 1 {
		t.Errorf("reply: %v", reply)
	}
	plain := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	if reply := newForwarder().forward([]netip.AddrPort{u.addr}, forwardKey{}, plain); reply.IsEdns0() != nil {
		t.Errorf("reply with EDNS to a query without: %v", reply)
	}
}

// More queries under way than one client's share, or than all, are refused at
// once, and places come free again.
func TestForwardBounds(t *testing.T) {
	f := newForwarder()
	greedy, other := forwardKey{from: addr("10.0.1.2")}, forwardKey{from: addr("10.0.1.3")}
	for range maxForwardsPerClient {
		if !f.take(greedy) {
			t.Fatal("refused within the share")
		}
	}
	query := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	if reply := f.forward(nil, greedy, query); reply.Rcode != dns.RcodeRefused {
		t.Errorf("beyond the share: got %s, want REFUSED", dns.RcodeToString[reply.Rcode])
	}
	if !f.take(other) {
		t.Error("another client is refused")
	}
	f.release(greedy)
	if !f.take(greedy) {
		t.Error("refused after a place came free")
	}
	for i := 2; f.busy < maxForwards; i++ {
		f.take(forwardKey{from: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
	}
	if f.take(forwardKey{from: addr("10.2.0.1")}) {
		t.Error("one more than all: got a place")
	}
}

// The host's name servers are read in their order, without our own address and
// without repetition.
func TestHostUpstreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# none\nsearch example.com\nnameserver 169.254.1.1\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver nonsense\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := HostUpstreams(path, addr("169.254.1.1"))
	if want := "[192.0.2.1:53 [fe80::1%eth0]:53]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v, want %s", got, err, want)
	}
	if _, err := HostUpstreams(path + ".none"); err == nil {
		t.Error("a missing file: got no error")
	}
}
