package dispatch

import (
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/swarm"
)

// outbox is what the managers have yet to be told. Every change gets a number; a
// message carries all changes after the one before, and the highest number.
type outbox struct {
	mu       sync.Mutex
	bell     chan struct{} // one token: there may be something to send
	seq      uint64
	statuses map[string]queued[swarm.TaskStatus] // until acknowledged: at most one per task
	// What holds for the node as a whole is told anew in each session: another
	// manager may have become the leader, and it keeps some of it in memory only.
	description queued[*swarm.NodeDescription]
	addr        queued[netip.Addr]
	applied     queued[uint64]
	leaving     queued[bool]
	// left is closed when a manager has stored that the node leaves.
	left chan struct{}
}

type queued[T any] struct {
	value T
	seq   uint64
}

func newOutbox() *outbox {
	return &outbox{bell: make(chan struct{}, 1), statuses: make(map[string]queued[swarm.TaskStatus]), left: make(chan struct{})}
}

func (o *outbox) add(r Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	for _, s := range r.Statuses {
		o.statuses[s.ID] = queued[swarm.TaskStatus]{s.Status, o.seq}
	}
	if r.Description != nil {
		o.description = queued[*swarm.NodeDescription]{r.Description, o.seq}
	}
	if r.Addr.IsValid() {
		o.addr = queued[netip.Addr]{r.Addr, o.seq}
	}
	if r.Applied != 0 {
		o.applied = queued[uint64]{r.Applied, o.seq}
	}
	if r.Leaving && !o.leaving.value {
		o.leaving = queued[bool]{true, o.seq}
	}
	o.ring()
}

func (o *outbox) ring() {
	select {
	case o.bell <- struct{}{}:
	default:
	}
}

// after returns what changed after the number sent, as a message, and whether
// that is anything at all.
func (o *outbox) after(sent uint64) (m upMessage, any bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m.Seq = sent
	changed := func(seq uint64) bool {
		m.Seq = max(m.Seq, seq)
		return seq > sent
	}
	for id, s := range o.statuses {
		if changed(s.seq) {
			m.Report.Statuses = append(m.Report.Statuses, TaskStatus{id, s.value})
		}
	}
	slices.SortFunc(m.Report.Statuses, func(a, b TaskStatus) int { return strings.Compare(a.ID, b.ID) })
	if changed(o.description.seq) {
		m.Report.Description = o.description.value
	}
	if changed(o.addr.seq) {
		m.Report.Addr = o.addr.value
	}
	if changed(o.applied.seq) {
		m.Report.Applied = o.applied.value
	}
	changed(o.leaving.seq)
	m.Report.Leaving = o.leaving.value // in every message from then on, or the node would count as back
	return m, m.Seq > sent
}

// beat is the heartbeat between messages.
func (o *outbox) beat(sent uint64) upMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	return upMessage{Seq: sent, Report: Report{Leaving: o.leaving.value}}
}

// stored forgets the statuses up to the number, which a manager has stored.
func (o *outbox) stored(seq uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, s := range o.statuses {
		if s.seq <= seq {
			delete(o.statuses, id)
		}
	}
	if o.leaving.value && o.leaving.seq <= seq {
		select {
		case <-o.left:
		default:
			close(o.left)
		}
	}
}
