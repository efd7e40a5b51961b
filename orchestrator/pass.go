package orchestrator

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd/orchestrator/store"
)

// pass is one look at the whole state: what it finds wanting it writes, in one
// transaction. It has no memory: all that it decides on is in the store, in now
// and in beats, so that a pass over its own result writes nothing, and a new
// leader goes on where the old one stopped.
type pass struct {
	tx    *store.Tx
	now   time.Time
	newID func() string
	// beats are, by node, when the node counts as down unless it is heard of
	// before. The pass adds the nodes that it does not know.
	beats map[string]time.Time
	// cursors are the addresses given last, by network: a hint that delays the
	// reuse of an address.
	cursors map[string]netip.Addr

	// next is the earliest time at which a later pass may decide otherwise with
	// nothing else changed; zero is never.
	next time.Time
	// writes counts the objects put and deleted.
	writes int
	err    error
	// unsettled is set when the steps did not come to rest: a bug, but what they
	// wrote is as good as what a pass before wrote.
	unsettled bool

	space *space // see addresses; made on first use
}

// maxSteps bounds the steps of a pass; an ordinary one needs two or three.
const maxSteps = 16

// run brings the state to what is wanted now, step by step until a step finds
// nothing to write.
func (p *pass) run() error {
	for range maxSteps {
		before := p.writes
		p.step()
		if p.err != nil || p.writes == before {
			return p.err
		}
	}
	p.unsettled = true
	p.at(p.now)
	return nil
}

// step looks at everything once. The order matters for the number of steps, not
// for the outcome.
func (p *pass) step() {
	p.space = nil
	p.liveness()
	for _, s := range p.tx.Services() {
		p.reconcile(p.allocateService(s))
	}
	p.reap()
	p.reapNetworks()
	p.allocateTasks()
	p.schedule()
}

// reconcile decides on the tasks of one service.
func (p *pass) reconcile(s *swarm.Service) {
	slots := slotsOf(s, p.tx.TasksByService(s.ID))
	for _, sl := range slots {
		p.supersede(s, sl)
		p.restart(s, sl)
	}
	var filled []*slot
	switch {
	case s.Spec.Mode.Replicated != nil:
		filled = p.scale(s, slots)
	case s.Spec.Mode.Global != nil:
		filled = p.cover(s, slots)
	}
	p.update(s, filled)
	for _, sl := range slots {
		p.promote(sl)
	}
}

// at asks for another pass at time t.
func (p *pass) at(t time.Time) {
	if p.next.IsZero() || t.Before(p.next) {
		p.next = t
	}
}

// put writes obj; the first error ends the pass with nothing written.
func (p *pass) put(obj any) {
	p.writes++
	if err := p.tx.Put(obj); err != nil && p.err == nil {
		p.err = err
	}
}

func (p *pass) delete(obj any) {
	p.writes++
	if err := p.tx.Delete(obj); err != nil && p.err == nil {
		p.err = err
	}
}

// desire writes what is wanted of a task in the slot. It only ever goes towards
// removal, but for a task that waited and may now start.
func (p *pass) desire(sl *slot, t *swarm.Task, state swarm.TaskState) {
	if t.DesiredState == state {
		return
	}
	c := *t
	c.DesiredState = state
	p.put(&c)
	sl.replace(&c)
}

// newTask makes the next task of the slot. start is when it may start: the zero
// time when at once, and even then not before the slot's other tasks have
// stopped; a task desired to be running does not wait at all.
func (p *pass) newTask(s *swarm.Service, sl *slot, desired swarm.TaskState, start time.Time) {
	t := &swarm.Task{
		ID:           p.newID(),
		Annotations:  swarm.Annotations{Labels: map[string]string{}},
		ServiceID:    s.ID,
		Slot:         sl.key.number,
		NodeID:       sl.key.node,
		Spec:         s.Spec.TaskTemplate,
		DesiredState: desired,
		Status:       swarm.TaskStatus{Timestamp: p.now, State: swarm.TaskStateNew, Message: "created"},
		Volumes:      []swarm.VolumeAttachment{},
	}
	if !start.IsZero() {
		t.Labels[labelStartAfter] = start.UTC().Format(time.RFC3339Nano)
	}
	p.put(t)
	if stored := p.tx.Task(t.ID); stored != nil {
		t = stored // with its times
	}
	sl.tasks = slices.Insert(sl.tasks, 0, t)
}

// setStatus writes a copy of the task with a new observed state, which never
// goes back.
func (p *pass) setStatus(t *swarm.Task, state swarm.TaskState, message, err string) {
	if rank(state) < rank(t.Status.State) || t.Status.State == state && t.Status.Message == message && t.Status.Err == err {
		return
	}
	c := *t
	if c.Status.State != state {
		c.Status.Timestamp = p.now
	}
	c.Status.State, c.Status.Message, c.Status.Err = state, message, err
	p.put(&c)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
