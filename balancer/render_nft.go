package balancer

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Sets, maps and chains of the nftables kind.
const (
	setVIPs     = "vips"     // VIP : jump to the chain that picks among as many backends as are ready
	setBackends = "backends" // VIP . number : the ready backend of that number
	// setMembers is VIP . backend for all that are not dead. No rule uses it: it
	// says whose connections may be in conntrack, and so, by what is missing from
	// the next configuration, whose have to be ended. It is changed last.
	setMembers = "members"

	chainRefuse = "refuse"
	chainPick   = "pick-" // and the number of ready backends
)

// nftSettings (kernel Documentation/networking/nf_conntrack-sysctl.rst). They
// exist once conntrack is loaded, at the latest with our first rule.
func nftSettings() map[string]string {
	return map[string]string{
		conntrackSettings + "tcp_timeout_established": strconv.Itoa(int(idleTCP.Seconds())),
		conntrackSettings + "udp_timeout_stream":      strconv.Itoa(int(idleUDP.Seconds())),
		// A segment outside the window that conntrack believes in would not be
		// translated, and our own stack would answer it with a reset.
		conntrackSettings + "tcp_be_liberal": "1",
	}
}

const conntrackSettings = "net/netfilter/nf_conntrack_"

// renderNFT: the first packet of a connection to a VIP jumps by one lookup to the
// chain for the number of ready backends, and that picks one of them at random;
// conntrack holds the connection to it from then on. There are as many chains as
// different numbers, not as services, and the rules never change: a configuration
// is in the elements alone, so an update moves only what differs.
func renderNFT(want *state, r Router) {
	vips := set{name: setVIPs, shape: shape{key: [2]field{fieldAddr}, data: fieldVerdict}}
	backends := set{name: setBackends, shape: shape{key: [2]field{fieldAddr, fieldMark}, data: fieldAddr}}
	members := set{name: setMembers, shape: shape{key: [2]field{fieldAddr, fieldAddr}}}
	picks := map[int]bool{}
	for _, s := range r.Services {
		ready := 0
		for _, b := range s.Backends {
			members.elems = append(members.elems, elem{key: [2]uint32{word(s.VIP), word(b.Addr)}})
			if b.State == Ready {
				backends.elems = append(backends.elems, elem{key: [2]uint32{word(s.VIP), uint32(ready)}, data: word(b.Addr)})
				ready++
			}
		}
		e := elem{key: [2]uint32{word(s.VIP)}, jump: chainRefuse}
		if ready > 0 {
			e.jump = pickName(ready)
			picks[ready] = true
		}
		vips.elems = append(vips.elems, e)
	}
	want.table = table{exists: true, sets: append(hairpinSets(r), vips, backends, members), chains: nftChains()}
	for n := range picks {
		want.table.chains = append(want.table.chains, pickChain(n))
	}
	sortTable(&want.table)
}

func nftChains() []chain {
	choose := func(comment string) rule {
		return newRule("ip daddr vmap @vips", comment, loadAddr(offsetDst, reg), verdictOf(setVIPs))
	}
	return []chain{
		{"balance", base{kind: "nat", hook: unix.NF_INET_PRE_ROUTING, priority: priorityDstNAT}, []rule{
			newRule("meta l4proto icmp accept", "the router answers a ping to a VIP itself",
				protocol(unix.IPPROTO_ICMP), verdict(expr.VerdictAccept, "")),
			choose("a new connection to a VIP"),
			choose("again: a change between the two lookups of the first time"),
		}},
		{chainRefuse, base{}, []rule{
			newRule("meta l4proto tcp reject with tcp reset", "",
				protocol(unix.IPPROTO_TCP), reject(unix.NFT_REJECT_TCP_RST, 0)),
			newRule("reject", "", reject(unix.NFT_REJECT_ICMP_UNREACH, icmpPortUnreachable)),
		}},
		{"hairpin", base{kind: "nat", hook: unix.NF_INET_POST_ROUTING, priority: prioritySrcNAT}, []rule{
			newRule("ct status dnat snat to ip saddr . ip daddr map @self", "a container balanced to itself sees the alias",
				balanced(), loadAddr(offsetSrc, reg), loadAddr(offsetDst, regNext), viaMap(setSelf), nat(expr.NATTypeSourceNAT)),
		}},
		{"stray", base{kind: "filter", hook: unix.NF_INET_FORWARD, priority: priorityFilter}, []rule{
			newRule("ip daddr @alias drop", "an answer to the alias whose connection is gone must not leave",
				loadAddr(offsetDst, reg), inSet(setAlias), verdict(expr.VerdictDrop, "")),
		}},
	}
}

const icmpPortUnreachable = 3 // RFC 792: code of destination unreachable

// pickChain picks one of n backends. A refused packet is dropped before conntrack
// confirms it, so that no entry keeps the next one from being balanced.
func pickChain(n int) chain {
	index := []expr.Any{&expr.Numgen{Register: regNext, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}}
	return chain{pickName(n), base{}, []rule{
		newRule("tcp flags & (fin | syn | rst | ack) != syn goto refuse", "not the start of a connection: its backend is gone",
			notOpening(), verdict(expr.VerdictGoto, chainRefuse)),
		newRule(fmt.Sprintf("dnat to ip daddr . numgen random mod %d map @backends", n), "",
			loadAddr(offsetDst, reg), index, viaMap(setBackends), nat(expr.NATTypeDestNAT)),
	}}
}

func pickName(n int) string { return chainPick + strconv.Itoa(n) }

// isPick reports whether the chain comes and goes with the numbers of backends.
func isPick(name string) bool { return strings.HasPrefix(name, chainPick) }

func decodeNFT(have state) []Service {
	var services []Service
	ready := map[[2]uint32]bool{}
	for _, e := range have.table.elems(setBackends) {
		ready[[2]uint32{e.key[0], e.data}] = true
	}
	backends := map[uint32][]Backend{}
	for _, e := range have.table.elems(setMembers) {
		b := Backend{Addr: addr(e.key[1]), State: Draining}
		if ready[e.key] {
			b.State = Ready
		}
		backends[e.key[0]] = append(backends[e.key[0]], b)
	}
	for _, e := range have.table.elems(setVIPs) {
		services = append(services, Service{VIP: addr(e.key[0]), Backends: backends[e.key[0]]})
	}
	return services
}
