package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd/orchestrator/scheduler"
)

const (
	defaultRestartDelay = 5 * time.Second
	// oldTaskTimeout is how long, over the grace period, a new task waits for the
	// old one of its slot to stop.
	oldTaskTimeout     = time.Minute
	defaultGracePeriod = 10 * time.Second
)

// restart gives up the slot's tasks that ended or whose node can no longer keep
// them, and makes the next one where the restart policy says so.
func (p *pass) restart(s *swarm.Service, sl *slot) {
	for _, t := range sl.wanted() {
		moves := p.moves(s, t)
		if !moves && !terminal(t) {
			continue
		}
		if !moves && p.now.Before(startAfter(t)) {
			// It failed before it was to start, as one whose image does not exist:
			// another would too. Without the wait that were a tight loop.
			p.at(startAfter(t))
			continue
		}
		if moves && p.handsOver(s, sl, t) {
			continue
		}
		p.desire(sl, t, swarm.TaskStateShutdown)
		switch {
		case len(sl.wanted()) > 0: // the other task of a start-first update goes on
		case !mayRestart(sl, t):
		case sl.key.node != "" && !p.covers(s, sl.key.node):
		case moves:
			p.newTask(s, sl, swarm.TaskStateReady, time.Time{})
		default:
			p.newTask(s, sl, swarm.TaskStateReady, nextStart(t))
		}
	}
}

// moves reports whether the task's node can no longer keep it: the node is gone,
// down or drained, or its labels no longer satisfy the constraints. Those of a new
// spec are an update's to enforce, at its own pace.
func (p *pass) moves(s *swarm.Service, t *swarm.Task) bool {
	if t.NodeID == "" || terminal(t) && p.tx.Node(t.NodeID) != nil {
		return false
	}
	n := p.tx.Node(t.NodeID)
	if n == nil || n.Status.State == swarm.NodeStateDown || n.Spec.Availability == swarm.NodeAvailabilityDrain {
		return true
	}
	return !satisfies(n, t.Spec.Placement) || !updating(s) && !paused(s) && !satisfies(n, s.Spec.TaskTemplate.Placement)
}

// handsOver keeps a task that has to leave a live node until another one runs in
// its place, where the service's update order says that two may run at once; then
// supersede ends it. It makes that other one. Without it a service of one replica
// is away while its node is drained.
func (p *pass) handsOver(s *swarm.Service, sl *slot, t *swarm.Task) bool {
	n := p.tx.Node(t.NodeID)
	if n == nil || n.Status.State != swarm.NodeStateReady || sl.key.node != "" || t.Status.State != swarm.TaskStateRunning ||
		configDefaults(s.Spec.UpdateConfig).Order != swarm.UpdateOrderStartFirst || !mayRestart(sl, t) {
		return false
	}
	if len(sl.wanted()) == 1 {
		var start time.Time
		if last := sl.tasks[0]; ended(last) {
			start = nextStart(last)
		}
		p.newTask(s, sl, swarm.TaskStateReady, start)
	}
	return true
}

// satisfies reports whether the node meets the placement's constraints.
func satisfies(n *swarm.Node, placement *swarm.Placement) bool {
	if placement == nil || len(placement.Constraints) == 0 {
		return true
	}
	constraints, err := scheduler.ParseConstraints(placement.Constraints)
	return err == nil && constraints.Match(n)
}

// covers reports whether a global service has a task on the node.
func (p *pass) covers(s *swarm.Service, node string) bool {
	n := p.tx.Node(node)
	return n != nil && scheduler.Accepting(n) && scheduler.Suits(n, s.Spec.TaskTemplate.Placement)
}

// promote lets a waiting task start: after its restart delay, and once the tasks
// before it in the slot have stopped or had time enough to. Those on a node that
// is down are not waited for: nobody knows when they stop.
func (p *pass) promote(sl *slot) {
	for _, t := range sl.tasks {
		if t.DesiredState != swarm.TaskStateReady {
			continue
		}
		if start := startAfter(t); p.now.Before(start) {
			p.at(start)
			continue
		}
		if until := t.CreatedAt.Add(oldTaskTimeout + p.stopping(sl)); p.stopping(sl) > 0 && p.now.Before(until) {
			p.at(until)
			continue
		}
		p.desire(sl, t, swarm.TaskStateRunning)
	}
}

// stopping returns the longest grace period of the slot's tasks that are being
// stopped by a live node, zero when there is none.
func (p *pass) stopping(sl *slot) time.Duration {
	var longest time.Duration
	for _, t := range sl.tasks {
		n := p.tx.Node(t.NodeID)
		if !wanted(t) && assigned(t) && n != nil && n.Status.State != swarm.NodeStateDown {
			longest = max(longest, gracePeriod(t), 1)
		}
	}
	return longest
}

func gracePeriod(t *swarm.Task) time.Duration {
	if c := t.Spec.ContainerSpec; c != nil && c.StopGracePeriod != nil {
		return *c.StopGracePeriod
	}
	return defaultGracePeriod
}

// nextStart is when the task after t, which failed, may start.
func nextStart(t *swarm.Task) time.Time {
	base := t.Status.Timestamp
	if start := startAfter(t); start.After(base) {
		base = start
	}
	return base.Add(restartDelay(t))
}

func restartDelay(t *swarm.Task) time.Duration {
	if r := t.Spec.RestartPolicy; r != nil && r.Delay != nil {
		return *r.Delay
	}
	return defaultRestartDelay
}

// mayRestart reports whether the restart policy of t, a task of the slot, allows
// another one after it. Attempts are counted by the slot's stored history, which
// reap keeps long enough; the window ends when t did, so that the answer never
// changes later by itself.
func mayRestart(sl *slot, t *swarm.Task) bool {
	policy := t.Spec.RestartPolicy
	if policy == nil {
		return true
	}
	switch policy.Condition {
	case swarm.RestartPolicyConditionNone:
		return false
	case swarm.RestartPolicyConditionOnFailure:
		if t.Status.State == swarm.TaskStateComplete {
			return false
		}
	}
	if policy.MaxAttempts == nil || *policy.MaxAttempts == 0 || !ended(t) {
		return true
	}
	var since time.Time
	if policy.Window != nil && *policy.Window > 0 {
		since = t.Status.Timestamp.Add(-*policy.Window)
	}
	ends := uint64(0)
	for _, o := range sl.tasks {
		if ended(o) && equalSpec(o.Spec, t.Spec) && !o.Status.Timestamp.Before(since) {
			ends++
		}
	}
	return ends <= *policy.MaxAttempts
}

// finished reports whether the slot has done what it was for: its last task
// ended and its restart policy wants no other. A new spec is a new start.
func (p *pass) finished(s *swarm.Service, sl *slot) bool {
	t := sl.newest()
	return t != nil && len(sl.wanted()) == 0 && !mayRestart(sl, t) && equalSpec(t.Spec, s.Spec.TaskTemplate)
}
