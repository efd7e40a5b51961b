package dns

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

func largeConfig() Config {
	c := testConfig()
	z := &c.Resolvers[0].Zones[0]
	for i := range 5000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		z.Records = append(z.Records, Record{Name: fmt.Sprintf("web.%d.h0ev5tvl84x9kbd5lcp4rs5wk", i), Addrs: []netip.Addr{a}})
		z.PTRs = append(z.PTRs, PTR{a, fmt.Sprintf("web.%d.h0ev5tvl84x9kbd5lcp4rs5wk.shop", i)})
	}
	return c
}

// How long it takes to make the view of 5,000 endpoints.
func BenchmarkView(b *testing.B) {
	c := largeConfig()
	for b.Loop() {
		if _, err := newView(c); err != nil {
			b.Fatal(err)
		}
	}
}

// How long one answer takes, from the query's bytes to the reply's.
func BenchmarkAnswer(b *testing.B) {
	v, err := newView(largeConfig())
	if err != nil {
		b.Fatal(err)
	}
	packed, err := new(dns.Msg).SetQuestion("tasks.web.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	at, from := socketKey{testNS, addr(testServer)}, addr("10.0.1.20")
	buf := make([]byte, dns.MinMsgSize)
	for b.Loop() {
		query := new(dns.Msg)
		if err := query.Unpack(packed); err != nil {
			b.Fatal(err)
		}
		reply, _ := v.answer(at, from, query)
		if _, err := reply.PackBuffer(buf); err != nil {
			b.Fatal(err)
		}
	}
}
