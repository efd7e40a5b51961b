package node

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"
	"go.uber.org/goleak"

	"netd"
	"netd/gossip"
	"netd/netd/task"
	"netd/vxlan"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// states filters the reports out of a task's events.
func states(events []string) []string {
	var out []string
	for _, e := range events {
		if state, ok := strings.CutPrefix(e, "report "); ok {
			out = append(out, state)
		}
	}
	return out
}

// A task is prepared, gets its interfaces, is started, and only then told to the
// peers and the managers as ready.
func TestTaskBegins(t *testing.T) {
	inRig(t, func(r *rig) {
		plugged := func(addr string) bool {
			have, _ := fakeOverlay{r.kernel}.Get()
			return slices.ContainsFunc(have.Networks, func(n vxlan.Network) bool {
				return slices.ContainsFunc(n.Ports, func(p vxlan.Port) bool { return p.Addr.String() == addr })
			})
		}
		r.runtime.log = func(format string, args ...any) {
			r.event(format, args...)
			if args[0] == "start" && !plugged("10.0.9.5/24") {
				t.Error("the task is started without its interface")
			}
			if args[0] == "start" && r.gossip.state("shop", "w1") != 0 {
				t.Error("peers heard of the task before it was started")
			}
		}
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		if got, want := r.runtime.calls("w1"), []string{"prepare", "start"}; !slices.Equal(got, want) {
			t.Errorf("the runtime was asked for %v, want %v", got, want)
		}
		if got, want := states(r.heard("w1")), []string{"preparing", "starting", "running"}; !slices.Equal(got, want) {
			t.Errorf("the managers heard %v, want %v", got, want)
		}
		if n := len(r.gossip.applied); n == 0 {
			t.Error("peers were never told what this kernel holds")
		}
		r.until("the managers hear what is in effect", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.reports[len(r.reports)-1].Applied == r.sent
		})
	})
}

// A task that leaves is withdrawn first, waits until the living peers have
// followed and lingers, or until the time is over; then it is stopped, reported,
// and removed once the managers forget it.
func TestTaskLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		after           func(*rig) // what happens after the withdrawal
		atLeast, atMost time.Duration
	}{
		"peers follow at once":   {func(r *rig) { r.gossip.ack("n2") }, drainLinger, drainLinger + 100*time.Millisecond},
		"peers never answer":     {func(*rig) {}, drainTimeout, drainTimeout + 100*time.Millisecond},
		"the peer dies meantime": {func(r *rig) { r.gossip.die("n2") }, drainLinger, drainLinger + 100*time.Millisecond},
		"peers follow late": {func(r *rig) { r.pass(time.Second); r.gossip.ack("n2") },
			time.Second + drainLinger, time.Second + drainLinger + 100*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.assign(func() { r.addPeer("n2"); r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
				r.runs("shop", "w1")
				r.want("w1", swarm.TaskStateShutdown)
				r.until("it is withdrawn", func() bool { return r.gossip.state("shop", "w1") == netd.Draining })
				withdrawn := time.Now()
				c.after(r)
				r.until("it is stopped", func() bool { return slices.Contains(r.runtime.calls("w1"), "stop") })
				if took := time.Since(withdrawn); took < c.atLeast || took > c.atMost {
					t.Errorf("it was stopped %s after its withdrawal, want %s to %s", took, c.atLeast, c.atMost)
				}
				r.until("its end is reported", func() bool { return r.state("w1") == swarm.TaskStateShutdown })
				if s := r.gossip.state("shop", "w1"); s != 0 {
					t.Errorf("peers still hear that it is %s", s)
				}
				if slices.Contains(r.runtime.calls("w1"), "remove") {
					t.Error("it was removed while the managers still list it")
				}
				r.assign(func() { r.tasks = nil })
				r.until("it is removed", func() bool { return len(r.runtime.List()) == 0 })
				if got, want := r.runtime.calls("w1"), []string{"prepare", "start", "stop", "remove"}; !slices.Equal(got, want) {
					t.Errorf("the runtime was asked for %v, want %v", got, want)
				}
			})
		})
	}
}

func (g *fakeGossip) die(peer netd.NodeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.peers[peer]
	m.Alive = false
	g.peers[peer] = m
	ring(g.bell)
}

// A task that the managers forget while it runs is taken out of service, stopped
// and removed; nobody is told of it any more.
func TestForgottenTask(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		before := len(states(r.heard("w1")))
		r.assign(func() { r.tasks = nil })
		r.until("it is gone", func() bool { return len(r.runtime.List()) == 0 })
		if got, want := r.runtime.calls("w1"), []string{"prepare", "start", "stop", "remove"}; !slices.Equal(got, want) {
			t.Errorf("the runtime was asked for %v, want %v", got, want)
		}
		if got := states(r.heard("w1"))[before:]; len(got) > 0 || r.gossip.state("shop", "w1") != 0 {
			t.Errorf("managers heard %v of it, peers %s", got, r.gossip.state("shop", "w1"))
		}
		r.pass(time.Second)
		if len(r.node.tasks) > 0 {
			t.Errorf("%d tasks are remembered for nothing", len(r.node.tasks))
		}
	})
}

// A network that cannot be made keeps its own task from starting and no other
// one; the error is there to be seen, and once mended the task comes up.
func TestOneBadNetwork(t *testing.T) {
	inRig(t, func(r *rig) {
		bad := errors.New("no such device")
		r.assign(func() {
			r.addNetwork("shop", 9)
			r.addNetwork("vault", 8)
			r.kernel.bad[RouterNetNS(r.node.NetNSDir, "vault")] = bad
			r.addTask("w1", "shop", 5)
			r.addTask("v1", "vault", 5)
		})
		r.runs("shop", "w1")
		r.pass(20 * time.Second)
		if got := r.runtime.calls("v1"); !slices.Equal(got, []string{"prepare"}) || r.state("v1") != swarm.TaskStatePreparing {
			t.Errorf("on the bad network: asked for %v, state %s", got, r.state("v1"))
		}
		if done := r.node.Applied(); !errors.Is(done.Err, bad) {
			t.Errorf("the outcome is %v, want %v", done.Err, bad)
		}
		// What was plugged stays in service when its own network goes bad later.
		r.kernel.mu.Lock()
		r.kernel.bad[RouterNetNS(r.node.NetNSDir, "shop")] = bad
		r.kernel.mu.Unlock()
		r.pass(10 * time.Second)
		if s := r.gossip.state("shop", "w1"); s != netd.Ready {
			t.Errorf("the task of the network that broke later is %s", s)
		}
		r.kernel.mu.Lock()
		clear(r.kernel.bad)
		r.kernel.mu.Unlock()
		r.runs("vault", "v1")
		if done := r.node.Applied(); done.Err != nil {
			t.Errorf("after the repair: %v", done.Err)
		}
	})
}

// An image that the runtime does not know is reported as a rejection, in the
// runtime's words, and nothing is made for it.
func TestRejectedImage(t *testing.T) {
	inRig(t, func(r *rig) {
		r.runtime.refuse["nginx"] = errors.New("image nginx is not known")
		r.assign(func() {
			r.addNetwork("shop", 9)
			r.addTask("w1", "shop", 5)
			r.tasks[0].Spec.ContainerSpec.Image = "nginx"
		})
		r.until("it is rejected", func() bool { return r.state("w1") == swarm.TaskStateRejected })
		r.pass(20 * time.Second)
		if s := r.tasks[0].Status; s.Err != "image nginx is not known" {
			t.Errorf("the reason is %q", s.Err)
		}
		if got := r.heard("w1"); !slices.Equal(got, []string{"report rejected"}) {
			t.Errorf("got %v, want one report", got)
		}
	})
}

// A task that cannot be prepared or started is given back to the managers with
// the reason, once; it is not tried for ever.
func TestTaskThatCannotBe(t *testing.T) {
	for verb, want := range map[string]swarm.TaskState{"prepare": swarm.TaskStateRejected, "start": swarm.TaskStateFailed} {
		t.Run(verb, func(t *testing.T) {
			inRig(t, func(r *rig) {
				r.runtime.fail[verb+" w1"] = errors.New(verb + ": no space left on device")
				r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5); r.addTask("w2", "shop", 6) })
				r.until("it is given back", func() bool { return r.state("w1") == want })
				r.runs("shop", "w2")
				r.pass(20 * time.Second)
				if s := r.tasks[0].Status; s.Err != verb+": no space left on device" {
					t.Errorf("the reason is %q", s.Err)
				}
				if calls := r.runtime.calls("w1"); calls[len(calls)-1] != verb || slices.Index(calls, verb) != len(calls)-1 {
					t.Errorf("the runtime was asked for %v", calls)
				}
				r.want("w1", swarm.TaskStateShutdown)
				r.assign(func() { r.tasks = r.tasks[1:] })
				r.until("nothing of it is left", func() bool { return len(r.runtime.List()) == 1 })
			})
		})
	}
}

// A stop that fails is tried again at a steady pace.
func TestStopIsTriedAgain(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		r.runtime.fail["stop w1"] = errors.New("no such process")
		r.want("w1", swarm.TaskStateShutdown)
		r.pass(10 * time.Second)
		if n := len(r.runtime.calls("w1")) - 2; n < 5 || n > 11 {
			t.Errorf("tried %d times in 10 s", n)
		}
		r.runtime.mu.Lock()
		clear(r.runtime.fail)
		r.runtime.mu.Unlock()
		r.until("it has ended", func() bool { return r.state("w1") == swarm.TaskStateShutdown })
	})
}

// Before its first assignment a node touches nothing, whatever it finds.
func TestNothingBeforeTheFirstAssignment(t *testing.T) {
	inRig(t, func(r *rig) {
		r.runtime.change("old", func(s *task.Status) { s.ID, s.Phase = "old", task.Running })
		r.pass(time.Minute)
		if len(r.events)+len(r.kernel.wanted)+len(r.reports) > 0 || r.gossip.version != 0 {
			t.Errorf("events %v, %d times the kernel, gossip version %d", r.events, len(r.kernel.wanted), r.gossip.version)
		}
		if r.node.Applied() != nil || r.node.Desired() != nil {
			t.Error("there is an outcome of nothing")
		}
		if _, err := r.node.Drift(t.Context()); !errors.Is(err, netd.ErrUnavailable) {
			t.Errorf("Drift: %v", err)
		}
	})
}

// A status that the managers do not take is sent again at a steady pace, and no
// more once they have it.
func TestStatusIsSentUntilTaken(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		r.mu.Lock()
		r.deaf = true
		r.mu.Unlock()
		before := len(states(r.heard("w1")))
		r.runtime.change("w1", func(s *task.Status) { s.Phase, s.Pid, s.ExitCode = task.Exited, 0, 3 })
		r.pass(time.Minute)
		sent := states(r.heard("w1"))[before:]
		if want := int(time.Minute / retryReport); len(sent) < want || len(sent) > want+2 || slices.ContainsFunc(sent, func(s string) bool { return s != "failed" }) {
			t.Errorf("in a minute of deafness the managers were sent %v, want failed about %d times", sent, want)
		}
		r.mu.Lock()
		r.deaf = false
		r.mu.Unlock()
		r.until("it is known", func() bool { return r.state("w1") == swarm.TaskStateFailed })
		r.pass(time.Second)
		sent = states(r.heard("w1"))
		r.pass(time.Minute)
		if again := states(r.heard("w1")); len(again) != len(sent) {
			t.Errorf("what they know was sent %d times more", len(again)-len(sent))
		}
	})
}

// However much happens while a worker is at a task, no second one begins.
func TestOneWorkerPerTask(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5); r.addTask("w2", "shop", 6) })
		r.runs("shop", "w1", "w2")
		r.runtime.mu.Lock()
		r.runtime.took = 20 * time.Second
		r.runtime.mu.Unlock()
		r.want("w1", swarm.TaskStateShutdown)
		r.want("w2", swarm.TaskStateShutdown)
		r.until("both are being stopped", func() bool { return len(r.runtime.calls("w1"))+len(r.runtime.calls("w2")) == 6 })
		for range 100 { // events of all kinds
			r.runtime.change("w1", func(*task.Status) {})
			r.gossip.ack("n2")
			r.assign(func() {})
			r.pass(100 * time.Millisecond)
		}
		r.until("both have ended", func() bool {
			return r.state("w1") == swarm.TaskStateShutdown && r.state("w2") == swarm.TaskStateShutdown
		})
		for _, id := range []string{"w1", "w2"} {
			if got := r.runtime.calls(id); !slices.Equal(got, []string{"prepare", "start", "stop"}) {
				t.Errorf("%s: asked for %v", id, got)
			}
		}
	})
}

// While nothing changes, every pass wants the same of the kernel, deeply equal,
// and changes nothing.
func TestUnchangedWorld(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() {
			r.addPeer("n2")
			r.addNetwork("shop", 9)
			r.addNetwork("vault", 8)
			r.addTask("w1", "shop", 5)
			r.addTask("v1", "vault", 5)
			for _, last := range []string{"10.0.9.9", "10.0.9.7", "10.0.9.8"} {
				id := netd.TaskID("far-" + last)
				r.others = append(r.others, netd.Endpoint{Network: "shop", Task: id, Name: "web.2." + string(id), Service: "web", Node: "n2", Addr: addr(last)})
			}
		})
		r.runs("shop", "w1")
		r.runs("vault", "v1")
		r.pass(time.Second)
		changes, passes := r.node.Changes(), len(r.kernel.wanted)
		r.pass(time.Minute)
		if len(r.kernel.wanted)-passes < int(time.Minute/sweep) {
			t.Errorf("only %d passes in a minute", len(r.kernel.wanted)-passes)
		}
		for _, d := range r.kernel.wanted[passes:] {
			if diff := desiredDiff(r.kernel.wanted[passes-1], d); diff != "" {
				t.Fatalf("a pass over an unchanged world wants something else: %s", diff)
			}
		}
		if got := r.node.Changes(); got.Count != changes.Count || got.Count == 0 {
			t.Errorf("%d changes, then %v", changes.Count, got)
		}
		if drift, err := r.node.Drift(t.Context()); len(drift) > 0 || err != nil {
			t.Errorf("drift %v, %v", drift, err)
		}
		r.kernel.mu.Lock()
		r.kernel.overlay.Networks = r.kernel.overlay.Networks[:1]
		r.kernel.mu.Unlock()
		if drift, err := r.node.Drift(t.Context()); len(drift) != 1 || err != nil {
			t.Errorf("after someone removed a router: drift %v, %v", drift, err)
		}
		r.until("it is mended", func() bool { drift, err := r.node.Drift(t.Context()); return len(drift) == 0 && err == nil })
	})
}

// A node that starts again finds its tasks and its kernel, and changes neither,
// although it has heard of no peer yet.
func TestRestartChangesNothing(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() {
			r.addPeer("n2")
			r.addNetwork("shop", 9)
			r.addTask("w1", "shop", 5)
			r.others = []netd.Endpoint{{Network: "shop", Task: "w2", Name: "web.2.w2", Service: "web", Node: "n2", Addr: addr("10.0.9.6")}}
			r.gossip.peers["n2"] = gossip.Member{Alive: true, Version: 1, Entries: map[netd.EndpointKey]netd.EndpointState{{Network: "shop", Task: "w2"}: netd.Ready}}
		})
		r.runs("shop", "w1")
		r.pass(time.Second)
		before, events := r.kernel.balancer, len(r.events)
		r.end()
		r.gossip = newFakeGossip("n1") // which has forgotten all
		c := r.node.Config
		c.Gossip = r.gossip
		r.node = New(c)
		r.run()
		r.assign(func() {})
		r.until("it is ready again", func() bool { return r.gossip.state("shop", "w1") == netd.Ready })
		r.pass(time.Second)
		if diff := cmp.Diff(before, r.kernel.balancer, netips); diff != "" || r.node.Changes().Count > 0 {
			t.Errorf("changed %v %s", r.node.Changes(), diff)
		}
		if len(r.events) != events {
			t.Errorf("a restart did %v", r.events[events:])
		}
	})
}

// The backends of a node that leaves the gossip go with it, although the kernel
// held them and the managers have not heard of it yet.
func TestOwnerLeaves(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() {
			r.addPeer("n2")
			r.addNetwork("shop", 9)
			r.addTask("w1", "shop", 5)
			r.others = []netd.Endpoint{{Network: "shop", Task: "w2", Name: "web.2.w2", Service: "web", Node: "n2", Addr: addr("10.0.9.6")}}
			r.gossip.peers["n2"] = gossip.Member{Alive: true, Version: 1, Entries: map[netd.EndpointKey]netd.EndpointState{{Network: "shop", Task: "w2"}: netd.Ready}}
		})
		r.runs("shop", "w1")
		backends := func() int {
			r.kernel.mu.Lock()
			defer r.kernel.mu.Unlock()
			return len(r.kernel.balancer.Routers[0].Services[0].Backends)
		}
		r.until("both are backends", func() bool { return backends() == 2 })
		r.gossip.mu.Lock()
		delete(r.gossip.peers, "n2")
		ring(r.gossip.bell)
		r.gossip.mu.Unlock()
		r.pass(time.Second)
		if n := backends(); n != 1 {
			t.Errorf("%d backends after the owner of one has left", n)
		}
	})
}

// A task that becomes unhealthy is withdrawn, stopped and reported as failed.
func TestUnhealthyTask(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		r.runtime.change("w1", func(s *task.Status) { s.Health = task.HealthUnhealthy })
		r.until("it is withdrawn", func() bool { return r.gossip.state("shop", "w1") == netd.Draining })
		r.until("it has failed", func() bool { return r.state("w1") == swarm.TaskStateFailed })
		if err := r.tasks[0].Status.Err; !strings.Contains(err, "unhealthy") {
			t.Errorf("the reason is %q", err)
		}
	})
}

// A peer whose kernel holds what it heard is told of by the view that this
// node's own kernel holds.
func TestAppliedViewIsAcknowledged(t *testing.T) {
	inRig(t, func(r *rig) {
		r.assign(func() {
			r.addPeer("n2")
			r.addNetwork("shop", 9)
			r.addTask("w1", "shop", 5)
			r.others = []netd.Endpoint{{Network: "shop", Task: "w2", Name: "web.2.w2", Service: "web", Node: "n2", Addr: addr("10.0.9.6")}}
		})
		r.runs("shop", "w1")
		r.gossip.mu.Lock()
		r.gossip.peers["n2"] = gossip.Member{Alive: true, Version: 7, Entries: map[netd.EndpointKey]netd.EndpointState{{Network: "shop", Task: "w2"}: netd.Ready}}
		ring(r.gossip.bell)
		r.gossip.mu.Unlock()
		r.until("it is acknowledged", func() bool {
			r.gossip.mu.Lock()
			defer r.gossip.mu.Unlock()
			return r.gossip.applied[len(r.gossip.applied)-1].Members["n2"].Version == 7
		})
		if n := len(r.kernel.balancer.Routers[0].Services[0].Backends); n != 2 {
			t.Errorf("%d backends when the version was acknowledged, want 2", n)
		}
	})
}
