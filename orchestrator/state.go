package orchestrator

import (
	"cmp"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// rank orders the states of a task. A task's observed state only ever moves to a
// higher one; a task that has a terminal state keeps it.
func rank(s swarm.TaskState) int {
	switch s {
	case swarm.TaskStateNew:
		return 1
	case swarm.TaskStateAllocated, swarm.TaskStatePending:
		return 2
	case swarm.TaskStateAssigned:
		return 3
	case swarm.TaskStateAccepted:
		return 4
	case swarm.TaskStatePreparing:
		return 5
	case swarm.TaskStateReady:
		return 6
	case swarm.TaskStateStarting:
		return 7
	case swarm.TaskStateRunning:
		return 8
	case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed,
		swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned:
		return 9
	}
	return 0
}

// terminal reports whether nothing of the task runs, nor ever will again.
func terminal(t *swarm.Task) bool { return rank(t.Status.State) > rank(swarm.TaskStateRunning) }

// assigned reports whether the task's node knows of it: it may run there.
func assigned(t *swarm.Task) bool {
	return t.NodeID != "" && rank(t.Status.State) >= rank(swarm.TaskStateAssigned) && !terminal(t)
}

// wanted reports whether the task is to run, now or after a delay.
func wanted(t *swarm.Task) bool {
	return t.DesiredState == swarm.TaskStateRunning || t.DesiredState == swarm.TaskStateReady
}

// dead reports whether the task is history: it ended, or it was given up before
// a node knew of it.
func dead(t *swarm.Task) bool { return terminal(t) || !wanted(t) && !assigned(t) }

// ended reports whether the task's process ended by itself: nobody stopped it.
func ended(t *swarm.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateRejected:
		return true
	}
	return false
}

// newestFirst orders tasks by their creation, the latest first.
func newestFirst(a, b *swarm.Task) int {
	return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.Version.Index, a.Version.Index), cmp.Compare(b.ID, a.ID))
}

// inTurn orders tasks that wait for something: the longest waiting first.
func inTurn(a, b *swarm.Task) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
}

// slotKey names one place of a service that one task fills at a time: a number
// for a replicated service, a node for a global one.
type slotKey struct {
	number int
	node   string
}

func (k slotKey) compare(other slotKey) int {
	return cmp.Or(cmp.Compare(k.number, other.number), cmp.Compare(k.node, other.node))
}

// slot is a place of a service with all tasks that are or were in it.
type slot struct {
	key   slotKey
	tasks []*swarm.Task // newest first
}

// wanted returns the tasks that are to run: one, or two during an update that
// starts the new task first.
func (s *slot) wanted() []*swarm.Task {
	var all []*swarm.Task
	for _, t := range s.tasks {
		if wanted(t) {
			all = append(all, t)
		}
	}
	return all
}

// newest returns the slot's latest task that is not to be removed, or nil.
func (s *slot) newest() *swarm.Task {
	for _, t := range s.tasks {
		if t.DesiredState != swarm.TaskStateRemove {
			return t
		}
	}
	return nil
}

// replace puts t, a changed copy, in the place of the task with its ID.
func (s *slot) replace(t *swarm.Task) {
	if i := slices.IndexFunc(s.tasks, func(o *swarm.Task) bool { return o.ID == t.ID }); i >= 0 {
		s.tasks[i] = t
	}
}

// slotsOf groups the tasks of one service by slot, sorted by key.
func slotsOf(service *swarm.Service, tasks []*swarm.Task) []*slot {
	byKey := map[slotKey]*slot{}
	var all []*slot
	for _, t := range tasks {
		key := slotKey{number: t.Slot}
		if service.Spec.Mode.Global != nil {
			key = slotKey{node: t.NodeID}
		}
		s := byKey[key]
		if s == nil {
			s = &slot{key: key}
			byKey[key] = s
			all = append(all, s)
		}
		s.tasks = append(s.tasks, t)
	}
	for _, s := range all {
		slices.SortFunc(s.tasks, newestFirst)
	}
	slices.SortFunc(all, func(a, b *slot) int { return a.key.compare(b.key) })
	return all
}

// Facts about a task for which the Docker API has no field are labels of the
// task, so that they are in the store and a new leader decides as the old one.
const (
	// labelStartAfter is when a task that waits out its restart delay may start.
	labelStartAfter = "netd.start-after"
	// labelRanFor is how long the task had been running when it stopped.
	labelRanFor = "netd.ran-for"
)

// withLabel returns a copy of the labels with one more.
func withLabel(labels map[string]string, key, value string) map[string]string {
	out := make(map[string]string, len(labels)+1)
	for k, v := range labels {
		out[k] = v
	}
	out[key] = value
	return out
}

// startAfter returns when the task may start, the zero time when at once.
func startAfter(t *swarm.Task) time.Time {
	at, err := time.Parse(time.RFC3339Nano, t.Labels[labelStartAfter])
	if err != nil {
		return time.Time{}
	}
	return at
}

// ranFor returns how long the ended task had run; ran is false if it never did.
func ranFor(t *swarm.Task) (d time.Duration, ran bool) {
	d, err := time.ParseDuration(t.Labels[labelRanFor])
	return d, err == nil
}

// equalSpec compares what two task specs mean: nil and empty fields are the same
// when their JSON, which is what is stored, is.
func equalSpec(a, b swarm.TaskSpec) bool {
	if reflect.DeepEqual(a, b) {
		return true
	}
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}
