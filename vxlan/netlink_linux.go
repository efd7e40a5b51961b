package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// session does ops, with one netlink handle per namespace.
type session struct {
	o       *Overlay
	handles map[string]*netns.Handle
	index   map[end]int
	failed  map[end]bool // {ns, ""} is a namespace
}

func newSession(o *Overlay) *session {
	return &session{o: o, handles: map[string]*netns.Handle{}, index: map[end]int{}, failed: map[end]bool{}}
}

func (s *session) close() {
	for _, h := range s.handles {
		h.Close()
	}
}

// fail notes what cannot be there after a failed op, so that what hangs on it is
// not tried: one cause, one error.
func (s *session) fail(o op) {
	switch l, _ := o.value.(link); {
	case o.key.kind == kindSpace && o.verb == verbAdd:
		s.failed[end{o.key.ns, ""}] = true
	case o.key.kind == kindLink && o.verb == verbAdd:
		s.failed[end{o.key.ns, o.key.link}] = true
		s.failed[end{l.peerNS, l.peer}] = l.peer != ""
	}
}

func (s *session) blocked(o op) bool {
	if s.failed[end{o.key.ns, ""}] || s.failed[end{o.key.ns, o.key.link}] {
		return true
	}
	switch v := o.value.(type) {
	case route:
		return s.failed[end{o.key.ns, v.link}]
	case link:
		return s.failed[end{v.peerNS, ""}]
	}
	return false
}

func (s *session) handle(ns string) (*netns.Handle, error) {
	if h := s.handles[ns]; h != nil {
		return h, nil
	}
	h, err := netns.Open(s.o.path(ns))
	if err != nil {
		return nil, err
	}
	s.handles[ns] = h
	return h, nil
}

// on returns a namespace's handle and a link's index in it.
func (s *session) on(ns, name string) (*netns.Handle, int, error) {
	h, err := s.handle(ns)
	if err != nil || name == "" {
		return h, 0, err
	}
	if index := s.index[end{ns, name}]; index != 0 {
		return h, index, nil
	}
	l, err := h.LinkByName(name)
	if err != nil {
		return nil, 0, err
	}
	s.index[end{ns, name}] = l.Attrs().Index
	return h, l.Attrs().Index, nil
}

func (s *session) do(o op) error {
	switch o.key.kind {
	case kindSpace:
		return s.doSpace(o)
	case kindEgress:
		return s.o.setEgress(o)
	case kindSysctl:
		return netns.SetSysctl(s.o.path(o.key.ns), o.key.name, o.value.(string))
	case kindLink:
		return s.doLink(o)
	case kindReturn:
		return s.o.setReturn(o)
	}
	name := o.key.link
	if r, ok := o.either().(route); ok {
		name = r.link
	}
	h, index, err := s.on(o.key.ns, name)
	if err != nil {
		return ignoreGone(o, err)
	}
	switch o.key.kind {
	case kindAddr:
		err = doAddr(h, index, o)
	case kindFDB:
		err = doNeigh(h, o, netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
			State: netlink.NUD_PERMANENT, IP: o.either().(netip.Addr).AsSlice(), HardwareAddr: o.key.mac[:]})
	case kindNeigh:
		mac := o.either().(MAC)
		err = doNeigh(h, o, netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT,
			IP: o.key.dst.Addr().AsSlice(), HardwareAddr: mac[:]})
	case kindRoute:
		err = s.doRoute(h, index, o)
	case kindRule:
		err = doRule(h, o)
	}
	return ignoreGone(o, err)
}

// ignoreGone drops the error of a removal whose object is not there any more.
func ignoreGone(o op, err error) error {
	var noLink netlink.LinkNotFoundError
	if o.verb == verbDel && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV) || errors.As(err, &noLink)) {
		return nil
	}
	return err
}

func (s *session) doSpace(o op) error {
	if o.verb == verbDel {
		return netns.Delete(o.key.ns)
	}
	return netns.Create(o.key.ns)
}

func (s *session) doLink(o op) error {
	ns, name := o.key.ns, o.key.link
	if o.verb == verbDel {
		h, index, err := s.on(ns, name)
		if err == nil {
			err = h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}})
		}
		l := o.old.(link)
		delete(s.index, end{ns, name})
		delete(s.index, end{l.peerNS, l.peer})
		return ignoreGone(o, err)
	}
	want := o.value.(link)
	if o.verb == verbAdd {
		if err := s.addLink(o.key, want); err != nil {
			return err
		}
	}
	if err := s.ready(ns, name, want.mtu); err != nil || o.verb != verbAdd || want.peer == "" {
		return err
	}
	return s.ready(want.peerNS, want.peer, want.mtu)
}

// addLink makes a link, or both ends of a pair, in place: under the final name
// and in the final namespace, so that a crash leaves nothing under another.
func (s *session) addLink(k key, want link) error {
	from, to := k.ns, want.peerNS
	if want.kind == "vxlan" {
		from, to = "", k.ns // the socket stays where the request comes from
	}
	h, err := s.handle(from)
	if err != nil {
		return err
	}
	file, err := os.Open(s.o.path(to))
	if err != nil {
		return err
	}
	defer file.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = k.link, want.mtu
	if want.mac != (MAC{}) {
		attrs.HardwareAddr = want.mac[:]
	}
	if want.kind == "vxlan" {
		attrs.Namespace = netlink.NsFd(int(file.Fd()))
		err := h.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(want.vni),
			SrcAddr: want.local.AsSlice(), Port: int(want.port)})
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("another VXLAN device of this host has VNI %d and port %d: remove it, or use another data-path port: %w",
				want.vni, want.port, err)
		}
		return err
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU = want.peer, uint32(want.mtu)
	veth.PeerNamespace = netlink.NsFd(int(file.Fd()))
	if want.peerMAC != (MAC{}) {
		veth.PeerHardwareAddr = want.peerMAC[:]
	}
	if err := h.LinkAdd(veth); err != nil || !want.addr.IsValid() {
		return err
	}
	_, index, err := s.on(k.ns, k.link)
	if err != nil {
		return err
	}
	return h.LinkSetAlias(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: index}}, formatAlias(want))
}

func (s *session) ready(ns, name string, mtu int) error {
	h, index, err := s.on(ns, name)
	if err != nil {
		return err
	}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set mtu: %w", err)
	}
	return h.LinkSetUp(l)
}

// doAddr removes before it adds, as an address cannot change its scope.
func doAddr(h *netns.Handle, index int, o op) error {
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: o.key.link, Index: index}}
	if o.verb != verbAdd {
		old := &netlink.Addr{IPNet: ipNet(o.key.dst), Scope: int(o.old.(scope))}
		if err := h.AddrDel(l, old); err != nil || o.verb == verbDel {
			return err
		}
	}
	return h.AddrReplace(l, &netlink.Addr{IPNet: ipNet(o.key.dst), Scope: int(o.value.(scope))})
}

func doNeigh(h *netns.Handle, o op, n netlink.Neigh) error {
	if o.verb == verbDel {
		return h.NeighDel(&n)
	}
	return h.NeighSet(&n)
}

func (s *session) doRoute(h *netns.Handle, index int, o op) error {
	want := o.either().(route)
	if old, _ := o.old.(route); old.foreign {
		// By its destination alone: it may have anything else.
		r := netlink.Route{Dst: ipNet(o.key.dst), Priority: o.key.metric, Table: o.key.table, Scope: unix.RT_SCOPE_NOWHERE}
		if o.key.ns != o.key.router {
			r.Protocol = protocol
		}
		err := h.RouteDel(&r)
		if o.verb == verbDel || err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	r := netlink.Route{Dst: ipNet(o.key.dst), LinkIndex: index, Protocol: protocol, Table: o.key.table,
		Priority: o.key.metric, Scope: netlink.Scope(want.scope)}
	switch {
	case want.unreachable:
		r.Type = unix.RTN_UNREACHABLE
	case want.via.Is6():
		r.Via = &netlink.Via{AddrFamily: unix.AF_INET6, Addr: want.via.AsSlice()}
		r.Flags = int(netlink.FLAG_ONLINK)
	case want.via.IsValid():
		r.Gw, r.Flags = want.via.AsSlice(), int(netlink.FLAG_ONLINK)
	}
	switch {
	case o.verb == verbDel:
		return h.RouteDel(&r)
	case o.key.ns != "":
		return h.RouteReplace(&r)
	}
	// The host's own routes are not ours to replace.
	if o.verb == verbSet {
		old := netlink.Route{Dst: r.Dst, Protocol: protocol, Scope: unix.RT_SCOPE_NOWHERE}
		if err := h.RouteDel(&old); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	if err := h.RouteAdd(&r); errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the host has another route for %s, so the subnet is in use outside of the swarm: choose another: %w", o.key.dst, err)
	} else if err != nil {
		return err
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
