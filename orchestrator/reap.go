package orchestrator

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"
)

// defaultHistory is how many tasks of a slot are kept, the current one included.
const defaultHistory = 5

// reap deletes the tasks that nobody needs any more: those to be removed once
// nothing of them can still run, and of each slot's history the oldest.
func (p *pass) reap() {
	limit := int64(defaultHistory)
	if c := p.tx.Cluster(); c != nil && c.Spec.Orchestration.TaskHistoryRetentionLimit != nil {
		limit = *c.Spec.Orchestration.TaskHistoryRetentionLimit
	}
	byService := map[string][]*swarm.Task{}
	for _, t := range p.tx.Tasks() {
		switch {
		case t.DesiredState != swarm.TaskStateRemove && p.tx.Service(t.ServiceID) == nil:
			c := *t
			c.DesiredState = swarm.TaskStateRemove
			p.put(&c)
		case t.DesiredState == swarm.TaskStateRemove && dead(t):
			p.delete(t)
		case t.DesiredState != swarm.TaskStateRemove:
			byService[t.ServiceID] = append(byService[t.ServiceID], t)
		}
	}
	if limit < 0 {
		return
	}
	for _, id := range sortedKeys(byService) {
		for _, sl := range slotsOf(p.tx.Service(id), byService[id]) {
			p.reapSlot(sl, limit)
		}
	}
}

// reapSlot deletes the oldest dead tasks of the slot over the limit. The newest
// is kept whatever it is, for it tells whether the slot is finished, and so are
// as many as it takes to count a restart policy's attempts.
func (p *pass) reapSlot(sl *slot, limit int64) {
	if r := sl.tasks[0].Spec.RestartPolicy; r != nil && r.MaxAttempts != nil && *r.MaxAttempts > 0 {
		limit = max(limit, int64(min(*r.MaxAttempts, maxReplicas))+1)
	}
	over := int64(len(sl.tasks)) - limit
	for _, t := range slices.Backward(sl.tasks[1:]) {
		if over <= 0 {
			return
		}
		if dead(t) {
			p.delete(t)
			over--
		}
	}
}
