package orchestrator

import (
	"github.com/moby/moby/api/types/swarm"
	"netd/orchestrator/scheduler"
	"time"
)

// cover gives a global service one task on every node that takes new tasks and
// suits it, and returns the slots that an update may touch. A paused node keeps
// the task that it has, untouched.
func (p *pass) cover(s *swarm.Service, slots []*slot) []*slot {
	byNode := map[string]*slot{}
	for _, sl := range slots {
		byNode[sl.key.node] = sl
		if p.tx.Node(sl.key.node) == nil {
			for _, t := range append([]*swarm.Task(nil), sl.tasks...) {
				p.desire(sl, t, swarm.TaskStateRemove)
			}
		}
	}
	var covered []*slot
	for _, n := range p.tx.Nodes() {
		sl := byNode[n.ID]
		if sl == nil {
			sl = &slot{key: slotKey{node: n.ID}}
		}
		if !scheduler.Suits(n, s.Spec.TaskTemplate.Placement) {
			for _, t := range sl.wanted() {
				p.desire(sl, t, swarm.TaskStateShutdown)
			}
			continue
		}
		if !scheduler.Accepting(n) {
			continue
		}
		if len(sl.wanted()) == 0 && !p.finished(s, sl) {
			p.newTask(s, sl, swarm.TaskStateRunning, time.Time{})
		}
		covered = append(covered, sl)
	}
	return covered
}
