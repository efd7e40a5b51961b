package orchestrator

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"netd/orchestrator/scheduler"
)

// schedule gives each pending task a node, the oldest first. One for which there
// is none stays pending and says why.
func (p *pass) schedule() {
	tasks := p.tx.Tasks()
	var pending []*swarm.Task
	for _, t := range tasks {
		if t.Status.State == swarm.TaskStatePending && wanted(t) {
			pending = append(pending, t)
		}
	}
	if len(pending) == 0 {
		return
	}
	slices.SortFunc(pending, inTurn)
	s := scheduler.New(scheduler.State{Nodes: p.tx.Nodes(), Tasks: tasks, HostPorts: p.hostPorts()}, p.now)
	for _, t := range pending {
		d := s.Place(t)
		if d.Node == "" {
			p.setStatus(t, swarm.TaskStatePending, t.Status.Message, d.Why)
			continue
		}
		c := *t
		c.NodeID = d.Node
		c.Status = swarm.TaskStatus{Timestamp: p.now, State: swarm.TaskStateAssigned, Message: "scheduler assigned task to node"}
		p.put(&c)
	}
}

// hostPorts returns, by service, the ports that its tasks bind on their nodes.
func (p *pass) hostPorts() map[string][]swarm.PortConfig {
	all := map[string][]swarm.PortConfig{}
	for _, s := range p.tx.Services() {
		for _, port := range s.Endpoint.Ports {
			if !published(port) && port.PublishedPort != 0 {
				all[s.ID] = append(all[s.ID], port)
			}
		}
	}
	return all
}
