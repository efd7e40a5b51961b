package balancer

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// plan returns what leads from have to want, in order, and nothing where they
// agree. The order keeps connections whole: what packets are sent to is made
// before the tables that send them there, and removed after; the tables of
// nftables change in one transaction; connections of dead backends are ended when
// no new one can come about.
func plan(have, want state) []op {
	var ops []op
	ops = append(ops, planSettings(have.settings, want.settings, false)...)
	if want.timeouts != (timeouts{}) && (have.timeouts.tcp != want.timeouts.tcp || have.timeouts.udp != want.timeouts.udp) {
		ops = append(ops, setTimeouts(want.timeouts))
	}
	added, removed := planVirtuals(have.virtuals, want.virtuals, want.seed)
	ops = append(ops, added...)
	ops = append(ops, planTable(have.table, want.table)...)
	ops = append(ops, removed...)
	ops = append(ops, planSettings(have.settings, want.settings, true)...)
	return append(ops, planMembers(have.table, want.table)...)
}

// planSettings plans the settings of conntrack, which exist only once the table
// is there, or all others.
func planSettings(have, want map[string]string, conntrack bool) []op {
	var ops []op
	for _, key := range slices.Sorted(maps.Keys(want)) {
		value, exists := have[key]
		if value == want[key] || !exists && key == vsConntrack {
			continue
		}
		if strings.HasPrefix(key, conntrackSettings) == conntrack {
			ops = append(ops, setSetting{key: key, value: want[key]})
		}
	}
	return ops
}

func planVirtuals(have, want []virtual, seed uint64) (added, removed []op) {
	merge(have, want, func(a, b virtual) int { return a.key.compare(b.key) }, func(h, w *virtual) {
		switch {
		case w == nil:
			removed = append(removed, delVirtual{h.key})
		case h == nil:
			added = append(added, addVirtual{*w})
			added = append(added, planDests(w.key, nil, w.dests, seed)...)
		default:
			if h.scheduler != w.scheduler || h.flags != w.flags {
				added = append(added, editVirtual{*w})
			}
			added = append(added, planDests(w.key, h.dests, w.dests, seed)...)
			merge(h.dests, w.dests, dest.compare, func(hd, wd *dest) {
				if wd == nil {
					removed = append(removed, delDest{w.key, *hd})
				}
			})
		}
	})
	return added, removed
}

func planDests(key virtualKey, have, want []dest, seed uint64) []op {
	var ops []op
	var fresh []dest
	merge(have, want, dest.compare, func(h, w *dest) {
		switch {
		case w == nil:
		case h == nil:
			fresh = append(fresh, *w)
		case *h != *w:
			ops = append(ops, editDest{key, *w})
		}
	})
	slices.SortFunc(fresh, func(a, b dest) int {
		return cmp.Or(cmp.Compare(shuffle(seed, key, a), shuffle(seed, key, b)), a.compare(b))
	})
	for _, d := range fresh {
		ops = append(ops, addDest{key, d})
	}
	return ops
}

func shuffle(seed uint64, key virtualKey, d dest) uint64 {
	h := fnv.New64a()
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], seed)
	binary.BigEndian.PutUint32(b[8:], key.mark)
	h.Write(b[:])
	h.Write(d.addr.AsSlice())
	return h.Sum64()
}

// planTable plans all of the table but the members. What is there but not as it
// should be, apart from elements and pick chains, is nobody's ordinary change:
// then the whole table is replaced, in one transaction too.
func planTable(have, want table) []op {
	var ops []op
	switch {
	case !want.exists && !have.exists:
	case !want.exists:
		ops = append(ops, delTable{})
	case !have.exists || !sameShape(have, want):
		ops = replaceTable(have, want)
	default:
		ops = updateTable(have, want)
	}
	if isNFT(have) && !isNFT(want) { // what the other kind tracked is of no use to this one
		ops = append(ops, endAll{})
	}
	return ops
}

func updateTable(have, want table) []op {
	var ops, unused []op
	merge(have.chains, want.chains, chain.compare, func(h, w *chain) {
		switch {
		case h == nil:
			ops = append(ops, makeChain(*w)...)
		case w == nil:
			unused = append(unused, delChain{h.name})
		}
	})
	for _, w := range want.sets {
		if h, _ := have.set(w.name); w.name != setMembers {
			ops = append(ops, planElems(h, w)...)
		}
	}
	return append(ops, unused...)
}

func replaceTable(have, want table) []op {
	var ops []op
	if have.exists {
		ops = append(ops, delTable{})
	}
	ops = append(ops, addTable{})
	for _, s := range want.sets {
		if s.name != setMembers {
			ops = append(ops, addSet{s.name, s.shape})
		}
	}
	for _, c := range want.chains {
		ops = append(ops, addChain{c.name, c.base})
	}
	for _, c := range want.chains {
		for _, r := range c.rules {
			ops = append(ops, addRule{c.name, r})
		}
	}
	for _, s := range want.sets {
		if s.name != setMembers {
			ops = append(ops, planElems(set{}, s)...)
		}
	}
	return ops
}

// sameShape reports whether elements and pick chains are all that differs.
func sameShape(have, want table) bool {
	same := have.flags == 0
	merge(have.sets, want.sets, set.compare, func(h, w *set) {
		switch {
		case h == nil:
			same = same && w.name == setMembers
		case w == nil:
			same = false
		default:
			same = same && h.shape == w.shape
		}
	})
	merge(have.chains, want.chains, chain.compare, func(h, w *chain) {
		switch {
		case h == nil:
			same = same && isPick(w.name)
		case w == nil:
			same = same && isPick(h.name) && isNFT(want)
		default:
			same = same && h.base == w.base && slices.EqualFunc(h.rules, w.rules, rule.equal)
		}
	})
	return same
}

// isNFT reports whether the table is the nftables kind's.
func isNFT(t table) bool {
	_, ok := t.set(setVIPs)
	return ok
}

// planMembers ends the connections of backends that are gone, and only then
// forgets those: a crash in between is made good by the next plan. A VIP's other
// connections are those that came before the VIP was balanced; they would keep
// their client from every backend.
func planMembers(have, want table) []op {
	if !isNFT(want) {
		return nil
	}
	haveSet, known := have.set(setMembers)
	wantSet, _ := want.set(setMembers)
	var ops []op
	for _, vip := range vipsOf(have, want) {
		before, after := members(haveSet, vip), members(wantSet, vip)
		if !known || anyGone(before, after) || len(before) == 0 && len(after) > 0 {
			ops = append(ops, endOthers{addr(vip), after})
		}
	}
	if !known || !sameShape(have, want) {
		ops = append(ops, addSet{setMembers, wantSet.shape})
		haveSet.elems = nil
	}
	return append(ops, planElems(haveSet, wantSet)...)
}

// anyGone reports whether the sorted list before has what after has not.
func anyGone(before, after []netip.Addr) (gone bool) {
	merge(before, after, netip.Addr.Compare, func(b, a *netip.Addr) { gone = gone || a == nil })
	return gone
}

func vipsOf(tables ...table) []uint32 {
	var vips []uint32
	for _, t := range tables {
		for _, name := range []string{setVIPs, setMembers} {
			for _, e := range t.elems(name) {
				vips = append(vips, e.key[0])
			}
		}
	}
	slices.Sort(vips)
	return slices.Compact(vips)
}

// members returns the backends of the VIP in a set of members.
func members(s set, vip uint32) []netip.Addr {
	first := elem{key: [2]uint32{vip, 0}}
	i, _ := slices.BinarySearchFunc(s.elems, first, elem.compare)
	var list []netip.Addr
	for ; i < len(s.elems) && s.elems[i].key[0] == vip; i++ {
		list = append(list, addr(s.elems[i].key[1]))
	}
	return list
}

func makeChain(c chain) []op {
	ops := []op{addChain{c.name, c.base}}
	for _, r := range c.rules {
		ops = append(ops, addRule{c.name, r})
	}
	return ops
}

func planElems(have, want set) []op {
	var ops []op
	gone, fresh := elemOps{set: want}, elemOps{set: want}
	merge(have.elems, want.elems, elem.compare, func(h, w *elem) {
		if h != nil && w != nil && *h == *w {
			return
		}
		if h != nil {
			gone.elems = append(gone.elems, *h)
		}
		if w != nil {
			fresh.elems = append(fresh.elems, *w)
		}
	})
	if len(gone.elems) > 0 {
		ops = append(ops, delElems(gone))
	}
	if len(fresh.elems) > 0 {
		ops = append(ops, addElems(fresh))
	}
	return ops
}

// merge walks two sorted lists side by side: fn gets both where they compare
// equal, and nil for the side that has none.
func merge[T any](have, want []T, order func(a, b T) int, fn func(h, w *T)) {
	for i, j := 0, 0; i < len(have) || j < len(want); {
		c := 0
		switch {
		case i == len(have):
			c = 1
		case j == len(want):
			c = -1
		default:
			c = order(have[i], want[j])
		}
		switch {
		case c < 0:
			fn(&have[i], nil)
			i++
		case c > 0:
			fn(nil, &want[j])
			j++
		default:
			fn(&have[i], &want[j])
			i, j = i+1, j+1
		}
	}
}
