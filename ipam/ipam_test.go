package ipam_test

import (
	"errors"
	"net/netip"
	"testing"

	"netd/ipam"
	"pgregory.net/rapid"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// The lowest free subnet is chosen, whatever sizes the used ones have.
func TestPoolNext(t *testing.T) {
	for _, tt := range []struct {
		name string
		pool ipam.Pool
		used []netip.Prefix
		want string
		err  error
	}{
		{"empty", ipam.Pool{prefixes("10.0.0.0/8"), 24}, nil, "10.0.0.0/24", nil},
		{"after the ingress network", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("10.0.0.0/24"), "10.0.1.0/24", nil},
		{"hole", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("10.0.2.0/24", "10.0.0.0/24"), "10.0.1.0/24", nil},
		{"small used one spoils its block", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("10.0.0.128/28"), "10.0.1.0/24", nil},
		{"large used one", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("10.0.0.0/12"), "10.16.0.0/24", nil},
		{"used one holds the pool", ipam.Pool{prefixes("10.0.0.0/24", "10.9.0.0/24"), 24}, prefixes("10.0.0.0/8", "10.0.0.0/25"), "", ipam.ErrExhausted},
		{"host bits in a used one", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("10.0.0.7/24"), "10.0.1.0/24", nil},
		{"foreign used ones", ipam.Pool{prefixes("10.0.0.0/8"), 24}, prefixes("192.168.0.0/16", "fd00::/8"), "10.0.0.0/24", nil},
		{"second pool", ipam.Pool{prefixes("10.0.0.0/24", "10.9.0.0/16"), 24}, prefixes("10.0.0.0/24"), "10.9.0.0/24", nil},
		{"IPv6", ipam.Pool{prefixes("fd00::/48"), 64}, prefixes("fd00::/64"), "fd00:0:0:1::/64", nil},
		{"no pool", ipam.Pool{nil, 24}, nil, "", ipam.ErrInvalid},
		{"size larger than the pool", ipam.Pool{prefixes("10.0.0.0/25"), 24}, nil, "", ipam.ErrInvalid},
		{"size without room", ipam.Pool{prefixes("10.0.0.0/8"), 31}, nil, "", ipam.ErrInvalid},
		{"overlapping pools", ipam.Pool{prefixes("10.0.0.0/8", "10.1.0.0/16"), 24}, nil, "", ipam.ErrInvalid},
		{"pool with host bits", ipam.Pool{prefixes("10.0.0.1/8"), 24}, nil, "", ipam.ErrInvalid},
		{"invalid used one", ipam.Pool{prefixes("10.0.0.0/8"), 24}, []netip.Prefix{{}}, "", ipam.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.pool.Next(tt.used)
			if !errors.Is(err, tt.err) {
				t.Fatalf("got error %v, want %v", err, tt.err)
			}
			if err == nil && got.String() != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// Subnets given one after the other never overlap each other or what was used
// before, and the pool is only exhausted when no aligned subnet is free.
func TestPoolNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		base := netip.MustParsePrefix("10.0.0.0/16")
		pool := ipam.Pool{Prefixes: []netip.Prefix{base}, Size: rapid.IntRange(16, 24).Draw(t, "size")}
		var used []netip.Prefix
		for range rapid.IntRange(0, 30).Draw(t, "used") {
			addr := netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(0, 1).Draw(t, "b")), rapid.Byte().Draw(t, "c"), rapid.Byte().Draw(t, "d")})
			used = append(used, netip.PrefixFrom(addr, rapid.IntRange(17, 32).Draw(t, "bits")))
		}
		for range 20 {
			got, err := pool.Next(used)
			if errors.Is(err, ipam.ErrExhausted) {
				for i := range 1 << (pool.Size - 16) {
					n := i << (32 - pool.Size)
					p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), pool.Size)
					if _, taken := ipam.Overlapping(p, used); !taken {
						t.Fatalf("exhausted although %s is free", p)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got != got.Masked() || got.Bits() != pool.Size || !base.Contains(got.Addr()) {
				t.Fatalf("got %s, which is no /%d of %s", got, pool.Size, base)
			}
			if u, taken := ipam.Overlapping(got, used); taken {
				t.Fatalf("got %s, which overlaps %s", got, u)
			}
			used = append(used, got)
		}
	})
}
