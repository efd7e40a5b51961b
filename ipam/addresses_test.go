package ipam_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"go4.org/netipx"
	"netd/ipam"
	"pgregory.net/rapid"
)

func addresses(t rapid.TB, subnet string, reserved ...string) *ipam.Addresses {
	t.Helper()
	var list []netip.Addr
	for _, s := range reserved {
		list = append(list, netip.MustParseAddr(s))
	}
	a, err := ipam.NewAddresses(netip.MustParsePrefix(subnet), list...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func next(t rapid.TB, a *ipam.Addresses) string {
	t.Helper()
	addr, err := a.Next()
	if err != nil {
		t.Fatal(err)
	}
	return addr.String()
}

// Each kind of address that cannot be had is refused with its own kind.
func TestTake(t *testing.T) {
	a := addresses(t, "10.0.1.0/24", "10.0.1.1", "10.0.1.9", "169.254.1.1")
	for _, tt := range []struct {
		addr string
		want error
	}{
		{"10.0.1.2", nil},
		{"10.0.1.2", ipam.ErrTaken},
		{"::ffff:10.0.1.2", ipam.ErrTaken},
		{"10.0.1.254", nil},
		{"10.0.1.1", ipam.ErrTaken},
		{"10.0.1.9", ipam.ErrTaken},
		{"10.0.1.0", ipam.ErrInvalid},
		{"10.0.1.255", ipam.ErrInvalid},
		{"10.0.2.1", ipam.ErrInvalid},
		{"fd00::1", ipam.ErrInvalid},
	} {
		if err := a.Take(netip.MustParseAddr(tt.addr)); !errors.Is(err, tt.want) {
			t.Errorf("take %s: got %v, want %v", tt.addr, err, tt.want)
		}
	}
	if err := a.Take(netip.Addr{}); !errors.Is(err, ipam.ErrInvalid) {
		t.Errorf("take the zero address: got %v, want %v", err, ipam.ErrInvalid)
	}
}

// The order is serial: after the recorded one, else after the highest in use,
// and round the end of the subnet.
func TestNextOrder(t *testing.T) {
	a := addresses(t, "10.0.1.0/29")
	if got := next(t, a); got != "10.0.1.2" {
		t.Errorf("first: got %s, want 10.0.1.2", got)
	}
	a = addresses(t, "10.0.1.0/29")
	for _, s := range []string{"10.0.1.5", "10.0.1.3"} {
		if err := a.Take(netip.MustParseAddr(s)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for range 3 {
		got = append(got, next(t, a))
	}
	if want := "[10.0.1.6 10.0.1.2 10.0.1.4]"; fmt.Sprint(got) != want {
		t.Errorf("after the highest: got %v, want %v", got, want)
	}
	if _, err := a.Next(); !errors.Is(err, ipam.ErrExhausted) {
		t.Errorf("full: got %v, want %v", err, ipam.ErrExhausted)
	}
	a = addresses(t, "10.0.1.0/24")
	a.After(netip.MustParseAddr("10.0.1.100"))
	if err := a.Take(netip.MustParseAddr("10.0.1.200")); err != nil {
		t.Fatal(err)
	}
	if got := next(t, a); got != "10.0.1.101" {
		t.Errorf("after the recorded one: got %s, want 10.0.1.101", got)
	}
}

// A subnet too small for a gateway and an endpoint is refused.
func TestNewAddressesInvalid(t *testing.T) {
	for _, p := range []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.0/31"), netip.MustParsePrefix("10.0.0.0/32"), netip.MustParsePrefix("fd00::/127")} {
		if _, err := ipam.NewAddresses(p); !errors.Is(err, ipam.ErrInvalid) {
			t.Errorf("%s: got %v, want %v", p, err, ipam.ErrInvalid)
		}
	}
}

// The last address of an IPv6 subnet is an ordinary one, and a huge subnet
// costs no more than its used part.
func TestNextIPv6(t *testing.T) {
	a := addresses(t, "fd00::/64")
	a.After(netip.MustParseAddr("fd00::ffff:ffff:ffff:fffe"))
	if got := next(t, a); got != "fd00::ffff:ffff:ffff:ffff" {
		t.Errorf("got %s, want the last address", got)
	}
	if got := next(t, a); got != "fd00::2" {
		t.Errorf("got %s, want fd00::2", got)
	}
}

// Over any history of takes, gifts, releases and rebuilds from what is in use:
// nothing is given twice, nor the network, broadcast or a reserved address;
// exhaustion means that all are in use; a freed address is not given again
// while one that rested longer is free.
func TestAddressesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subnet := netip.PrefixFrom(netip.MustParseAddr("10.0.1.0"), rapid.IntRange(24, 30).Draw(t, "bits"))
		gateway := ipam.Gateway(subnet)
		broadcast := netipx.PrefixLastIP(subnet)
		hosts := 1<<(32-subnet.Bits()) - 3
		a := addresses(t, subnet.String(), gateway.String())
		used := map[netip.Addr]bool{}
		var last netip.Addr
		rest := map[netip.Addr]int{} // gifts since the address was freed
		t.Repeat(map[string]func(*rapid.T){
			"next": func(t *rapid.T) {
				addr, err := a.Next()
				if len(used) == hosts {
					if !errors.Is(err, ipam.ErrExhausted) {
						t.Fatalf("full: got %s, %v", addr, err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if used[addr] || addr == gateway || addr == broadcast || addr == subnet.Addr() || !subnet.Contains(addr) {
					t.Fatalf("gave %s with %v in use", addr, used)
				}
				if n, freed := rest[addr]; freed && addr == last && n == 0 && len(used) < hosts-1 {
					t.Fatalf("gave %s again at once", addr)
				}
				for r := range rest {
					rest[r]++
				}
				delete(rest, addr)
				used[addr], last = true, addr
			},
			"take": func(t *rapid.T) {
				addr := netip.AddrFrom4([4]byte{10, 0, 1, rapid.Byte().Draw(t, "host")})
				err := a.Take(addr)
				usable := subnet.Contains(addr) && addr != subnet.Addr() && addr != broadcast && addr != gateway
				if (err == nil) != (usable && !used[addr]) {
					t.Fatalf("take %s: got %v with %v in use", addr, err, used)
				}
				if err == nil {
					used[addr] = true
				}
			},
			"release": func(t *rapid.T) {
				if len(used) == 0 {
					t.Skip("nothing to release")
				}
				addr := rapid.SampledFrom(slices.SortedFunc(maps.Keys(used), netip.Addr.Compare)).Draw(t, "addr")
				a.Release(addr)
				delete(used, addr)
				rest[addr] = 0
			},
			"rebuild": func(t *rapid.T) {
				a = addresses(t, subnet.String(), gateway.String())
				a.After(last)
				for addr := range used {
					if err := a.Take(addr); err != nil {
						t.Fatal(err)
					}
				}
			},
			"": func(t *rapid.T) {
				if a.Len() != len(used) {
					t.Fatalf("got %d in use, want %d", a.Len(), len(used))
				}
			},
		})
	})
}

// Every usable address of a subnet is given once before any freed one returns.
func TestReuseDelay(t *testing.T) {
	a := addresses(t, "10.0.1.0/26")
	seen := map[string]bool{}
	for range 61 {
		s := next(t, a)
		if seen[s] {
			t.Fatalf("%s came again after %d addresses, want 61", s, len(seen))
		}
		seen[s] = true
		a.Release(netip.MustParseAddr(s))
	}
	if s := next(t, a); s != "10.0.1.2" {
		t.Errorf("after a full round: got %s, want 10.0.1.2", s)
	}
}

// VNIs are given serially from 4096, never twice, never outside 24 bits.
func TestVNIs(t *testing.T) {
	var v ipam.VNIs
	if got, err := v.Next(); err != nil || got != ipam.MinVNI {
		t.Errorf("first: got %d, %v", got, err)
	}
	for _, tt := range []struct {
		vni  uint32
		want error
	}{
		{4095, ipam.ErrInvalid}, {1 << 24, ipam.ErrInvalid}, {0, ipam.ErrInvalid},
		{4096, ipam.ErrTaken}, {4097, nil}, {ipam.MaxVNI, nil},
	} {
		if err := v.Take(tt.vni); !errors.Is(err, tt.want) {
			t.Errorf("take %d: got %v, want %v", tt.vni, err, tt.want)
		}
	}
	if got, err := v.Next(); err != nil || got != 4098 {
		t.Errorf("next: got %d, %v, want 4098", got, err)
	}
	v.After(ipam.MaxVNI - 1)
	if got, err := v.Next(); err != nil || got != 4099 {
		t.Errorf("round the end: got %d, %v, want 4099", got, err)
	}
	var w ipam.VNIs
	_ = w.Take(5000)
	_ = w.Take(4500)
	if got, err := w.Next(); err != nil || got != 5001 {
		t.Errorf("after the highest: got %d, %v, want 5001", got, err)
	}
}
