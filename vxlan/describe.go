package vxlan

import (
	"net/netip"
	"slices"
	"strings"
)

// describe is the inverse of objectsOf: the Config whose objects are all in s.
// Objects that belong to no complete part of a Config are left out.
func describe(s state) Config {
	routers := map[string]*Network{}
	for k := range s {
		if k.kind == kindSpace {
			routers[k.ns] = &Network{Router: k.ns}
		}
	}
	for k, value := range s {
		if n := routers[k.router]; n != nil && k.ns == k.router {
			n.note(k, value)
		}
	}
	var c Config
	for _, n := range routers {
		n.complete(s)
		c.Networks = append(c.Networks, *n)
	}
	slices.SortFunc(c.Networks, func(a, b Network) int {
		if a.VNI != b.VNI {
			return int(a.VNI) - int(b.VNI)
		}
		return strings.Compare(a.Router, b.Router)
	})
	return c
}

// note takes from an object in the router what it tells of the network. Peers,
// remotes and ports noted here are candidates; complete checks them.
func (n *Network) note(k key, value any) {
	switch v := value.(type) {
	case string:
		n.Return = n.Return || k.kind == kindReturn
	case link:
		switch {
		case k.link == vxlanName && v.hosted:
			n.VNI, n.MTU, n.Local, n.Port, n.MAC = v.vni, v.mtu, v.local, v.port, v.mac
		case k.link == uplinkName:
			n.Uplink = true
		case v.owner && v.peer != "":
			n.Ports = append(n.Ports, Port{Name: k.link, NetNS: v.peerNS, Iface: v.peer, Addr: v.addr})
		}
	case scope:
		if k.link == "lo" {
			n.Addrs = append(n.Addrs, k.dst.Addr())
		}
	case MAC:
		if k.link == vxlanName && k.dst.Addr() != returnAddr {
			n.Peers = append(n.Peers, Peer{VTEP: k.dst.Addr(), MAC: v})
		}
	case route:
		switch {
		case k.metric != 0 || k.table != 0 || v.foreign:
		case v.unreachable && k.dst.IsSingleIP():
			n.Alias = k.dst.Addr()
		case v.unreachable:
			n.Subnet = k.dst
		case v.link == vxlanName && k.dst.IsSingleIP():
			n.Remotes = append(n.Remotes, Remote{Addr: k.dst.Addr(), VTEP: v.via})
		}
	}
}

// complete drops the candidates that lack a part and sorts the others.
func (n *Network) complete(s state) {
	whole := func(add func(*builder)) bool {
		b := builder{state: state{}, router: n.Router}
		add(&b)
		for k, want := range b.state {
			have, there := s[k]
			if w, isLink := want.(link); isLink && there {
				h := have.(link)
				there = w.alike(h) && w.mtu == h.mtu && w.up == h.up
			} else if have != want {
				there = false
			}
			if !there {
				return false
			}
		}
		return true
	}
	n.Uplink = n.Uplink && whole(func(b *builder) { b.uplink(*n) })
	n.Peers = slices.DeleteFunc(n.Peers, func(p Peer) bool { return !whole(func(b *builder) { b.peer(*n, p) }) })
	n.Return = n.Return && whole(func(b *builder) { b.returns(*n) })
	n.Ports = slices.DeleteFunc(n.Ports, func(p Port) bool { return !whole(func(b *builder) { b.port(*n, p) }) })
	for i, p := range n.Ports {
		has := func(dst netip.Prefix) bool {
			r, ok := s[key{router: n.Router, kind: kindRoute, ns: p.NetNS, dst: dst}].(route)
			return ok && r.link == p.Iface
		}
		n.Ports[i].First, n.Ports[i].Default = has(host(routerAddr)), has(all)
	}
	n.Ports = emptyIsNil(n.Ports)
	n.Peers = emptyIsNil(n.Peers)
	slices.SortFunc(n.Addrs, netip.Addr.Compare)
	slices.SortFunc(n.Peers, func(a, b Peer) int { return a.VTEP.Compare(b.VTEP) })
	slices.SortFunc(n.Remotes, func(a, b Remote) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(n.Ports, func(a, b Port) int { return strings.Compare(a.Name, b.Name) })
}

func emptyIsNil[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}
