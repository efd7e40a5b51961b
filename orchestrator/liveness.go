package orchestrator

import (
	"time"

	"github.com/moby/moby/api/types/swarm"
)

const (
	// A node sends a heartbeat every 5 s and counts as down after three misses.
	nodeTimeout = 15 * time.Second
	// A new leader has heard of nobody yet: it gives the nodes time to find it.
	leaderGrace = 30 * time.Second
	// orphanAfter is when the managers give up the tasks of a node that is down:
	// their addresses are given to others then.
	orphanAfter = 24 * time.Hour
)

// liveness declares the nodes down that were not heard of in time. A node comes
// back by its own report, see checkIn.
func (p *pass) liveness() {
	for id := range p.beats {
		if p.tx.Node(id) == nil {
			delete(p.beats, id)
		}
	}
	for _, n := range p.tx.Nodes() {
		switch n.Status.State {
		case swarm.NodeStateReady:
			until, known := p.beats[n.ID]
			if !known {
				until = p.now.Add(leaderGrace)
				p.beats[n.ID] = until
			}
			if p.now.Before(until) {
				p.at(until)
				continue
			}
			c := *n
			c.Status.State, c.Status.Message = swarm.NodeStateDown, "heartbeat failure"
			p.put(&c)
		case swarm.NodeStateDown:
			if until := n.UpdatedAt.Add(orphanAfter); p.now.Before(until) {
				p.at(until)
				continue
			}
			p.orphan(n.ID)
		}
	}
}

// orphan gives up the tasks that the node may still run: nobody will ever say
// that they stopped.
func (p *pass) orphan(node string) {
	for _, t := range p.tx.TasksByNode(node) {
		if assigned(t) {
			p.setStatus(t, swarm.TaskStateOrphaned, "the node is gone", "")
		}
	}
}
