package dns

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

const (
	// answerTTL is short, since a stopped task's address must be out of every
	// client's memory before the task's connections are drained.
	answerTTL = 5 // seconds
	// negativeTTL is what a name's absence is good for: services are made all the time.
	negativeTTL = 2 // seconds
	// udpSize is the largest UDP message that we send or ask for: what passes
	// unfragmented everywhere (DNS flag day 2020).
	udpSize = 1232 // bytes
)

// view is a Config in the form that answers are looked up in. It is never changed.
type view struct {
	upstreams []netip.AddrPort
	resolvers map[socketKey]*clients
	// ours are the networks whose reverse names are never asked of others.
	ours []netip.Prefix
}

type clients map[netip.Addr]client

type client struct {
	zones   []*zone
	forward bool
}

type zone struct {
	suffix string // "." and the lower-case name of the network
	names  map[string]addrs
	ptrs   map[netip.Addr]string
}

// addrs are a name's addresses by family.
type addrs struct{ v4, v6 []netip.Addr }

// newView builds the view of c. What is wrong in c is left out and told.
func newView(c Config) (*view, error) {
	v := &view{
		upstreams: c.Upstreams,
		resolvers: make(map[socketKey]*clients, len(c.Resolvers)),
		ours: []netip.Prefix{ // never of anybody's interest outside this host
			netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
			netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fe80::/10"),
		},
	}
	var errs []error
	seen := make(map[netip.Prefix]bool)
	for _, r := range c.Resolvers {
		key := socketKey{r.NetNS, r.Addr}
		if !r.Addr.IsValid() || v.resolvers[key] != nil {
			errs = append(errs, fmt.Errorf("resolver %s in %q: no address, or listed twice", r.Addr, r.NetNS))
			continue
		}
		zones := make(map[string]*zone, len(r.Zones))
		for _, z := range r.Zones {
			zones[z.ID] = newZone(z)
			if z.Subnet.IsValid() && !seen[z.Subnet] {
				seen[z.Subnet] = true
				v.ours = append(v.ours, z.Subnet.Masked())
			}
		}
		list := make(clients, len(r.Clients))
		for _, c := range r.Clients {
			to := client{forward: c.Forward}
			for _, id := range c.Zones {
				if z := zones[id]; z != nil {
					to.zones = append(to.zones, z)
				} else {
					errs = append(errs, fmt.Errorf("client %s in %q: zone %q is not listed", c.Addr, r.NetNS, id))
				}
			}
			list[c.Addr.Unmap()] = to
		}
		v.resolvers[key] = &list
	}
	return v, errors.Join(errs...)
}

func newZone(in Zone) *zone {
	z := &zone{
		suffix: "." + strings.ToLower(in.Name),
		names:  make(map[string]addrs, len(in.Records)),
		ptrs:   make(map[netip.Addr]string, len(in.PTRs)),
	}
	for _, r := range in.Records {
		name := strings.ToLower(strings.TrimSuffix(r.Name, "."))
		a := z.names[name]
		for _, addr := range r.Addrs {
			if addr = addr.Unmap(); addr.Is4() {
				a.v4 = append(a.v4[:len(a.v4):len(a.v4)], addr)
			} else {
				a.v6 = append(a.v6[:len(a.v6):len(a.v6)], addr)
			}
		}
		z.names[name] = a
	}
	for _, p := range in.PTRs {
		if _, known := z.ptrs[p.Addr.Unmap()]; !known {
			z.ptrs[p.Addr.Unmap()] = dns.Fqdn(p.Name)
		}
	}
	return z
}

// find looks a lower-case name without its last dot up, zone by zone.
func (c client) find(name string) (addrs, bool) {
	for _, z := range c.zones {
		if a, ok := z.names[name]; ok {
			return a, true
		}
		if short, ok := strings.CutSuffix(name, z.suffix); ok {
			if a, ok := z.names[short]; ok {
				return a, true
			}
		}
	}
	return addrs{}, false
}

// answer answers query from the view alone. With forward true the name is not
// ours, the client may ask others, and reply is only to be used if nobody can.
func (v *view) answer(at socketKey, from netip.Addr, query *dns.Msg) (reply *dns.Msg, forward bool) {
	reply = new(dns.Msg)
	reply.SetReply(query)
	reply.Authoritative = true
	reply.Compress = true
	if len(query.Question) != 1 {
		reply.Rcode = dns.RcodeFormatError
		return reply, false
	}
	list := v.resolvers[at]
	if list == nil {
		reply.Rcode = dns.RcodeRefused
		return reply, false
	}
	c, known := (*list)[from.Unmap()]
	q := query.Question[0]
	switch {
	case query.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply, false
	case !known, q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY:
		reply.Rcode = dns.RcodeRefused
		return reply, false
	}
	reply.RecursionAvailable = c.forward
	if opt := query.IsEdns0(); opt != nil {
		reply.SetEdns0(udpSize, false)
		if opt.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
			return reply, false
		}
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	if under, ok := reverse(name); ok {
		return reply, v.answerReverse(reply, c, under)
	}
	a, ok := c.find(name)
	if !ok {
		return reply, v.absent(reply, c)
	}
	reply.Answer = a.records(q)
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{absence()}
	}
	return reply, false
}

// absent makes reply say that there is no such name, and says whether to ask others.
func (v *view) absent(reply *dns.Msg, c client) (forward bool) {
	reply.Rcode = dns.RcodeNameError
	reply.Ns = []dns.RR{absence()}
	return c.forward && len(v.upstreams) > 0
}

func (v *view) answerReverse(reply *dns.Msg, c client, under netip.Prefix) (forward bool) {
	q := reply.Question[0]
	if under.IsSingleIP() {
		for _, z := range c.zones {
			name, ok := z.ptrs[under.Addr()]
			switch {
			case !ok:
				continue
			case q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY:
				reply.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name}}
			default:
				reply.Ns = []dns.RR{absence()}
			}
			return false
		}
	}
	for _, p := range v.ours {
		if p.Bits() <= under.Bits() && p.Overlaps(under) {
			c.forward = false
		}
	}
	return v.absent(reply, c)
}

// records returns the addresses that q asks for, in an order of its own for
// each answer, since many clients take the first.
func (a addrs) records(q dns.Question) []dns.RR {
	var out []dns.RR
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		for _, addr := range a.v4 {
			out = append(out, &dns.A{Hdr: header(q.Name, dns.TypeA), A: addr.AsSlice()})
		}
	}
	if q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY {
		for _, addr := range a.v6 {
			out = append(out, &dns.AAAA{Hdr: header(q.Name, dns.TypeAAAA), AAAA: addr.AsSlice()})
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: answerTTL}
}

// absence is the SOA record that says how long a negative answer holds (RFC 2308 §3).
func absence() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: negativeTTL},
		Ns:  "netd.", Mbox: "netd.", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: negativeTTL,
	}
}

// reverse reads a name below in-addr.arpa or ip6.arpa as the prefix that it
// stands for, a single address when it is whole.
func reverse(name string) (netip.Prefix, bool) {
	var labels []string
	addr := make([]byte, 16)
	bitsPerLabel, base := 8, 10
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		addr = addr[:4]
		labels = strings.Split(rest, ".")
	} else if rest, ok := strings.CutSuffix(name, ".ip6.arpa"); ok {
		labels = strings.Split(rest, ".")
		bitsPerLabel, base = 4, 16
	} else {
		return netip.Prefix{}, false
	}
	if len(labels)*bitsPerLabel > len(addr)*8 {
		return netip.Prefix{}, false
	}
	for i := range labels {
		label := labels[len(labels)-1-i]
		n, err := strconv.ParseUint(label, base, bitsPerLabel)
		if err != nil || label != strconv.FormatUint(n, base) {
			return netip.Prefix{}, false
		}
		bit := i * bitsPerLabel
		addr[bit/8] |= byte(n) << (8 - bitsPerLabel - bit%8)
	}
	ip, _ := netip.AddrFromSlice(addr)
	return netip.PrefixFrom(ip, len(labels)*bitsPerLabel), true
}

// Answer answers query as the resolver at addr in the namespace would for a
// client with the address from, without asking anybody else: with forward true
// it would ask the upstreams, and reply is what it says if there are none.
func (s *Server) Answer(netNS string, addr, from netip.Addr, query *dns.Msg) (reply *dns.Msg, forward bool) {
	return s.view.Load().answer(socketKey{netNS, addr}, from, query)
}

// Lookup returns what a name means to a client of the resolver, and false when
// the name is none of ours or the client is unknown.
func (s *Server) Lookup(netNS string, addr, from netip.Addr, name string) ([]netip.Addr, bool) {
	list := s.view.Load().resolvers[socketKey{netNS, addr}]
	if list == nil {
		return nil, false
	}
	a, ok := (*list)[from.Unmap()].find(strings.ToLower(strings.TrimSuffix(name, ".")))
	return append(append([]netip.Addr(nil), a.v4...), a.v6...), ok
}
