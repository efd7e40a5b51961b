package balancer

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// state is what one router's kernel holds, or shall hold, for the balancer. The
// two renderers differ in what they put into it; reading, planning and applying
// are the same for both, so each also removes what the other left.
type state struct {
	// settings are sysctl values by key, with slashes. Wanted are those that
	// matter to the kind; of the others nothing is said.
	settings map[string]string
	// timeouts are IPVS's; zero where they do not matter.
	timeouts timeouts
	virtuals []virtual // IPVS services, sorted by key
	table    table
	// seed differs between nodes and gives the order in which a service's new
	// destinations are added. Round robin starts with the last one added: if all
	// nodes started with the same one, it would get the first request of each.
	seed uint64
}

type timeouts struct{ tcp, tcpFin, udp time.Duration }

// virtual is one IPVS service.
type virtual struct {
	key       virtualKey
	scheduler string
	flags     uint32 // IP_VS_SVC_F_*, without the kernel's own "hashed"
	dests     []dest // sorted by address
}

// virtualKey is what makes an IPVS service unique. Ours have only a mark; the
// rest is there to see, name and remove services that are not.
type virtualKey struct {
	mark     uint32
	family   uint16
	protocol uint16
	addr     netip.Addr
	port     uint16
}

func (k virtualKey) compare(o virtualKey) int {
	return cmp.Or(cmp.Compare(k.mark, o.mark), cmp.Compare(k.family, o.family),
		cmp.Compare(k.protocol, o.protocol), k.addr.Compare(o.addr), cmp.Compare(k.port, o.port))
}

// dest is one IPVS destination.
type dest struct {
	addr   netip.Addr
	port   uint16 // 0: the port that the client called
	weight int    // 0: no new connections
	method uint32 // IP_VS_CONN_F_MASQ is 0
}

func (d dest) compare(o dest) int {
	return cmp.Or(d.addr.Compare(o.addr), cmp.Compare(d.port, o.port))
}

// idleTCP is how long a silent TCP connection is kept. It must be longer than
// the 2 h 11 min 15 s after which a peer with the default keepalive settings has
// either answered or given up (tcp(7)): such connections then live for ever.
const idleTCP = 24 * time.Hour

// idleUDP is how long a silent UDP flow keeps its backend: RFC 4787, REQ-5.
const idleUDP = 2 * time.Minute

// render computes what the router's kernel shall hold. The router must be
// normal and checked.
func render(kind Kind, r Router) state {
	if r.empty() {
		return state{}
	}
	want := state{seed: seed(r), settings: settingsOf(kind)}
	if kind == IPVS {
		renderIPVS(&want, r)
	} else {
		renderNFT(&want, r)
	}
	return want
}

// settingsOf returns the sysctl values that the kind needs in each router.
func settingsOf(kind Kind) map[string]string {
	settings := nftSettings()
	if kind == IPVS {
		settings = ipvsSettings()
	}
	// Port unreachable is how UDP clients learn that nobody serves them. By
	// default each client would get only one a second (icmp(7)).
	settings["net/ipv4/icmp_ratelimit"] = "0"
	return settings
}

func seed(r Router) uint64 {
	h := fnv.New64a()
	h.Write([]byte(r.NetNS))
	for _, local := range r.Locals {
		h.Write(local.AsSlice())
	}
	return h.Sum64()
}

// decode is the way back from what the kernel holds to the model.
func decode(kind Kind, path string, have state) Router {
	r := Router{NetNS: path}
	for _, e := range have.table.elems(setAlias) {
		r.Alias = addr(e.key[0])
	}
	for _, e := range have.table.elems(setSelf) {
		r.Locals = append(r.Locals, addr(e.key[0]))
	}
	if kind == IPVS {
		r.Services = decodeIPVS(have)
	} else {
		r.Services = decodeNFT(have)
	}
	return r
}

// table is our nftables table.
type table struct {
	exists bool
	flags  uint32  // any (dormant, owned by a process) means that it is not as we made it
	chains []chain // sorted by name
	sets   []set   // sorted by name
}

type chain struct {
	name  string
	base  base
	rules []rule
}

// base is how a chain hangs in the packet path; zero for one that is jumped to.
type base struct {
	kind     string // filter, nat
	hook     uint32 // NF_INET_*
	priority int32
	drop     bool // the policy is drop
}

// String is as in nft(8).
func (b base) String() string {
	policy := "accept"
	if b.drop {
		policy = "drop"
	}
	hooks := []string{"prerouting", "input", "forward", "output", "postrouting"}
	return fmt.Sprintf("{ type %s hook %s priority %d; policy %s; }", b.kind, hooks[b.hook], b.priority, policy)
}

// set is an nftables set or map.
type set struct {
	name  string
	shape shape
	elems []elem // sorted by key
}

// shape is the type of a set's elements: one or two key words, and for a map one
// word or a verdict. alien is any shape that is not one of ours.
type shape struct {
	key   [2]field
	data  field
	alien bool
}

// field is the type of one word, by nft's name for it.
type field string

const (
	fieldAddr    field = "ipv4_addr"
	fieldMark    field = "mark" // a number in the host's byte order
	fieldVerdict field = "verdict"
)

// kind is nft's word for the object: set or map.
func (s shape) kind() string {
	if s.data != "" {
		return "map"
	}
	return "set"
}

// String is as in nft(8).
func (s shape) String() string {
	text := string(s.key[0])
	if s.key[1] != "" {
		text += " . " + string(s.key[1])
	}
	if s.data != "" {
		text += " : " + string(s.data)
	}
	return text
}

// elem is one element. Addresses are words as of word(); jump names the chain of
// a verdict.
type elem struct {
	key  [2]uint32
	data uint32
	jump string
}

func (e elem) compare(o elem) int {
	return cmp.Or(cmp.Compare(e.key[0], o.key[0]), cmp.Compare(e.key[1], o.key[1]))
}

// text formats e as an element of such a set.
func (e elem) text(s shape) string {
	text := s.key[0].text(e.key[0])
	if s.key[1] != "" {
		text += " . " + s.key[1].text(e.key[1])
	}
	switch s.data {
	case "":
	case fieldVerdict:
		text += " : jump " + e.jump
	default:
		text += " : " + s.data.text(e.data)
	}
	return text
}

func (f field) text(word uint32) string {
	if f == fieldMark {
		return "0x" + strings.ToLower(strconv.FormatUint(uint64(word), 16))
	}
	return addr(word).String()
}

func (t table) set(name string) (set, bool) {
	i := slices.IndexFunc(t.sets, func(s set) bool { return s.name == name })
	if i < 0 {
		return set{}, false
	}
	return t.sets[i], true
}

func (t table) elems(name string) []elem {
	s, _ := t.set(name)
	return s.elems
}

func (s set) compare(o set) int     { return cmp.Compare(s.name, o.name) }
func (c chain) compare(o chain) int { return cmp.Compare(c.name, o.name) }

func sortTable(t *table) {
	slices.SortFunc(t.chains, chain.compare)
	slices.SortFunc(t.sets, set.compare)
	for _, s := range t.sets {
		slices.SortFunc(s.elems, elem.compare)
	}
}
