package orchestrator

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/scheduler"
	"pgregory.net/rapid"
)

// inBubble runs a property inside a synctest bubble, where a test may not be
// asked for its deadline: rapid asks only a *testing.T.
type inBubble struct{ testing.TB }

// Whatever users, nodes and leaders do, in whatever order: after every decision
// a second one writes nothing, no address, VIP, VNI, subnet or port is held twice
// (the audit), and no task's state goes back (world.pass). Once the nodes are
// back and time has passed, every service runs as wanted or says why not.
func TestDecisionsProperty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(t *rapid.T) {
			w := newWorld(t)
			defer w.close()
			w.addNodes(3)
			w.network("small", "10.9.0.0/28")
			t.Repeat(w.actions())
			clear(w.cut)
			clear(w.failing)
			for _, n := range w.nodes() {
				w.setAvailability(n, swarm.NodeAvailabilityActive)
			}
			w.advance(3 * time.Minute)
			w.checkConverged()
		})
	})
}

func (w *world) actions() map[string]func(*rapid.T) {
	names := []string{"a", "b", "c"}
	images := []string{"ok", "ok", "ok", "slow", "crash", "bad", "done", "stubborn"}
	draw := func(t *rapid.T, what string, from []string) string { return rapid.SampledFrom(from).Draw(t, what) }
	return map[string]func(*rapid.T){
		"create": func(t *rapid.T) {
			s := spec(draw(t, "name", names), draw(t, "image", images), rapid.Uint64Range(0, 5).Draw(t, "replicas"))
			if rapid.Bool().Draw(t, "global") {
				s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
			}
			w.draw(t, &s)
			_, _, err := w.o.CreateService(w.ctx, s)
			w.expect(err, netd.ErrExists, netd.ErrNotFound)
		},
		"update": func(t *rapid.T) {
			image, replicas := draw(t, "image", images), rapid.Uint64Range(0, 5).Draw(t, "replicas")
			err := w.edit(draw(t, "name", names), func(s *swarm.ServiceSpec) {
				if s.Mode.Replicated != nil {
					s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
				}
				s.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: image}
				w.draw(t, s)
			})
			w.expect(err, netd.ErrNotFound)
		},
		"rollback": func(t *rapid.T) {
			s, err := w.o.GetService(w.ctx, draw(t, "name", names), false)
			if err == nil {
				_, err = w.o.UpdateService(w.ctx, s.ID, s.Version.Index, swarm.ServiceSpec{}, true)
			}
			w.expect(err, netd.ErrNotFound, netd.ErrInvalid)
		},
		"remove": func(t *rapid.T) { w.expect(w.o.RemoveService(w.ctx, draw(t, "name", names)), netd.ErrNotFound) },
		"network": func(t *rapid.T) {
			name := draw(t, "network", []string{"big", "wide"})
			if n, err := w.o.GetNetwork(w.ctx, name); err == nil {
				w.expect(w.o.RemoveNetwork(w.ctx, n.ID), netd.ErrInvalid)
				return
			}
			w.network(name, "")
		},
		"availability": func(t *rapid.T) {
			a := rapid.SampledFrom([]swarm.NodeAvailability{"active", "active", "pause", "drain"}).Draw(t, "availability")
			w.setAvailability(draw(t, "node", w.nodes()), a)
		},
		"label": func(t *rapid.T) {
			n, err := w.o.GetNode(w.ctx, draw(t, "node", w.nodes()))
			w.must(err)
			n.Spec.Labels = map[string]string{"zone": draw(t, "zone", []string{"x", "y"})}
			w.must(w.o.UpdateNode(w.ctx, n.ID, n.Version.Index, n.Spec))
		},
		"cut":     func(t *rapid.T) { w.cut[draw(t, "node", w.nodes())] = true },
		"heal":    func(t *rapid.T) { delete(w.cut, draw(t, "node", w.nodes())) },
		"restart": func(t *rapid.T) { w.restart() },
		"remove node": func(t *rapid.T) {
			if nodes := w.nodes(); len(nodes) > 2 {
				w.expect(w.o.RemoveNode(w.ctx, draw(t, "node", nodes), rapid.Bool().Draw(t, "force")), netd.ErrInvalid)
			}
		},
		"kill": func(t *rapid.T) {
			if all := w.store.View().Tasks(); len(all) > 0 {
				w.failing[rapid.SampledFrom(all).Draw(t, "task").ID] = true
			}
		},
		"wait":  func(t *rapid.T) { w.advance(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second) },
		"pass":  func(t *rapid.T) { w.pass() },
		"audit": func(t *rapid.T) { w.o.takeOver(w.ctx) },
	}
}

// draw changes the parts of a spec that the decisions depend on.
func (w *world) draw(t *rapid.T, s *swarm.ServiceSpec) {
	s.TaskTemplate.Networks = nil
	for _, n := range []string{"small", "big"} {
		if _, err := w.o.GetNetwork(w.ctx, n); err == nil && rapid.Bool().Draw(t, n) {
			s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
		}
	}
	s.EndpointSpec = &swarm.EndpointSpec{Mode: "vip"}
	for range rapid.IntRange(0, 2).Draw(t, "ports") {
		s.EndpointSpec.Ports = append(s.EndpointSpec.Ports, swarm.PortConfig{TargetPort: 80})
	}
	s.TaskTemplate.Placement = nil
	if zone := rapid.SampledFrom([]string{"", "", "x", "y"}).Draw(t, "constraint"); zone != "" {
		s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.labels.zone==" + zone}}
	}
	s.UpdateConfig = &swarm.UpdateConfig{
		Parallelism:   rapid.Uint64Range(0, 2).Draw(t, "parallelism"),
		Order:         rapid.SampledFrom([]swarm.UpdateOrder{"start-first", "stop-first"}).Draw(t, "order"),
		FailureAction: rapid.SampledFrom([]swarm.FailureAction{"pause", "continue", "rollback"}).Draw(t, "action"),
		Delay:         time.Duration(rapid.IntRange(0, 3).Draw(t, "delay")) * time.Second,
	}
	s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{
		Condition:   rapid.SampledFrom([]swarm.RestartPolicyCondition{"any", "any", "on-failure", "none"}).Draw(t, "condition"),
		MaxAttempts: ptr(rapid.Uint64Range(0, 2).Draw(t, "attempts")),
	}
}

// expect fails the test for an error that is none of the kinds.
func (w *world) expect(err error, kinds ...error) {
	w.t.Helper()
	if err != nil && !slices.ContainsFunc(kinds, func(k error) bool { return errors.Is(err, k) }) {
		w.t.Fatalf("unexpected error: %v", err)
	}
}

func (w *world) nodes() []string {
	var ids []string
	for _, n := range w.store.View().Nodes() {
		ids = append(ids, n.ID)
	}
	return ids
}

func (w *world) setAvailability(node string, a swarm.NodeAvailability) {
	w.t.Helper()
	n, err := w.o.GetNode(w.ctx, node)
	w.must(err)
	n.Spec.Availability = a
	w.must(w.o.UpdateNode(w.ctx, n.ID, n.Version.Index, n.Spec))
}

// handingOver tells a slot whose task may not stay on its node but goes on there,
// by the order start-first, until the successor that waits for a node runs.
func handingOver(s *swarm.Service, all []*swarm.Task) bool {
	u := s.Spec.UpdateConfig
	if len(all) != 2 || u == nil || u.Order != swarm.UpdateOrderStartFirst {
		return false
	}
	running := slices.IndexFunc(all, func(t *swarm.Task) bool { return t.Status.State == swarm.TaskStateRunning })
	return running >= 0 && all[1-running].Status.State == swarm.TaskStatePending && all[1-running].Status.Err != ""
}

// checkConverged fails if a service neither runs as wanted nor says why.
func (w *world) checkConverged() {
	w.t.Helper()
	tx := w.store.View()
	for _, s := range tx.Services() {
		slots := slotsOf(s, tx.TasksByService(s.ID))
		filled := 0
		for _, sl := range slots {
			p := w.o.newPass(tx, time.Now())
			switch all := sl.wanted(); {
			case len(all) == 1 || len(all) == 2 && s.UpdateStatus != nil && updating(s):
				filled++
				if t := all[0]; !slices.Contains([]swarm.TaskState{"running", "ready", "rejected", "starting"}, t.Status.State) && t.Status.Err == "" {
					w.t.Fatalf("service %s: task %s hangs in %s\n%s", s.Spec.Name, t.ID, t.Status.State, w.tasks())
				}
			case handingOver(s, all):
				filled++
			case len(all) == 0 && p.finished(s, sl):
				if n := tx.Node(sl.key.node); n == nil || scheduler.Suits(n, s.Spec.TaskTemplate.Placement) {
					filled++
				}
			case len(all) > 0:
				w.t.Fatalf("service %s: slot %v has %d tasks\n%s", s.Spec.Name, sl.key, len(all), w.tasks())
			}
		}
		want := 0
		for _, n := range tx.Nodes() {
			if scheduler.Suits(n, s.Spec.TaskTemplate.Placement) {
				want++
			}
		}
		if s.Spec.Mode.Replicated != nil {
			want = replicas(s)
		}
		if filled != want {
			w.t.Fatalf("service %s: %d of %d slots are filled\n%s", s.Spec.Name, filled, want, w.tasks())
		}
		if limit := 5 * (len(slots) + 1); len(tx.TasksByService(s.ID)) > limit {
			w.t.Fatalf("service %s: more history than %d tasks", s.Spec.Name, limit)
		}
	}
	for _, t := range tx.Tasks() {
		if tx.Service(t.ServiceID) == nil {
			w.t.Fatalf("task %s of a removed service is left\n%s", t.ID, w.tasks())
		}
	}
}

// What is wanted of a task is written in the order of its life: the names of the
// states and their ranks agree with swarmkit's numbers.
func TestRank(t *testing.T) {
	order := []swarm.TaskState{"new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete"}
	for i, s := range order[1:] {
		if rank(s) <= rank(order[i]) {
			t.Errorf("rank of %s: got %d, want more than %d of %s", s, rank(s), rank(order[i]), order[i])
		}
	}
	if rank("unheard-of") != 0 {
		t.Error("an unknown state has a rank")
	}
	if fmt.Sprint(slotKey{number: 3}, slotKey{node: "n1"}) != "3 n1" {
		t.Error("slots are not named")
	}
}
