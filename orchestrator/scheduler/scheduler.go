// Package scheduler decides which node runs a task: filters, then a ranking.
//
// It is pure: what it knows comes in as the stored objects and what it decides
// goes out as values. It reads no store, starts nothing, keeps nothing between
// two passes, and decides neither how many tasks there are nor when one moves.
package scheduler

import (
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// State is what a scheduler decides on.
type State struct {
	// Nodes are all nodes of the swarm, sorted by ID.
	Nodes []*swarm.Node
	// Tasks are all stored tasks: those that hold a place count against it,
	// those that failed lately count against their node.
	Tasks []*swarm.Task
	// HostPorts are, by service, the ports that each of its tasks binds on its node.
	HostPorts map[string][]swarm.PortConfig
	// Strategy orders the nodes that could run a task; nil is Spread.
	Strategy Strategy
}

// Decision is the answer for one task.
type Decision struct {
	// Node is the ID of the chosen node, empty when there is none.
	Node string
	// Why says for the user why there is none, empty when there is one.
	Why string
}

const (
	// A node on which a service failed so often within the window is chosen
	// only when all others are worse: the fault may be the node's.
	maxFailures   = 5
	failureWindow = 5 * time.Minute
)

// Scheduler places tasks one after the other; each placement counts for the next.
type Scheduler struct {
	hosts     []*host
	byID      map[string]*host
	hostPorts map[string][]swarm.PortConfig
	strategy  Strategy
}

// host is a node with what its tasks take of it.
type host struct {
	*swarm.Node
	cpus, memory int64 // not reserved, in billionths of a CPU and in bytes
	tasks        int
	perService   map[string]int
	failures     map[string]int
	ports        map[hostPort]int
}

type hostPort struct {
	protocol string
	port     uint32
}

// New counts what the tasks of the state take of its nodes, at the given time.
func New(state State, now time.Time) *Scheduler {
	s := &Scheduler{
		hosts:     make([]*host, 0, len(state.Nodes)),
		byID:      make(map[string]*host, len(state.Nodes)),
		hostPorts: state.HostPorts,
		strategy:  state.Strategy,
	}
	if s.strategy == nil {
		s.strategy = Spread
	}
	for _, n := range state.Nodes {
		h := &host{
			Node:       n,
			cpus:       n.Description.Resources.NanoCPUs,
			memory:     n.Description.Resources.MemoryBytes,
			perService: map[string]int{},
			failures:   map[string]int{},
			ports:      map[hostPort]int{},
		}
		s.hosts = append(s.hosts, h)
		s.byID[n.ID] = h
	}
	for _, t := range state.Tasks {
		h := s.byID[t.NodeID]
		if h == nil {
			continue
		}
		if holds(t) {
			s.charge(h, t)
		}
		if failed(t) && now.Sub(t.Status.Timestamp) < failureWindow {
			h.failures[t.ServiceID]++
		}
	}
	return s
}

// Place chooses the node for a task that has none. A task that belongs to a node
// already, as those of a global service do, is only checked against that one.
// The choice counts for the tasks after it.
func (s *Scheduler) Place(t *swarm.Task) Decision {
	pipeline := newPipeline(s, t)
	candidates := s.hosts
	if t.NodeID != "" {
		candidates = nil
		if h := s.byID[t.NodeID]; h != nil {
			candidates = []*host{h}
		}
	}
	var fits []*host
	for _, h := range candidates {
		if pipeline.passes(h) {
			fits = append(fits, h)
		}
	}
	if len(fits) == 0 {
		return Decision{Why: pipeline.explain()}
	}
	best := choose(t, preferred(t, fits), s.strategy)
	s.charge(best, t)
	return Decision{Node: best.ID}
}

// charge counts t on h. A task that is being stopped still holds its resources
// and ports, but it is no longer one of the node's share.
func (s *Scheduler) charge(h *host, t *swarm.Task) {
	r := reservations(t)
	h.cpus -= r.NanoCPUs
	h.memory -= r.MemoryBytes
	for _, p := range s.hostPorts[t.ServiceID] {
		h.ports[hostPort{string(p.Protocol), p.PublishedPort}]++
	}
	if active(t) {
		h.tasks++
		h.perService[t.ServiceID]++
	}
}

// holds reports whether the task takes a place on its node.
func holds(t *swarm.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateAssigned, swarm.TaskStateAccepted, swarm.TaskStatePreparing,
		swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning:
		return true
	}
	return false
}

// active reports whether the task is wanted: not one that is to stop.
func active(t *swarm.Task) bool {
	return t.DesiredState == swarm.TaskStateReady || t.DesiredState == swarm.TaskStateRunning
}

func failed(t *swarm.Task) bool {
	return t.Status.State == swarm.TaskStateFailed || t.Status.State == swarm.TaskStateRejected
}

func reservations(t *swarm.Task) swarm.Resources {
	if t.Spec.Resources == nil || t.Spec.Resources.Reservations == nil {
		return swarm.Resources{}
	}
	return *t.Spec.Resources.Reservations
}

// preferred narrows the hosts by the task's placement preferences: at each, to
// those whose label value has the fewest tasks of the service. A node without
// the label counts as one with an empty value.
func preferred(t *swarm.Task, hosts []*host) []*host {
	if t.Spec.Placement == nil {
		return hosts
	}
	for _, pref := range t.Spec.Placement.Preferences {
		if pref.Spread == nil {
			continue
		}
		groups, count := map[string][]*host{}, map[string]int{}
		for _, h := range hosts {
			value, known := labelOf(h.Node, pref.Spread.SpreadDescriptor)
			if !known {
				continue
			}
			groups[value] = append(groups[value], h)
			count[value] += h.perService[t.ServiceID]
		}
		var best string
		found := false
		for value := range groups {
			if !found || count[value] < count[best] || count[value] == count[best] && value < best {
				best, found = value, true
			}
		}
		if found {
			hosts = groups[best]
		}
	}
	return hosts
}

// labelOf returns the value of a preference's label on the node. known is false
// for what is no label at all: such a preference is ignored.
func labelOf(n *swarm.Node, descriptor string) (value string, known bool) {
	if name, ok := cutPrefixFold(descriptor, "node.labels."); ok {
		return n.Spec.Labels[name], true
	}
	if name, ok := cutPrefixFold(descriptor, "engine.labels."); ok {
		return n.Description.Engine.Labels[name], true
	}
	return "", false
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) > len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return "", false
}

// choose returns the first host in the strategy's order.
func choose(t *swarm.Task, hosts []*host, strategy Strategy) *host {
	return slices.MinFunc(hosts, func(a, b *host) int {
		return strategy(a.load(t.ServiceID), b.load(t.ServiceID))
	})
}

func (h *host) load(service string) Load {
	return Load{
		NodeID:       h.ID,
		Failing:      h.failures[service] >= maxFailures,
		ServiceTasks: h.perService[service],
		Tasks:        h.tasks,
	}
}
