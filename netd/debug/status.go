package debug

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/balancer"
	"netd/netd/task"
)

// Verdict is how well the node does its part.
type Verdict string

const (
	// Healthy: all is as it should be.
	Healthy Verdict = "HEALTHY"
	// Inactive: the node is in no swarm, and nothing is wrong with that.
	Inactive Verdict = "INACTIVE"
	// Degraded: traffic flows, but something needs a look.
	Degraded Verdict = "DEGRADED"
	// Broken: something that should work does not.
	Broken Verdict = "BROKEN"
)

// Status is the answer of netd status.
type Status struct {
	Verdict Verdict
	// Reasons say why the verdict is not HEALTHY, each with its remedy.
	Reasons []string
	Version string
	Node    string
	ID      netd.NodeID
	Role    string
	Up      time.Duration
	// Generation is the assignment in force; Changes counts what the daemon
	// changed in the kernel since its start, LastChanges are the newest of them.
	Generation  uint64
	Changes     int
	LastChanges []string
	// Lines are the facts by part: control, gossip, data, lb, tasks, drift.
	Lines []Line
}

// Line is one part's facts in words.
type Line struct{ Part, Text string }

// Judge gives the verdict. Pure.
func Judge(f Facts, drift []string, driftErr error) Status {
	s := Status{Verdict: Healthy, Version: f.Version, Node: f.Name, ID: f.ID, Role: role(f), Up: f.Up.Round(time.Second), Generation: f.Generation, Changes: f.Changes, LastChanges: f.LastChanges, Reasons: []string{}}
	if f.State == swarm.LocalNodeStateInactive {
		s.Verdict = Inactive
		s.Reasons = append(s.Reasons, "this node is in no swarm; run 'docker -H unix://SOCKET swarm init' or 'swarm join'")
		s.Lines = []Line{{"lb", balancerLine(f)}}
		return s
	}
	worse := func(v Verdict, format string, args ...any) {
		s.Reasons = append(s.Reasons, fmt.Sprintf(format, args...))
		if s.Verdict != Broken {
			s.Verdict = v
		}
	}
	if f.Error != "" {
		worse(Broken, "%s", f.Error)
	}
	if f.ApplyError != "" {
		worse(Broken, "the kernel could not be made as wanted: %s; see 'netd drift'", f.ApplyError)
	}
	if !f.Connected {
		worse(Degraded, "no manager answers at %s; tasks and names go on as they were; check that this TCP port can be reached from here", strings.Join(f.Managers, " or "))
	}
	for _, name := range unreachable(f) {
		worse(Degraded, "node %s does not answer gossip; its backends get no new connections; check TCP and UDP port %d", name, f.GossipPort)
	}
	if driftErr != nil {
		worse(Degraded, "drift could not be read: %v", driftErr)
	}
	if len(drift) > 0 {
		worse(Degraded, "%d kernel objects differ from what is wanted and will be mended within seconds; see 'netd drift'", len(drift))
	}
	s.Lines = []Line{
		{"control", controlLine(f)}, {"gossip", gossipLine(f)}, {"data", dataLine(f)},
		{"lb", balancerLine(f)}, {"tasks", tasksLine(f)}, {"drift", fmt.Sprintf("%d objects; %d changed since the daemon's start", len(drift), f.Changes)},
	}
	return s
}

func role(f Facts) string {
	switch {
	case f.State != swarm.LocalNodeStateActive:
		return string(f.State)
	case f.Leader:
		return "manager, leader"
	case f.Manager:
		return "manager"
	}
	return "worker"
}

func unreachable(f Facts) []string {
	var out []string
	if f.View == nil {
		return nil
	}
	for _, n := range f.Snapshot.Nodes {
		if n.ID != f.ID && !f.View.Members[n.ID].Alive { // one that was never met is no better
			out = append(out, n.Name)
		}
	}
	slices.Sort(out)
	return out
}

func controlLine(f Facts) string {
	if !f.Connected {
		return fmt.Sprintf("no session with a manager; assignment %d is kept", f.Generation)
	}
	return fmt.Sprintf("session open, assignment %d applied %s ago in %s", f.Generation, f.Applied.Round(time.Second), f.Took.Round(time.Millisecond))
}

func gossipLine(f Facts) string {
	if f.View == nil {
		return "not begun"
	}
	alive := 0
	for _, m := range f.View.Members {
		if m.Alive {
			alive++
		}
	}
	return fmt.Sprintf("%d/%d members alive", alive, len(f.View.Members))
}

func dataLine(f Facts) string {
	return fmt.Sprintf("%d networks here, mtu %d", len(f.Wanted.Routers), f.MTU)
}

func balancerLine(f Facts) string {
	vips, ready, draining, empty := 0, 0, 0, 0
	for _, r := range f.Wanted.Routers {
		for _, s := range r.Services {
			vips++
			up := 0
			for _, b := range s.Backends {
				if b.State == balancer.Ready {
					up++
				} else {
					draining++
				}
			}
			ready += up
			if up == 0 {
				empty++
			}
		}
	}
	return fmt.Sprintf("%s (%s): %d VIPs, %d backends ready, %d draining, %d VIPs empty", f.Balancer, f.BalancerWhy, vips, ready, draining, empty)
}

func tasksLine(f Facts) string {
	running := 0
	for _, t := range f.Tasks {
		if t.Phase == task.Running {
			running++
		}
	}
	return fmt.Sprintf("%d running", running)
}

// Print writes s for a person.
func (s Status) Print(w io.Writer) {
	head := fmt.Sprintf("netd %s · node %s (%s) · up %s", s.Version, s.Node, s.Role, s.Up)
	fmt.Fprintf(w, "%s  %s\n", head, s.Verdict)
	for _, r := range s.Reasons {
		fmt.Fprintf(w, "  why: %s\n", r)
	}
	for _, l := range s.Lines {
		fmt.Fprintf(w, "%-8s %s\n", l.Part, strings.TrimSpace(l.Text))
	}
}

// Code is the exit status of the command: 0 fine, 1 degraded, 2 broken.
func (s Status) Code() int {
	switch s.Verdict {
	case Degraded:
		return 1
	case Broken:
		return 2
	}
	return 0
}
