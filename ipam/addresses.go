package ipam

import (
	"net/netip"

	"go4.org/netipx"
)

// Addresses gives out the addresses of one subnet, each at most once, in
// serial order: the next one after the last given, round the subnet, so that a
// freed address rests as long as there are others. The subnet's network and
// broadcast addresses are never given.
//
// It is made anew for each transaction: NewAddresses, a Take for every address
// in use, then Next for those that are wanted.
type Addresses struct {
	subnet      netip.Prefix
	first, last netip.Addr
	taken       map[netip.Addr]struct{}
	reserved    map[netip.Addr]struct{}
	// cursor is where the search begins: Next returns one after it if it can.
	cursor netip.Addr
	// told is true once After has set the cursor: Take then leaves it alone.
	told bool
}

// NewAddresses returns an allocator with nothing in use. The reserved addresses
// are never given and cannot be taken: the gateway and whatever else is spoken
// for. With none named, Gateway(subnet) is reserved.
func NewAddresses(subnet netip.Prefix, reserved ...netip.Addr) (*Addresses, error) {
	if !subnet.IsValid() {
		return nil, errorf(ErrInvalid, "the subnet is not valid")
	}
	subnet = subnet.Masked()
	if subnet.Bits() > subnet.Addr().BitLen()-minHostBits {
		return nil, errorf(ErrInvalid, "subnet %s is too small: at most /%d", subnet, subnet.Addr().BitLen()-minHostBits)
	}
	if len(reserved) == 0 {
		reserved = []netip.Addr{Gateway(subnet)}
	}
	a := &Addresses{
		subnet:   subnet,
		first:    subnet.Addr().Next(),
		last:     netipx.PrefixLastIP(subnet),
		taken:    make(map[netip.Addr]struct{}),
		reserved: make(map[netip.Addr]struct{}, len(reserved)),
	}
	if subnet.Addr().Is4() {
		a.last = a.last.Prev() // IPv6 has no broadcast address (RFC 4291 §2)
	}
	for _, r := range reserved {
		if r = r.Unmap(); subnet.Contains(r) {
			a.reserved[r] = struct{}{}
		}
	}
	a.cursor = a.last
	return a, nil
}

// After makes Next search from addr on: the address given last, as the caller
// has recorded it. Without it the search begins after the highest one in use,
// which delays reuse less. An address outside the subnet is ignored.
func (a *Addresses) After(addr netip.Addr) {
	if addr = addr.Unmap(); a.subnet.Contains(addr) {
		a.cursor, a.told = addr, true
	}
}

// Take records addr as in use. It fails with ErrTaken when it already is or is
// reserved, and with ErrInvalid when it is no usable address of the subnet.
func (a *Addresses) Take(addr netip.Addr) error {
	addr = addr.Unmap()
	if !a.subnet.Contains(addr) {
		return errorf(ErrInvalid, "address %s is not in subnet %s", addr, a.subnet)
	}
	if addr.Less(a.first) || a.last.Less(addr) {
		return errorf(ErrInvalid, "address %s is the network or broadcast address of subnet %s", addr, a.subnet)
	}
	if _, ok := a.reserved[addr]; ok {
		return errorf(ErrTaken, "address %s is reserved in subnet %s", addr, a.subnet)
	}
	if _, ok := a.taken[addr]; ok {
		return errorf(ErrTaken, "address %s is already in use in subnet %s", addr, a.subnet)
	}
	if !a.told && (len(a.taken) == 0 || a.cursor.Less(addr)) {
		a.cursor = addr
	}
	a.taken[addr] = struct{}{}
	return nil
}

// Next gives a free address and records it as in use. It fails with
// ErrExhausted when there is none.
func (a *Addresses) Next() (netip.Addr, error) {
	addr := a.cursor
	// One of any len+1 different addresses is free, so a huge subnet costs no
	// more than its used part; after a full round the start comes again.
	for range len(a.taken) + len(a.reserved) + 1 {
		addr = addr.Next()
		if !addr.IsValid() || addr.Less(a.first) || a.last.Less(addr) {
			addr = a.first
		}
		_, taken := a.taken[addr]
		_, reserved := a.reserved[addr]
		if !taken && !reserved {
			a.taken[addr] = struct{}{}
			a.cursor, a.told = addr, true
			return addr, nil
		}
	}
	return netip.Addr{}, errorf(ErrExhausted, "no free address in subnet %s: all %d are in use", a.subnet, len(a.taken))
}

// Release makes addr free again; one that is not in use is ignored. Next comes
// to it only after the others.
func (a *Addresses) Release(addr netip.Addr) { delete(a.taken, addr.Unmap()) }

// Len returns how many addresses are in use.
func (a *Addresses) Len() int { return len(a.taken) }
