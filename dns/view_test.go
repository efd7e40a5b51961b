package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const (
	testNS     = "/run/netd/netns/net-shop"
	testServer = "169.254.1.1"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// testConfig has a network "shop" with a way out and an internal one "Back"; one
// client is on both, one only on the internal one.
func testConfig() Config {
	return Config{
		Upstreams: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")},
		Resolvers: []Resolver{{
			NetNS: testNS,
			Addr:  addr(testServer),
			Zones: []Zone{
				{
					ID: "idshop", Name: "shop", Subnet: netip.MustParsePrefix("10.0.1.0/24"),
					Records: []Record{
						{Name: "web", Addrs: []netip.Addr{addr("10.0.1.2")}},
						{Name: "tasks.web", Addrs: []netip.Addr{addr("10.0.1.3"), addr("10.0.1.4"), addr("10.0.1.5")}},
						{Name: "web.1.abc", Addrs: []netip.Addr{addr("10.0.1.3")}},
						{Name: "both", Addrs: []netip.Addr{addr("10.0.1.9")}},
						{Name: "Six", Addrs: []netip.Addr{addr("fd00::6"), addr("10.0.1.6")}},
						{Name: "idle"},
					},
					PTRs: []PTR{{addr("10.0.1.2"), "web.shop"}, {addr("fd00::6"), "six.shop"}},
				},
				{
					ID: "idback", Name: "Back", Subnet: netip.MustParsePrefix("10.0.2.0/24"),
					Records: []Record{
						{Name: "db", Addrs: []netip.Addr{addr("10.0.2.2")}},
						{Name: "both", Addrs: []netip.Addr{addr("10.0.2.9")}},
					},
					PTRs: []PTR{{addr("10.0.2.2"), "db.Back"}},
				},
			},
			Clients: []Client{
				{Addr: addr("10.0.1.20"), Zones: []string{"idshop", "idback"}, Forward: true},
				{Addr: addr("10.0.2.20"), Zones: []string{"idback"}},
			},
		}},
	}
}

// describe is a reply in one line: its code, answers sorted, SOA for absence.
func describe(reply *dns.Msg, forward bool) string {
	if forward {
		return "forward"
	}
	var out []string
	for _, rr := range reply.Answer {
		out = append(out, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(out)
	for _, rr := range reply.Ns {
		out = append(out, dns.TypeToString[rr.Header().Rrtype])
	}
	return strings.TrimSpace(dns.RcodeToString[reply.Rcode] + " " + strings.Join(out, " "))
}

// Every kind of name gets its answer, for each client what it may see.
func TestAnswer(t *testing.T) {
	v, err := newView(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	const both, internal, stranger = "10.0.1.20", "10.0.2.20", "10.0.1.66"
	for _, tt := range []struct {
		from, name string
		qtype      uint16
		want       string
	}{
		{both, "web.", dns.TypeA, "NOERROR 10.0.1.2"},
		{both, "WEB.", dns.TypeA, "NOERROR 10.0.1.2"},
		{"::ffff:10.0.1.20", "web.", dns.TypeA, "NOERROR 10.0.1.2"},
		{both, "web.shop.", dns.TypeA, "NOERROR 10.0.1.2"},
		{both, "tasks.web.", dns.TypeA, "NOERROR 10.0.1.3 10.0.1.4 10.0.1.5"},
		{both, "tasks.web.shop.", dns.TypeA, "NOERROR 10.0.1.3 10.0.1.4 10.0.1.5"},
		{both, "web.1.abc.", dns.TypeA, "NOERROR 10.0.1.3"},
		{both, "web.", dns.TypeAAAA, "NOERROR SOA"},
		{both, "web.", dns.TypeMX, "NOERROR SOA"},
		{both, "web.", dns.TypeHTTPS, "NOERROR SOA"},
		{both, "web.", dns.TypeANY, "NOERROR 10.0.1.2"},
		{both, "six.", dns.TypeA, "NOERROR 10.0.1.6"},
		{both, "six.", dns.TypeAAAA, "NOERROR fd00::6"},
		{both, "idle.", dns.TypeA, "NOERROR SOA"},
		{both, "both.", dns.TypeA, "NOERROR 10.0.1.9"},
		{both, "both.back.", dns.TypeA, "NOERROR 10.0.2.9"},
		{both, "db.", dns.TypeA, "NOERROR 10.0.2.2"},
		{both, "db.shop.", dns.TypeA, "forward"},
		{both, "example.com.", dns.TypeA, "forward"},
		{both, "nosuch.", dns.TypeA, "forward"},
		{both, "shop.", dns.TypeA, "forward"},
		{both, ".", dns.TypeNS, "forward"},
		{internal, "db.back.", dns.TypeA, "NOERROR 10.0.2.2"},
		{internal, "both.", dns.TypeA, "NOERROR 10.0.2.9"},
		{internal, "web.", dns.TypeA, "NXDOMAIN SOA"},
		{internal, "example.com.", dns.TypeA, "NXDOMAIN SOA"},
		{internal, "8.8.8.8.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA"},
		{stranger, "web.", dns.TypeA, "REFUSED"},
		{both, "2.1.0.10.in-addr.arpa.", dns.TypePTR, "NOERROR web.shop."},
		{both, "2.1.0.10.in-addr.arpa.", dns.TypeTXT, "NOERROR SOA"},
		{both, "2.2.0.10.in-addr.arpa.", dns.TypePTR, "NOERROR db.Back."},
		{internal, "2.1.0.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA"},
		{both, "77.1.0.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA"},
		{both, "1.0.10.in-addr.arpa.", dns.TypeSOA, "NXDOMAIN SOA"},
		{both, "10.in-addr.arpa.", dns.TypeSOA, "forward"},
		{both, "1.1.254.169.in-addr.arpa.", dns.TypePTR, "NXDOMAIN SOA"},
		{both, "8.8.8.8.in-addr.arpa.", dns.TypePTR, "forward"},
		{both, "6." + strings.Repeat("0.", 27) + "0.d.f.ip6.arpa.", dns.TypePTR, "forward"},
		{both, "6.0." + strings.Repeat("0.", 26) + "0.0.d.f.ip6.arpa.", dns.TypePTR, "NOERROR six.shop."},
		{both, "x.1.0.10.in-addr.arpa.", dns.TypePTR, "forward"},
	} {
		t.Run(fmt.Sprint(tt.from, " ", tt.name, dns.TypeToString[tt.qtype]), func(t *testing.T) {
			query := new(dns.Msg).SetQuestion(tt.name, tt.qtype)
			reply, forward := v.answer(socketKey{testNS, addr(testServer)}, addr(tt.from), query)
			if got := describe(reply, forward); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			if reply.Id != query.Id || !reply.Response || reply.Question[0].Name != tt.name {
				t.Errorf("not the reply to the query: %v", reply)
			}
		})
	}
}

// Queries that are no simple questions are refused, each with its code.
func TestAnswerOdd(t *testing.T) {
	v, err := newView(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*dns.Msg)
		want   string
	}{
		{"no question", func(m *dns.Msg) { m.Question = nil }, "FORMERR"},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, "FORMERR"},
		{"update", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, "NOTIMP"},
		{"other class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, "REFUSED"},
		{"any class", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }, "NOERROR 10.0.1.2"},
		{"newer EDNS", func(m *dns.Msg) { m.SetEdns0(4096, false).IsEdns0().SetVersion(1) }, "BADVERS"},
	} {
		query := new(dns.Msg).SetQuestion("web.", dns.TypeA)
		tt.change(query)
		reply, forward := v.answer(socketKey{testNS, addr(testServer)}, addr("10.0.1.20"), query)
		if got := strings.Replace(describe(reply, forward), "BADSIG", "BADVERS", 1); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
		if _, err := reply.Pack(); err != nil {
			t.Errorf("%s: pack: %v", tt.name, err)
		}
	}
	query := new(dns.Msg).SetQuestion("web.", dns.TypeA)
	if reply, _ := v.answer(socketKey{"/elsewhere", addr(testServer)}, addr("10.0.1.20"), query); reply.Rcode != dns.RcodeRefused {
		t.Errorf("unknown resolver: got %s, want REFUSED", dns.RcodeToString[reply.Rcode])
	}
}

// Every address comes first in some answer, so that clients that take the first
// spread; the view's own order stays.
func TestShuffle(t *testing.T) {
	s := New(nil)
	v, err := newView(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	s.view.Store(v)
	first := map[string]int{}
	for range 200 {
		reply, _ := s.Answer(testNS, addr(testServer), addr("10.0.1.20"), new(dns.Msg).SetQuestion("tasks.web.", dns.TypeA))
		first[reply.Answer[0].(*dns.A).A.String()]++
	}
	for _, a := range []string{"10.0.1.3", "10.0.1.4", "10.0.1.5"} {
		if first[a] < 20 {
			t.Errorf("%s came first %d times of 200", a, first[a])
		}
	}
	got, ok := s.Lookup(testNS, addr(testServer), addr("10.0.1.20"), "tasks.web")
	if want := "[10.0.1.3 10.0.1.4 10.0.1.5]"; !ok || fmt.Sprint(got) != want {
		t.Errorf("lookup: got %v, %v, want %s", got, ok, want)
	}
	if _, ok := s.Lookup(testNS, addr(testServer), addr("10.0.2.20"), "web"); ok {
		t.Error("lookup of a name that the client may not see: got one")
	}
}

// What is wrong in a config is told and left out; the rest is served.
func TestViewErrors(t *testing.T) {
	c := testConfig()
	c.Resolvers[0].Clients[0].Zones = []string{"idshop", "nosuch"}
	c.Resolvers = append(c.Resolvers, c.Resolvers[0], Resolver{NetNS: "/x"})
	v, err := newView(c)
	if err == nil || !strings.Contains(err.Error(), `zone "nosuch"`) || !strings.Contains(err.Error(), "listed twice") {
		t.Errorf("got error %v", err)
	}
	reply, forward := v.answer(socketKey{testNS, addr(testServer)}, addr("10.0.1.20"), new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if got := describe(reply, forward); got != "NOERROR 10.0.1.2" {
		t.Errorf("got %s", got)
	}
}

// Without upstreams a name that is not ours does not exist.
func TestNoUpstreams(t *testing.T) {
	c := testConfig()
	c.Upstreams = nil
	v, err := newView(c)
	if err != nil {
		t.Fatal(err)
	}
	reply, forward := v.answer(socketKey{testNS, addr(testServer)}, addr("10.0.1.20"), new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	if got := describe(reply, forward); got != "NXDOMAIN SOA" {
		t.Errorf("got %s, want NXDOMAIN SOA", got)
	}
}

// Whatever bytes come as a query, they are answered or dropped, and the answer
// is to the question asked and fits the client's size.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.", "tasks.web.shop.", "2.1.0.10.in-addr.arpa.", "example.com."} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(512, true).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	v, err := newView(testConfig())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		query := new(dns.Msg)
		if query.Unpack(b) != nil {
			return
		}
		for _, from := range []string{"10.0.1.20", "10.0.2.20", "10.9.9.9"} {
			reply, _ := v.answer(socketKey{testNS, addr(testServer)}, addr(from), query)
			if reply.Id != query.Id || !reply.Response {
				t.Fatalf("not a reply: %v", reply)
			}
			reply.Truncate(dns.MinMsgSize)
			out, err := reply.Pack()
			if err != nil {
				if _, again := query.Pack(); again != nil {
					continue // the query itself cannot be written: the server drops it
				}
				t.Fatalf("pack %v: %v", reply, err)
			}
			if len(out) > dns.MinMsgSize && len(reply.Answer) > 0 {
				t.Fatalf("%d bytes", len(out))
			}
		}
	})
}
