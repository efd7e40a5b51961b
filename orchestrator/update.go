package orchestrator

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// The texts of UpdateStatus.Message, as Swarm words them: the docker command
// shows them, and scripts compare them.
const (
	messageUpdating   = "update in progress"
	messageUpdated    = "update completed"
	messageRollback   = "manually requested rollback"
	messageRolledBack = "rollback completed"
)

const defaultMonitor = 5 * time.Second

// updateConfig returns how the update or rollback in progress goes.
func updateConfig(s *swarm.Service) swarm.UpdateConfig {
	if rollingBack(s) {
		return configDefaults(s.Spec.RollbackConfig)
	}
	return configDefaults(s.Spec.UpdateConfig)
}

// configDefaults fills in what the config leaves open. A parallelism of zero is
// all at once; only without any config is it one.
func configDefaults(config *swarm.UpdateConfig) swarm.UpdateConfig {
	c := swarm.UpdateConfig{Parallelism: 1}
	if config != nil {
		c = *config
	}
	c.FailureAction = cmp.Or(c.FailureAction, swarm.UpdateFailureActionPause)
	c.Monitor = cmp.Or(c.Monitor, defaultMonitor)
	c.Order = cmp.Or(c.Order, swarm.UpdateOrderStopFirst)
	return c
}

func rollingBack(s *swarm.Service) bool {
	return s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStateRollbackStarted
}

// dirty reports whether the task is not what its service now asks for. A change
// of the placement alone leaves a task where it may still be, and one of ports does
// if the task has an address for them.
func dirty(s *swarm.Service, t *swarm.Task, n *swarm.Node) bool {
	want := s.Spec.TaskTemplate
	if unreachable(s, t) {
		return true
	}
	if equalSpec(t.Spec, want) {
		return false
	}
	unplaced := want
	unplaced.Placement = t.Spec.Placement
	if !equalSpec(t.Spec, unplaced) {
		return true
	}
	return n == nil || !satisfies(n, want.Placement)
}

func (p *pass) dirty(s *swarm.Service, t *swarm.Task) bool { return dirty(s, t, p.tx.Node(t.NodeID)) }

// unreachable reports whether a port was published that the task has no address
// for. A task that has its addresses yet to come will have that one too.
func unreachable(s *swarm.Service, t *swarm.Task) bool {
	on := func(ingress bool) bool {
		return slices.ContainsFunc(t.NetworksAttachments, func(a swarm.NetworkAttachment) bool {
			return a.Network.Spec.Ingress == ingress && !a.Network.Spec.Internal
		})
	}
	if s.Spec.EndpointSpec == nil || len(s.Spec.EndpointSpec.Ports) == 0 || t.Status.State == swarm.TaskStateNew || on(true) {
		return false
	}
	return !on(false) || slices.ContainsFunc(s.Spec.EndpointSpec.Ports, published)
}

// phase is where one slot is in an update.
type phase struct {
	*slot
	old    []*swarm.Task // wanted tasks of another spec
	fresh  []*swarm.Task // the update's own tasks, wanted or not, newest first
	trying bool          // one of fresh is wanted
	// reached is when the first of fresh ran or ended; zero when none has yet.
	reached time.Time
	failure *swarm.Task // one of fresh that did not outlive the monitor
}

// rollout sorts the slots that an update touches by what comes next.
type rollout struct {
	waiting []*phase // to be replaced
	retry   []*phase // the new task failed beside the old one, which goes on
	busy    int      // slots whose turn it is
	behind  int      // slots whose turn is over and whose old task still runs
	touched []*phase // slots that have a new task or had one
}

// update carries on the service's rolling update: it looks at where each slot
// is, which is all in the store, and takes the next step.
func (p *pass) update(s *swarm.Service, slots []*slot) {
	if !updating(s) {
		stays := func(t *swarm.Task) bool { return !p.moves(s, t) } // what moves is not an update's
		if paused(s) || !slices.ContainsFunc(slots, func(sl *slot) bool { return slices.ContainsFunc(p.outdated(s, sl), stays) }) {
			return
		}
		s = p.setUpdate(s, swarm.UpdateStateUpdating, messageUpdating)
	}
	config := updateConfig(s)
	r := p.rollout(s, slots, config)
	if p.failing(s, config, r) {
		return
	}
	for _, ph := range r.retry {
		if !mayRestart(ph.slot, ph.fresh[0]) {
			p.pause(s, ph.fresh[0])
			return
		}
		p.newTask(s, ph.slot, swarm.TaskStateReady, nextStart(ph.fresh[0]))
	}
	p.startNext(s, config, r)
	if len(r.waiting)+len(r.retry)+r.busy+r.behind == 0 {
		p.complete(s, config, r.touched)
	}
}

func (p *pass) rollout(s *swarm.Service, slots []*slot, config swarm.UpdateConfig) rollout {
	var r rollout
	for _, sl := range slots {
		ph := p.phaseOf(s, sl, config)
		if len(ph.fresh) > 0 {
			r.touched = append(r.touched, ph)
		}
		turn := ph.reached.Add(config.Delay)
		switch {
		case len(ph.old) == 0 && len(ph.fresh) == 0: // was so already
		case len(ph.old) > 0 && !ph.trying && ph.reached.IsZero():
			r.waiting = append(r.waiting, ph)
		case len(ph.old) > 0 && !ph.trying:
			r.retry = append(r.retry, ph)
		case ph.reached.IsZero():
			r.busy++
		case p.now.Before(turn):
			p.at(turn)
			r.busy++
		case len(ph.old) > 0:
			r.behind++
		}
	}
	return r
}

// supersede stops the tasks of the slot in whose place another one runs: those
// of an older spec, then the older ones.
func (p *pass) supersede(s *swarm.Service, sl *slot) {
	all := sl.wanted()
	if len(all) < 2 {
		return
	}
	isDirty := func(t *swarm.Task) int {
		if p.dirty(s, t) {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(all, func(a, b *swarm.Task) int { return cmp.Compare(isDirty(a), isDirty(b)) })
	i := slices.IndexFunc(all, func(t *swarm.Task) bool { return t.Status.State == swarm.TaskStateRunning })
	if i < 0 {
		return
	}
	for _, t := range all[i+1:] {
		p.desire(sl, t, swarm.TaskStateShutdown)
	}
}

func paused(s *swarm.Service) bool {
	return s.UpdateStatus != nil &&
		(s.UpdateStatus.State == swarm.UpdateStatePaused || s.UpdateStatus.State == swarm.UpdateStateRollbackPaused)
}

func updating(s *swarm.Service) bool {
	return rollingBack(s) || s.UpdateStatus != nil && s.UpdateStatus.State == swarm.UpdateStateUpdating
}

// outdated returns the slot's wanted tasks that an update would replace.
func (p *pass) outdated(s *swarm.Service, sl *slot) []*swarm.Task {
	var old []*swarm.Task
	for _, t := range sl.wanted() {
		if p.dirty(s, t) {
			old = append(old, t)
		}
	}
	return old
}

func (p *pass) phaseOf(s *swarm.Service, sl *slot, config swarm.UpdateConfig) *phase {
	ph := &phase{slot: sl, old: p.outdated(s, sl)}
	var started time.Time
	if s.UpdateStatus.StartedAt != nil {
		started = *s.UpdateStatus.StartedAt
	}
	for _, t := range sl.tasks {
		if t.CreatedAt.Before(started) || t.DesiredState == swarm.TaskStateRemove || !equalSpec(t.Spec, s.Spec.TaskTemplate) || unreachable(s, t) {
			continue
		}
		ph.fresh = append(ph.fresh, t)
		ph.trying = ph.trying || wanted(t)
		ran, hasRun := ranFor(t)
		switch {
		case t.Status.State == swarm.TaskStateRunning:
			ph.reached = t.Status.Timestamp
		case ended(t):
			ph.reached = t.Status.Timestamp.Add(-ran)
			if !hasRun || ran <= config.Monitor {
				ph.failure = t
			}
		}
	}
	return ph
}

// failing acts on new tasks that failed within the monitor period, once they are
// too many of the slots that the update touches. It reports whether the update
// goes no further.
func (p *pass) failing(s *swarm.Service, config swarm.UpdateConfig, r rollout) bool {
	var failures int
	var last *swarm.Task
	for _, ph := range r.touched {
		if ph.failure == nil {
			continue
		}
		failures++
		if last == nil || ph.failure.Status.Timestamp.After(last.Status.Timestamp) {
			last = ph.failure
		}
	}
	total := len(r.waiting) + len(r.touched)
	if last == nil || config.FailureAction == swarm.UpdateFailureActionContinue ||
		float32(failures)/float32(total) <= config.MaxFailureRatio {
		return false
	}
	if config.FailureAction == swarm.UpdateFailureActionRollback && s.PreviousSpec != nil && !rollingBack(s) {
		c := *s
		c.Spec, c.PreviousSpec = *s.PreviousSpec, nil
		if err := resolve(p.tx, &c); err != nil {
			p.setUpdate(s, swarm.UpdateStatePaused, becauseOf("update paused", last)+"; it cannot be rolled back: "+err.Error())
			return true
		}
		p.setUpdate(&c, swarm.UpdateStateRollbackStarted, becauseOf("update rolled back", last))
		return true
	}
	p.pause(s, last)
	return true
}

// pause stops the update where it is, because of the task.
func (p *pass) pause(s *swarm.Service, t *swarm.Task) {
	if rollingBack(s) {
		p.setUpdate(s, swarm.UpdateStateRollbackPaused, becauseOf("rollback paused", t))
		return
	}
	p.setUpdate(s, swarm.UpdateStatePaused, becauseOf("update paused", t))
}

// becauseOf words what a task's failure led to as Swarm does.
func becauseOf(what string, t *swarm.Task) string {
	return what + " due to failure or early termination of task " + t.ID
}

// startNext replaces the tasks of as many waiting slots as the parallelism
// leaves room for, those that do not run first: they have nothing to lose.
func (p *pass) startNext(s *swarm.Service, config swarm.UpdateConfig, r rollout) {
	slices.SortStableFunc(r.waiting, func(a, b *phase) int { return cmp.Compare(a.running(), b.running()) })
	for i, ph := range r.waiting {
		if config.Parallelism > 0 && uint64(r.busy+i) >= config.Parallelism {
			return
		}
		// What an interrupted update left behind serves when it is right, and
		// stops when it is wrong; a task that runs stays until the new one does,
		// if the order is so.
		fits := len(ph.wanted()) > len(ph.old)
		for _, t := range ph.old {
			if fits || config.Order == swarm.UpdateOrderStopFirst || t.Status.State != swarm.TaskStateRunning {
				p.desire(ph.slot, t, swarm.TaskStateShutdown)
			}
		}
		if !fits {
			p.newTask(s, ph.slot, swarm.TaskStateReady, time.Time{})
		}
	}
}

func (ph *phase) running() int {
	n := 0
	for _, t := range ph.old {
		if t.Status.State == swarm.TaskStateRunning {
			n++
		}
	}
	return n
}

// complete ends the update once the last new task has been watched for the
// monitor period.
func (p *pass) complete(s *swarm.Service, config swarm.UpdateConfig, touched []*phase) {
	watch := config.Monitor
	if config.Delay >= watch {
		watch = config.Delay + time.Second
	}
	for _, ph := range touched {
		if until := ph.reached.Add(watch); p.now.Before(until) {
			p.at(until)
			return
		}
	}
	if rollingBack(s) {
		p.setUpdate(s, swarm.UpdateStateRollbackCompleted, messageRolledBack)
		return
	}
	p.setUpdate(s, swarm.UpdateStateCompleted, messageUpdated)
}

// setUpdate writes a copy of the service with a new update state.
func (p *pass) setUpdate(s *swarm.Service, state swarm.UpdateState, message string) *swarm.Service {
	c := *s
	u := swarm.UpdateStatus{State: state, Message: message}
	now := p.now.UTC()
	if s.UpdateStatus != nil {
		u.StartedAt = s.UpdateStatus.StartedAt
	}
	switch state {
	case swarm.UpdateStateUpdating:
		u.StartedAt = &now
	case swarm.UpdateStateCompleted, swarm.UpdateStateRollbackCompleted:
		u.CompletedAt = &now
	}
	c.UpdateStatus = &u
	p.put(&c)
	return &c
}

// String names the slot for a test or a log.
func (k slotKey) String() string {
	if k.node != "" {
		return k.node
	}
	return fmt.Sprint(k.number)
}
