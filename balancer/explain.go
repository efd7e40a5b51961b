package balancer

import (
	"context"
	"fmt"
	"net/netip"
)

// Explain returns the kernel objects, as they are now in the router at path, that
// a packet to the VIP meets, in that order; none if the router does not balance it.
func (b *Balancer) Explain(ctx context.Context, path string, vip netip.Addr) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !vip.Is4() {
		return nil, fmt.Errorf("explain VIP %q: not an IPv4 address", vip)
	}
	var lines []string
	err := b.open(path, func(k *kernel) error {
		have, err := k.read()
		lines = explain(have, word(vip))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("explain VIP %q in router %q: %w", vip, path, err)
	}
	return lines, nil
}

func explain(have state, vip uint32) []string {
	var lines []string
	for _, name := range []string{setMarks, setVIPs, setBackends} {
		s, _ := have.table.set(name)
		for _, e := range s.elems {
			if e.key[0] == vip {
				lines = append(lines, fmt.Sprintf("nft %s %s %s { %s }", s.shape.kind(), tableName, name, e.text(s.shape)))
			}
		}
	}
	for _, v := range have.virtuals {
		if v.key.mark != vip {
			continue
		}
		lines = append(lines, fmt.Sprintf("ipvs service %s -s %s", v.key, v.scheduler))
		for _, d := range v.dests {
			lines = append(lines, fmt.Sprintf("ipvs server %s -r %s -w %d", v.key, d.server(), d.weight))
		}
	}
	return lines
}
