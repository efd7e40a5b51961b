package vxlan

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// protocol marks our routes where they are among others': in the host's and the
// containers' namespaces.
const protocol netlink.RouteProtocol = 78

// reader fills a state from the kernel.
type reader struct {
	o     *Overlay
	state state
	host  *netns.Handle
	// uplinks are the host's links nd-up*, by index; a link leaves the map when
	// the router at its other end is found.
	uplinks map[int]netlink.Link
}

// read returns the overlay as it is, with the routers that could not be read and
// why. An error is one of the host's namespace, and then there is no state.
func (o *Overlay) read() (state, map[string]error, error) {
	r := reader{o: o, state: state{}, uplinks: map[int]netlink.Link{}}
	broken := map[string]error{}
	names, err := netns.List(o.dir)
	if err != nil {
		return nil, broken, fmt.Errorf("read overlay: %w", err)
	}
	if r.host, err = netns.Open(o.path("")); err != nil {
		return nil, broken, fmt.Errorf("read overlay: %w", err)
	}
	defer r.host.Close()
	links, err := r.host.LinkList()
	if err != nil {
		return nil, broken, fmt.Errorf("read overlay: list links of the host: %w", err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, uplinkPrefix) {
			r.uplinks[l.Attrs().Index] = l
		}
	}
	for _, name := range names {
		if !strings.HasPrefix(name, routerPrefix) {
			continue
		}
		path := filepath.Join(o.dir, name)
		if err := r.router(path); err != nil {
			broken[path] = err
		}
	}
	if len(broken) == 0 { // else a stray uplink may be that of a router that could not be read
		for _, l := range r.uplinks {
			r.state[key{kind: kindLink, link: l.Attrs().Name}] = linkOf(l)
		}
	}
	r.sysctls("", "", map[string]string{forwardV4: ""})
	if value := o.readEgress(); value != "" {
		r.state[key{kind: kindEgress}] = value
	}
	return r.state, broken, nil
}

// router reads one router's namespace and what is at the other ends of its links.
func (r *reader) router(path string) error {
	h, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer h.Close()
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	r.state[key{router: path, kind: kindSpace, ns: path}] = nil
	s := space{reader: r, router: path, ns: path, h: h, names: map[int]string{}}
	r.sysctls(path, "", routerSysctls(false))
	r.sysctls(path, "", returnSysctls())
	for _, l := range links {
		name := l.Attrs().Name
		s.names[l.Attrs().Index] = name
		value := linkOf(l)
		switch {
		case value.kind == "vxlan":
			value.hosted = sameSpace(h, l, r.o.host)
		case name == uplinkName && value.kind == "veth":
			err = r.uplink(&s, l, file, &value)
		case value.kind == "veth":
			err = r.port(&s, l, &value)
		}
		if err != nil {
			return err
		}
		r.state[s.key(kindLink, name)] = value
		r.sysctls(path, name, linkSysctls(name))
	}
	// A table whose device has gone does nothing, although some kernels keep it.
	if value := r.o.readReturn(path); value != "" && slices.Contains(slices.Collect(maps.Values(s.names)), vxlanName) {
		r.state[s.key(kindReturn, vxlanName)] = value
	}
	return s.all()
}

// uplink finds the host's end of a router's uplink and reads what hangs on it.
func (r *reader) uplink(s *space, inner netlink.Link, router *os.File, value *link) error {
	outer := r.uplinks[inner.Attrs().ParentIndex]
	if outer == nil || outer.Attrs().ParentIndex != inner.Attrs().Index || !sameSpace(r.host, outer, router) {
		return nil
	}
	delete(r.uplinks, outer.Attrs().Index)
	value.peer = outer.Attrs().Name
	host := linkOf(outer)
	host.owner, host.peerNS, host.peer = true, s.router, uplinkName
	r.state[key{router: s.router, kind: kindLink, link: outer.Attrs().Name}] = host
	hs := space{reader: r, router: s.router, ns: "", h: r.host, names: map[int]string{outer.Attrs().Index: outer.Attrs().Name}}
	return hs.all()
}

// port finds the container's end of a veth by the note on it. Where the two do
// not fit together the link is left without a peer, and so is no port.
func (r *reader) port(s *space, l netlink.Link, value *link) error {
	value.owner = true
	netNS, iface, addr := parseAlias(l.Attrs().Alias)
	if iface == "" {
		return nil
	}
	file, err := os.Open(netNS)
	if err != nil {
		return nil // the container is gone
	}
	defer file.Close()
	if !netns.Exists(netNS) || !sameSpace(s.h, l, file) {
		return nil
	}
	h, err := netns.Open(netNS)
	if err != nil {
		return fmt.Errorf("read port %q: %w", l.Attrs().Name, err)
	}
	defer h.Close()
	inner, err := h.LinkByName(iface)
	if err != nil || inner.Attrs().Index != l.Attrs().ParentIndex || inner.Attrs().ParentIndex != l.Attrs().Index {
		return nil
	}
	value.peerNS, value.peer, value.addr = netNS, iface, addr
	end := linkOf(inner)
	end.peerNS, end.peer = s.router, l.Attrs().Name
	cs := space{reader: r, router: s.router, ns: netNS, h: h, addr: addr, names: map[int]string{inner.Attrs().Index: iface}}
	r.state[cs.key(kindLink, iface)] = end
	if err := cs.all(); err != nil {
		return fmt.Errorf("read port %q: %w", l.Attrs().Name, err)
	}
	return nil
}

// space reads the objects of one namespace, as far as they hang on given links.
type space struct {
	*reader
	router, ns string
	h          *netns.Handle
	names      map[int]string // index → name of the links that count
	// addr is set in a container: only this address and no neighbour counts, as
	// others are the container's own affair.
	addr netip.Prefix
}

func (s *space) key(k kind, link string) key {
	return key{router: s.router, kind: k, ns: s.ns, link: link}
}

func (s *space) keyTo(k kind, link string, dst netip.Prefix) key {
	return key{router: s.router, kind: k, ns: s.ns, link: link, dst: dst}
}

// all reads addresses, neighbours, FDB entries and routes.
func (s *space) all() error {
	addrs, err := s.h.AddrList(nil, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		name, ok := s.names[a.LinkIndex]
		prefix := prefixOf(a.IPNet)
		if ok && !prefix.Addr().IsLoopback() && (!s.addr.IsValid() || s.addr == prefix) {
			s.state[s.keyTo(kindAddr, name, prefix)] = scope(a.Scope)
		}
	}
	if err := s.neighbours(); err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	routes, err := s.h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for i := range routes {
		s.route(&routes[i])
	}
	if s.ns != s.router {
		return nil
	}
	returns, err := s.h.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: returnRoutes}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", returnRoutes, err)
	}
	for i := range returns {
		s.route(&returns[i])
	}
	return s.readRule()
}

func (s *space) neighbours() error {
	families := []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE}
	switch {
	case s.addr.IsValid():
		return nil
	case s.ns != s.router:
		families = families[:1]
	}
	for _, family := range families {
		neighs, err := s.h.NeighList(0, family)
		if err != nil {
			return err
		}
		for _, n := range neighs {
			name, ok := s.names[n.LinkIndex]
			if ok && n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
				s.neighbour(name, n)
			}
		}
	}
	return nil
}

func (s *space) neighbour(link string, n netlink.Neigh) {
	mac := MAC(n.HardwareAddr)
	dst, _ := netip.AddrFromSlice(n.IP)
	dst = dst.Unmap()
	switch {
	case n.Family == unix.AF_BRIDGE && link == vxlanName:
		s.state[key{router: s.router, kind: kindFDB, ns: s.ns, link: link, mac: mac}] = dst
	case n.Family != unix.AF_BRIDGE && dst.IsValid() && !dst.IsMulticast():
		s.state[s.keyTo(kindNeigh, link, host(dst))] = mac
	}
}

// route notes a route of ours or, in the router, any that the kernel did not
// make by itself: there it can only stand in the way.
func (s *space) route(r *netlink.Route) {
	name, known := s.names[r.LinkIndex]
	if s.ns == s.router && r.Protocol == unix.RTPROT_KERNEL || s.ns != s.router && (!known || r.Protocol != protocol) {
		return
	}
	value := route{link: name, scope: scope(r.Scope), unreachable: r.Type == unix.RTN_UNREACHABLE}
	if via, isVia := r.Via.(*netlink.Via); isVia {
		value.via, _ = netip.AddrFromSlice(via.Addr)
	} else if gw, isGw := netip.AddrFromSlice(r.Gw); isGw {
		value.via = gw.Unmap()
	}
	onlink := r.Flags&int(netlink.FLAG_ONLINK) != 0
	value.foreign = r.Type != unix.RTN_UNICAST && !value.unreachable || value.via.IsValid() != onlink ||
		r.Protocol != protocol || r.MTU != 0 || r.Tos != 0 || r.Src != nil || r.Encap != nil || len(r.MultiPath) > 0
	k := s.keyTo(kindRoute, "", all)
	if r.Dst != nil {
		k.dst = prefixOf(r.Dst)
	}
	k.metric = r.Priority
	if r.Table != unix.RT_TABLE_MAIN {
		k.table = r.Table
	}
	if _, second := s.state[k]; !second { // the kernel lists the effective one first
		s.state[k] = value
	}
}

// sysctls reads the settings named. One that the kernel does not have is left
// out, except that a kernel without IPv6 has it disabled.
func (r *reader) sysctls(ns, link string, names map[string]string) {
	if len(names) == 0 {
		return
	}
	_ = netns.Do(r.o.path(ns), func() error {
		for name := range names {
			value, err := netns.GetSysctl("", name)
			if err != nil && name == disableV6 {
				value, err = "1", nil
			}
			if err == nil {
				r.state[key{router: ns, kind: kindSysctl, ns: ns, link: link, name: name}] = value
			}
		}
		return nil
	})
}

// linkOf is the part of a link that can be told without looking elsewhere.
func linkOf(l netlink.Link) link {
	a := l.Attrs()
	value := link{kind: l.Type(), mtu: a.MTU, up: a.Flags&net.FlagUp != 0}
	if len(a.HardwareAddr) == 6 {
		value.mac = MAC(a.HardwareAddr)
	}
	if a.Flags&net.FlagLoopback != 0 {
		value.kind, value.mac = "loopback", MAC{}
	}
	if v, ok := l.(*netlink.Vxlan); ok && !v.Learning && !v.Proxy && !v.L2miss && !v.L3miss && !v.FlowBased && !v.GBP && v.Group == nil {
		value.vni, value.port = uint32(v.VxlanId), uint16(v.Port)
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		value.local = local.Unmap()
	}
	return value
}

// sameSpace reports whether the other end of a link is in the namespace. For a
// VXLAN device the other end is its UDP socket.
func sameSpace(h *netns.Handle, l netlink.Link, ns *os.File) bool {
	id, err := h.GetNetNsIdByFd(int(ns.Fd()))
	return err == nil && id >= 0 && id == l.Attrs().NetNsID
}

// formatAlias is the note on the router's end of a port: it says where the other
// end is, which the kernel tells only as a number.
func formatAlias(l link) string { return fmt.Sprintf("%s %s %s", l.peerNS, l.peer, l.addr) }

func parseAlias(alias string) (netNS, iface string, addr netip.Prefix) {
	fields := strings.Fields(alias)
	if len(fields) != 3 {
		return "", "", netip.Prefix{}
	}
	addr, err := netip.ParsePrefix(fields[2])
	if err != nil {
		return "", "", netip.Prefix{}
	}
	return fields[0], fields[1], addr
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
