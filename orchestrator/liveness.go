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
	// leaveTime is what a node that leaves may take to stop a task, over its grace
	// period: it tells the managers first, so that they replace its tasks at once,
	// then the peers for up to 2 s, and stops all its tasks at the same time then.
	leaveTime = 10 * time.Second

	messageLeft = "the node has left the swarm"
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
			p.giveUp(n)
		}
	}
}

// giveUp orphans the tasks of a node that is down when their time is over. One
// that has left has stopped them by then; of another one nobody knows.
func (p *pass) giveUp(n *swarm.Node) {
	for _, t := range p.tx.TasksByNode(n.ID) {
		if !assigned(t) {
			continue
		}
		until := n.UpdatedAt.Add(orphanAfter)
		if n.Status.Message == messageLeft {
			until = n.UpdatedAt.Add(gracePeriod(t) + leaveTime)
		}
		if p.now.Before(until) {
			p.at(until)
			continue
		}
		p.setStatus(t, swarm.TaskStateOrphaned, "the node is gone", "")
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
