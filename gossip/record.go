package gossip

import (
	"cmp"
	"maps"
	"slices"

	"netd"
)

// This file is the pure part: how an owner numbers its states and words its
// messages, and how the others merge them, in whatever order they come.

// maxChanges bounds what an owner remembers of its past for its messages: more
// than fits in one packet is of no use.
const maxChanges = 64

// record is what a node holds of one owner. The entries map is never changed.
type record struct {
	stamp
	left    bool
	entries map[netd.EndpointKey]netd.EndpointState
}

// outcome is what a message meant for a record.
type outcome int

const (
	stale   outcome = iota // nothing new
	applied                // the record is now the message's version
	behind                 // there is a newer version, which the message alone does not give
)

// merge returns the record after s. Only a whole state follows another boot's,
// or an owner's that left.
func (r record) merge(s state) (record, outcome) {
	switch {
	case !r.stamp.less(s.stamp):
		return r, stale
	case s.left:
		return record{stamp: s.stamp, left: true}, applied
	case s.base == 0:
		r.entries = nil
	case r.left || s.boot != r.boot || s.base > r.version:
		return r, behind
	}
	entries := make(map[netd.EndpointKey]netd.EndpointState, len(r.entries)+len(s.changes))
	maps.Copy(entries, r.entries)
	for _, c := range s.changes {
		if c.state == 0 {
			delete(entries, c.key)
		} else {
			entries[c.key] = c.state
		}
	}
	return record{stamp: s.stamp, entries: entries}, applied
}

// whole returns the record as a message that needs no earlier one.
func (r record) whole(owner netd.NodeID) state {
	s := state{owner: owner, stamp: r.stamp, left: r.left}
	for _, key := range slices.SortedFunc(maps.Keys(r.entries), compareKeys) {
		s.changes = append(s.changes, change{key, r.entries[key]})
	}
	return s
}

func compareKeys(a, b netd.EndpointKey) int {
	return cmp.Or(cmp.Compare(a.Network, b.Network), cmp.Compare(a.Task, b.Task))
}

// history is an owner's own record with its newest changes.
type history struct {
	record
	// past holds the changes of the newest versions, oldest first.
	past []pastChange
}

type pastChange struct {
	version uint64
	change
}

// set makes entries the state and says whether that is a new version. The first
// call always is: it is then that the owner has something to say.
func (h *history) set(entries []Entry) bool {
	next := make(map[netd.EndpointKey]netd.EndpointState, len(entries))
	for _, e := range entries {
		if e.State != 0 {
			next[e.Key] = e.State
		}
	}
	if h.version > 0 && maps.Equal(next, h.entries) {
		return false
	}
	h.version++
	for key := range h.entries {
		if _, ok := next[key]; !ok {
			h.past = append(h.past, pastChange{h.version, change{key, 0}})
		}
	}
	for key, s := range next {
		if h.entries[key] != s {
			h.past = append(h.past, pastChange{h.version, change{key, s}})
		}
	}
	h.entries = next
	if drop := len(h.past) - maxChanges; drop > 0 {
		last := h.past[drop-1].version // a version is remembered with all its changes or not at all
		h.past = slices.DeleteFunc(h.past, func(p pastChange) bool { return p.version <= last })
	}
	return true
}

// outbid moves the state past one that carries our name and is not ours: of a
// clone, or of an earlier start that counted further than we know.
func (h *history) outbid(claim stamp) {
	h.boot = claim.boot + 1
	h.past = nil
}

// leave makes the last version of all.
func (h *history) leave() {
	h.version++
	h.left, h.entries, h.past = true, nil, nil
}

// message encodes the state in at most budget bytes: whole if it fits, else the
// changes since the earliest version from which they fit. With no room for even
// the newest version's, it only tells that there is one.
func (h *history) message(owner netd.NodeID, budget int) []byte {
	const leastPerEntry = 3
	if len(h.entries)*leastPerEntry <= budget {
		if b := encodeState(h.whole(owner)); len(b) <= budget {
			return b
		}
	}
	s := state{owner: owner, stamp: h.stamp, base: h.version}
	best := encodeState(s)
	seen := make(map[netd.EndpointKey]bool)
	for i := len(h.past) - 1; i >= 0; i-- {
		if p := h.past[i]; !seen[p.key] {
			seen[p.key] = true
			s.changes = append(s.changes, p.change)
		}
		if i > 0 && h.past[i-1].version == h.past[i].version {
			continue
		}
		s.base = h.past[i].version - 1
		b := encodeState(s)
		if len(b) > budget || s.base == 0 {
			break
		}
		best = b
	}
	return best
}
