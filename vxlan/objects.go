package vxlan

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A state is the overlay as a set of kernel objects, each a key and a comparable
// value. The kernel is read into one, a Config is turned into another, and plan
// compares the two.
type state map[key]any

// kind tells what an object is, and the type of its value.
type kind uint8

const (
	kindSpace  kind = iota // a router's namespace; value nil
	kindEgress             // the nft table netd-egress; value string, see egress.go
	kindLink               // value link
	kindSysctl             // value string
	kindAddr               // value scope
	kindFDB                // value netip.Addr, the VTEP
	kindNeigh              // value MAC
	kindRoute              // value route
	kindRule               // value ipRule, see return.go
	kindReturn             // the nft tables netd-return; value string, see return.go
)

// key names an object.
type key struct {
	// router is the network that the object belongs to, wherever it is; "" for
	// what all uplinks share.
	router string
	kind   kind
	ns     string // path of the namespace that it is in; "" is the host's
	link   string // the link that it is, or that it ends with
	name   string // sysctl, with slashes
	dst    netip.Prefix
	mac    MAC
	metric int
	table  int // of a route; 0 is the main one
}

func (k key) compare(other key) int {
	return cmp.Or(
		cmp.Compare(k.kind, other.kind), strings.Compare(k.router, other.router),
		strings.Compare(k.ns, other.ns), strings.Compare(k.link, other.link),
		strings.Compare(k.name, other.name), k.dst.Addr().Compare(other.dst.Addr()),
		cmp.Compare(k.dst.Bits(), other.dst.Bits()), slices.Compare(k.mac[:], other.mac[:]),
		cmp.Compare(k.metric, other.metric), cmp.Compare(k.table, other.table),
	)
}

// link is the value of a link. Of a veth pair one end is the owner: the pair is
// made there, and both ends name each other.
type link struct {
	kind string // as in ip link: vxlan, veth; loopback is never made or removed
	mtu  int
	up   bool
	mac  MAC // zero where any will do

	vni    uint32
	local  netip.Addr
	port   uint16
	hosted bool // its UDP socket is in the host's namespace

	owner   bool
	peerNS  string
	peer    string // "" when the kernel's answer did not fit together
	peerMAC MAC
	addr    netip.Prefix // of the container, noted on the router's end
}

// route is the value of a route.
type route struct {
	unreachable bool
	link        string
	via         netip.Addr // always onlink
	scope       scope
	foreign     bool // has something that no route of ours has
}

// scope of an address or route, as rtnetlink numbers it.
type scope uint8

const (
	scopeUniverse scope = 0
	scopeLink     scope = 253
)

const (
	vxlanName    = "vx"
	uplinkName   = "up"
	uplinkPrefix = "nd-up"
	sysctlV4     = "net/ipv4/conf/"
	forwardV4    = "net/ipv4/ip_forward"
	disableV6    = "net/ipv6/conf/all/disable_ipv6"
)

// The addresses below are the same in every network: each lies between two ends
// that nobody else sees.
var (
	// routerAddr is the routers' shared address towards their containers.
	routerAddr = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	// hostAddr and upAddr are the host's and the router's end of an uplink. They
	// are outside of 169.254.64.0/18, where the hairpin aliases are.
	hostAddr = netip.AddrFrom4([4]byte{169, 254, 2, 1})
	upAddr   = netip.AddrFrom4([4]byte{169, 254, 2, 2})
	// hostMAC and upMAC let both ends have permanent neighbours: ARP would fail
	// where the host has rp_filter on, since upAddr has no route of its own.
	hostMAC = MAC{0x02, 'n', 'e', 't', 'd', 0x01}
	upMAC   = MAC{0x02, 'n', 'e', 't', 'd', 0x02}
	all     = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
)

// UplinkName is the name of the host's end of a network's uplink.
func UplinkName(vni uint32) string { return uplinkPrefix + strconv.FormatUint(uint64(vni), 10) }

// objectsOf returns the objects of which the kernel shall have these and no
// others. Of two that contradict each other the first is kept.
func objectsOf(c Config) (state, error) {
	b := builder{state: state{}}
	for _, n := range c.Networks {
		b.network(n)
	}
	b.egress(c.Networks)
	return b.state, errors.Join(b.errs...)
}

// builder collects objects of one network at a time.
type builder struct {
	state  state
	router string
	errs   []error
}

func (b *builder) add(k key, value any) {
	k.router = b.router
	if old, taken := b.state[k]; taken && old != value {
		b.errs = append(b.errs, fmt.Errorf("overlay router %q: contradiction: %s and %s", b.router,
			op{verbSet, k, old, nil}, op{verbSet, k, value, nil}))
		return
	}
	b.state[k] = value
}

func (b *builder) network(n Network) {
	b.router = n.Router
	b.add(key{kind: kindSpace, ns: n.Router}, nil)
	for name, value := range routerSysctls(n.Local.Is6()) {
		b.add(key{kind: kindSysctl, ns: n.Router, name: name}, value)
	}
	b.link(n.Router, "lo", link{kind: "loopback", mtu: loopbackMTU, up: true})
	b.link(n.Router, vxlanName, link{kind: "vxlan", mtu: n.MTU, up: true, mac: n.MAC,
		vni: n.VNI, local: n.Local, port: n.Port, hosted: true})
	for _, addr := range n.Addrs {
		s := scopeUniverse
		if !n.Subnet.Contains(addr) {
			s = scopeLink // so that the kernel never picks it as a source
		}
		b.addr(n.Router, "lo", host(addr), s)
	}
	// An address that no container has ends here, not in a circle of router and
	// host (or, of an internal network, with a misleading answer).
	b.route(n.Router, n.Subnet, route{unreachable: true})
	if n.Alias.IsValid() {
		b.route(n.Router, host(n.Alias), route{unreachable: true})
	}
	for _, p := range n.Ports {
		b.port(n, p)
	}
	for _, p := range n.Peers {
		b.peer(n, p)
	}
	for _, r := range n.Remotes {
		b.remote(n, r)
	}
	if n.Uplink {
		b.uplink(n)
	}
	if n.Return {
		b.returns(n)
	}
}

// loopbackMTU is the kernel's own (drivers/net/loopback.c).
const loopbackMTU = 65536

func (b *builder) port(n Network, p Port) {
	b.link(n.Router, p.Name, link{kind: "veth", mtu: n.MTU, up: true,
		owner: true, peerNS: p.NetNS, peer: p.Iface, addr: p.Addr})
	b.link(p.NetNS, p.Iface, link{kind: "veth", mtu: n.MTU, up: true, peerNS: n.Router, peer: p.Name})
	b.addr(p.NetNS, p.Iface, p.Addr, scopeUniverse)
	b.route(n.Router, host(p.Addr.Addr()), route{link: p.Name, scope: scopeLink})
	if p.First {
		b.route(p.NetNS, host(routerAddr), route{link: p.Iface, scope: scopeLink})
	}
	if n.Alias.IsValid() {
		b.route(p.NetNS, host(n.Alias), route{link: p.Iface, via: routerAddr})
	}
	if p.Default {
		b.route(p.NetNS, all, route{link: p.Iface, via: routerAddr})
	}
}

func (b *builder) peer(n Network, p Peer) {
	b.add(key{kind: kindFDB, ns: n.Router, link: vxlanName, mac: p.MAC}, p.VTEP)
	b.neigh(n.Router, vxlanName, p.VTEP, p.MAC)
}

func (b *builder) remote(n Network, r Remote) {
	b.route(n.Router, host(r.Addr), route{link: vxlanName, via: r.VTEP})
}

func (b *builder) uplink(n Network) {
	outer := UplinkName(n.VNI)
	b.link("", outer, link{kind: "veth", mtu: n.MTU, up: true, mac: hostMAC,
		owner: true, peerNS: n.Router, peer: uplinkName, peerMAC: upMAC})
	b.link(n.Router, uplinkName, link{kind: "veth", mtu: n.MTU, up: true, mac: upMAC, peer: outer})
	b.addr("", outer, host(hostAddr), scopeLink)
	b.addr(n.Router, uplinkName, host(upAddr), scopeLink)
	b.neigh("", outer, upAddr, upMAC)
	b.neigh(n.Router, uplinkName, hostAddr, hostMAC)
	b.route("", n.Subnet, route{link: outer, via: upAddr})
	b.route(n.Router, all, route{link: uplinkName, via: hostAddr})
}

// egress adds what all uplinks share. The table knows the data-path port of
// every network, so that it can keep containers from forging overlay packets.
func (b *builder) egress(networks []Network) {
	b.router = ""
	var ports []uint16
	uplinks := false
	for _, n := range networks {
		ports = append(ports, n.Port)
		uplinks = uplinks || n.Uplink
	}
	if !uplinks {
		return
	}
	slices.Sort(ports)
	b.add(key{kind: kindSysctl, name: forwardV4}, "1")
	b.add(key{kind: kindEgress}, formatPorts(slices.Compact(ports)))
}

func (b *builder) link(ns, name string, l link) {
	b.add(key{kind: kindLink, ns: ns, link: name}, l)
	if ns == b.router {
		for sysctl, value := range linkSysctls(name) {
			b.add(key{kind: kindSysctl, ns: ns, link: name, name: sysctl}, value)
		}
	}
}

func (b *builder) addr(ns, link string, prefix netip.Prefix, s scope) {
	b.add(key{kind: kindAddr, ns: ns, link: link, dst: prefix}, s)
}

func (b *builder) neigh(ns, link string, addr netip.Addr, mac MAC) {
	b.add(key{kind: kindNeigh, ns: ns, link: link, dst: host(addr)}, mac)
}

func (b *builder) route(ns string, dst netip.Prefix, r route) {
	b.add(key{kind: kindRoute, ns: ns, dst: dst}, r)
}

// routerSysctls are set before any link is made, as links copy "default". A new
// namespace copies its IPv4 settings from the machine's first one
// (net.core.devconf_inherit_init_net), so that what matters must be set.
//
// The effective rp_filter is the higher of all and the link's own: 0 here, so
// that each link decides. Redirects and accept_local are the OR of the two.
func routerSysctls(v6Underlay bool) map[string]string {
	settings := map[string]string{forwardV4: "1", disableV6: "1"}
	if v6Underlay {
		settings[disableV6] = "0" // a neighbour by IPv6 needs it on the VXLAN device
	}
	for _, which := range []string{"all", "default"} {
		for _, name := range []string{"rp_filter", "send_redirects", "accept_redirects", "accept_local",
			"arp_ignore", "arp_announce", "arp_filter", "proxy_arp", "src_valid_mark", "route_localnet"} {
			settings[sysctlV4+which+"/"+name] = "0"
		}
	}
	return settings
}

// linkSysctls are those of a link in the router, by its name. A container may
// send from its own address only (strict rp_filter: its /32 route is on its
// veth) and has its neighbours' addresses answered by the router. Elsewhere
// accept_local spares a second route lookup per packet (kernel
// net/ipv4/fib_frontend.c, fib_validate_source).
func linkSysctls(name string) map[string]string {
	conf := sysctlV4 + name + "/"
	switch name {
	case "lo":
		return nil
	case vxlanName, uplinkName:
		return map[string]string{conf + "rp_filter": "0", conf + "accept_local": "1", conf + "send_redirects": "0"}
	default:
		return map[string]string{conf + "rp_filter": "1", conf + "accept_local": "0", conf + "send_redirects": "0",
			conf + "proxy_arp": "1", "net/ipv4/neigh/" + name + "/proxy_delay": "0"}
	}
}

// host is the prefix of an address alone.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
