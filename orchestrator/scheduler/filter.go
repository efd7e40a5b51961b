package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// filter says of a node whether it may run the task. why words the refusal for a
// number of nodes; users and their tools search for these texts.
type filter struct {
	fits    func(*host) bool
	why     func(nodes int) string
	refused int
}

// pipeline is the filters that matter to one task, in the order in which the
// first refusal counts.
type pipeline []*filter

func newPipeline(s *Scheduler, t *swarm.Task) pipeline {
	p := pipeline{{fits: func(h *host) bool { return Accepting(h.Node) }, why: unavailable}}
	if r := reservations(t); r.NanoCPUs > 0 || r.MemoryBytes > 0 {
		p = append(p, &filter{
			fits: func(h *host) bool { return r.NanoCPUs <= h.cpus && r.MemoryBytes <= h.memory },
			why:  onNodes("insufficient resources"),
		})
	}
	if t.Spec.Placement != nil && len(t.Spec.Placement.Constraints) > 0 {
		constraints, err := ParseConstraints(t.Spec.Placement.Constraints)
		p = append(p, &filter{
			fits: func(h *host) bool { return err == nil && constraints.Match(h.Node) },
			why:  onNodes("scheduling constraints not satisfied"),
		})
	}
	if t.Spec.Placement != nil && len(t.Spec.Placement.Platforms) > 0 {
		platforms := t.Spec.Placement.Platforms
		p = append(p, &filter{
			fits: func(h *host) bool { return runsOn(platforms, h.Description.Platform) },
			why:  onNodes("unsupported platform"),
		})
	}
	if ports := s.hostPorts[t.ServiceID]; len(ports) > 0 {
		p = append(p, &filter{
			fits: func(h *host) bool {
				return !slices.ContainsFunc(ports, func(p swarm.PortConfig) bool {
					return h.ports[hostPort{string(p.Protocol), p.PublishedPort}] > 0
				})
			},
			why: onNodes("host-mode port already in use"),
		})
	}
	if t.Spec.Placement != nil && t.Spec.Placement.MaxReplicas > 0 {
		limit := t.Spec.Placement.MaxReplicas
		p = append(p, &filter{
			fits: func(h *host) bool { return uint64(h.perService[t.ServiceID]) < limit },
			why:  func(int) string { return "max replicas per node limit exceed" },
		})
	}
	return p
}

func (p pipeline) passes(h *host) bool {
	for _, f := range p {
		if !f.fits(h) {
			f.refused++
			return false
		}
	}
	return true
}

// explain names the reasons, the most frequent first.
func (p pipeline) explain() string {
	sorted := slices.Clone(p)
	slices.SortStableFunc(sorted, func(a, b *filter) int { return b.refused - a.refused })
	var reasons []string
	for _, f := range sorted {
		if f.refused > 0 {
			reasons = append(reasons, f.why(f.refused))
		}
	}
	if len(reasons) == 0 {
		return "no suitable node"
	}
	return "no suitable node (" + strings.Join(reasons, "; ") + ")"
}

func unavailable(nodes int) string {
	if nodes == 1 {
		return "1 node not available for new tasks"
	}
	return fmt.Sprintf("%d nodes not available for new tasks", nodes)
}

func onNodes(what string) func(int) string {
	return func(nodes int) string {
		if nodes == 1 {
			return what + " on 1 node"
		}
		return fmt.Sprintf("%s on %d nodes", what, nodes)
	}
}

// Accepting reports whether the node takes new tasks: up, neither paused nor
// drained.
func Accepting(n *swarm.Node) bool {
	return n.Status.State == swarm.NodeStateReady && n.Spec.Availability == swarm.NodeAvailabilityActive
}

// Suits reports whether the node is one that the placement allows, whatever
// else runs there: constraints and platform, but not room.
func Suits(n *swarm.Node, placement *swarm.Placement) bool {
	if placement == nil {
		return true
	}
	constraints, err := ParseConstraints(placement.Constraints)
	return err == nil && constraints.Match(n) && runsOn(placement.Platforms, n.Description.Platform)
}

// runsOn reports whether an image that exists for the platforms runs on the
// node's. An empty list or field allows everything.
func runsOn(platforms []swarm.Platform, node swarm.Platform) bool {
	if len(platforms) == 0 {
		return true
	}
	return slices.ContainsFunc(platforms, func(p swarm.Platform) bool {
		return (p.OS == "" || strings.EqualFold(p.OS, node.OS)) &&
			(p.Architecture == "" || architecture(p.Architecture) == architecture(node.Architecture))
	})
}

// architecture maps the kernel's name of a processor to the one that images use.
func architecture(name string) string {
	switch name = strings.ToLower(name); name {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return name
}
