// Package ipam chooses subnets, addresses and VXLAN network identifiers: pure
// arithmetic over what is already in use.
//
// It remembers nothing between calls and stores nothing. What is in use is
// known to the managers' store alone, so an allocator is rebuilt from it inside
// the transaction that records its answer; no address can then be given twice,
// whoever leads. It does not look at the host's own routes.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"

	"go4.org/netipx"
)

// The kinds of error of this package, for errors.Is.
var (
	// ErrExhausted: everything that could be given is in use.
	ErrExhausted = errors.New("exhausted")
	// ErrTaken: the one asked for is in use or reserved.
	ErrTaken = errors.New("taken")
	// ErrInvalid: the one asked for can never be given.
	ErrInvalid = errors.New("invalid")
)

// kindError has a text for the user and a kind for errors.Is.
type kindError struct {
	kind error
	text string
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

func errorf(kind error, format string, args ...any) error {
	return &kindError{kind: kind, text: fmt.Sprintf(format, args...)}
}

// minHostBits is the host part, in bits, of the smallest subnet with room for
// its network address, its broadcast address, a gateway and one endpoint.
const minHostBits = 2

// Pool is where subnets are taken from when the user names none.
type Pool struct {
	// Prefixes are searched in order.
	Prefixes []netip.Prefix
	// Size is the prefix length of each subnet, such as 24.
	Size int
}

// Validate says what is wrong with the pool, or nil.
func (p Pool) Validate() error {
	if len(p.Prefixes) == 0 {
		return errorf(ErrInvalid, "the address pool is empty")
	}
	for i, base := range p.Prefixes {
		switch {
		case !base.IsValid():
			return errorf(ErrInvalid, "address pool %d is not a prefix", i)
		case base != base.Masked():
			return errorf(ErrInvalid, "address pool %s has host bits set: want %s", base, base.Masked())
		case p.Size < base.Bits():
			return errorf(ErrInvalid, "subnet size /%d is larger than the address pool %s", p.Size, base)
		case p.Size > base.Addr().BitLen()-minHostBits:
			return errorf(ErrInvalid, "subnet size /%d is too small: at most /%d", p.Size, base.Addr().BitLen()-minHostBits)
		}
		for _, other := range p.Prefixes[:i] {
			if base.Overlaps(other) {
				return errorf(ErrInvalid, "address pools %s and %s overlap", other, base)
			}
		}
	}
	return nil
}

// Next returns the lowest subnet of the first prefix with room that overlaps
// none of used. The used prefixes may be of any size, and in any order.
func (p Pool) Next(used []netip.Prefix) (netip.Prefix, error) {
	if err := p.Validate(); err != nil {
		return netip.Prefix{}, err
	}
	for _, base := range p.Prefixes {
		var free netipx.IPSetBuilder
		free.AddPrefix(base)
		for _, u := range used {
			free.RemovePrefix(u)
		}
		set, err := free.IPSet()
		if err != nil {
			return netip.Prefix{}, errorf(ErrInvalid, "used subnets: %v", err)
		}
		// Prefixes are the largest aligned blocks, ascending: a free subnet of
		// our size lies wholly in one of them.
		for _, block := range set.Prefixes() {
			if block.Bits() <= p.Size {
				return netip.PrefixFrom(block.Addr(), p.Size), nil
			}
		}
	}
	return netip.Prefix{}, errorf(ErrExhausted, "no free /%d subnet in the address pools %v: remove a network or name a subnet", p.Size, p.Prefixes)
}

// Overlapping returns the first of used that shares an address with subnet.
func Overlapping(subnet netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) {
	for _, u := range used {
		if subnet.Overlaps(u) {
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// Gateway returns the subnet's first usable address, its router's by default.
func Gateway(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }
