package balancer

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
)

// Config is what a node balances: one Router per network that it takes part in.
type Config struct {
	Routers []Router // sorted by NetNS
}

// Router is one network's router namespace.
type Router struct {
	NetNS string // path of the namespace
	// Alias is the source address that a container sees when it is balanced to
	// itself. It must be an address that the container routes to the router.
	Alias netip.Addr
	// Locals are the addresses of this node's own containers on the network: the
	// only ones that can be balanced to themselves here.
	Locals   []netip.Addr
	Services []Service // sorted by VIP
}

// Service is a virtual IP and who stands behind it.
type Service struct {
	VIP      netip.Addr
	Backends []Backend // sorted by Addr
}

// Backend is one endpoint behind a VIP. A backend that is no longer listed is
// dead: its connections are reset.
type Backend struct {
	Addr  netip.Addr
	State State
}

// State says which connections a backend gets.
type State uint8

const (
	// Ready backends take new connections.
	Ready State = iota + 1
	// Draining backends keep the connections they have and get no new ones.
	Draining
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Ready:
		return "ready"
	case Draining:
		return "draining"
	default:
		return fmt.Sprintf("state(%d)", uint8(s))
	}
}

// word is an IPv4 address as the kernel's tables hold it here: a big-endian
// number, which is also the firewall mark of a VIP. Unique by construction, so
// no mark has to be allocated or remembered.
func word(addr netip.Addr) uint32 {
	b := addr.As4()
	return binary.BigEndian.Uint32(b[:])
}

func addr(word uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], word)
	return netip.AddrFrom4(b)
}

// normal returns a sorted copy of c whose empty slices are nil, so that configs
// that mean the same are deeply equal.
func (c Config) normal() Config {
	routers := sorted(c.Routers, func(a, b Router) int { return cmp.Compare(a.NetNS, b.NetNS) })
	for i := range routers {
		r := &routers[i]
		r.Locals = sorted(r.Locals, netip.Addr.Compare)
		r.Services = sorted(r.Services, func(a, b Service) int { return a.VIP.Compare(b.VIP) })
		for j := range r.Services {
			s := &r.Services[j]
			s.Backends = sorted(s.Backends, func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
		}
	}
	return Config{Routers: routers}
}

func sorted[T any](list []T, order func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortFunc(list, order)
	return list
}

// check refuses what no kernel could hold. The router must be normal.
func (r Router) check() error {
	if r.NetNS == "" {
		return fmt.Errorf("check router: no namespace; the machine's own is never balanced")
	}
	if len(r.Locals) > 0 && !r.Alias.IsValid() {
		return fmt.Errorf("check router: it has containers but no alias address")
	}
	if r.Alias.IsValid() && !r.Alias.Is4() {
		return fmt.Errorf("check alias %q: not an IPv4 address", r.Alias)
	}
	for i, local := range r.Locals {
		if !local.Is4() {
			return fmt.Errorf("check container address %q: not an IPv4 address", local)
		}
		if i > 0 && local == r.Locals[i-1] {
			return fmt.Errorf("check container address %q: listed twice", local)
		}
	}
	for i, s := range r.Services {
		if i > 0 && s.VIP == r.Services[i-1].VIP {
			return fmt.Errorf("check service %q: two services have this virtual IP", s.VIP)
		}
		if err := s.check(); err != nil {
			return fmt.Errorf("check service %q: %w", s.VIP, err)
		}
	}
	return nil
}

func (s Service) check() error {
	if !s.VIP.Is4() || s.VIP.IsUnspecified() {
		return fmt.Errorf("the virtual IP is not an IPv4 address")
	}
	for i, b := range s.Backends {
		switch {
		case !b.Addr.Is4() || b.Addr.IsUnspecified():
			return fmt.Errorf("backend %q: not an IPv4 address", b.Addr)
		case b.Addr == s.VIP:
			return fmt.Errorf("backend %q: a virtual IP cannot stand behind itself", b.Addr)
		case i > 0 && b.Addr == s.Backends[i-1].Addr:
			return fmt.Errorf("backend %q: listed twice", b.Addr)
		case b.State != Ready && b.State != Draining:
			return fmt.Errorf("backend %q: unknown %s", b.Addr, b.State)
		}
	}
	return nil
}

// empty reports whether the router is to be cleaned.
func (r Router) empty() bool {
	return !r.Alias.IsValid() && len(r.Locals) == 0 && len(r.Services) == 0
}
