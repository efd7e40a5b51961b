package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/dispatch"
	"netd/gossip"
)

// loopback is every node's address here: its route's MTU can be read everywhere.
var loopback = netip.MustParseAddr("127.0.0.1")

// rig is a Node with everything around it in memory, and managers that a test
// plays. It lives in a synctest bubble.
type rig struct {
	t       *testing.T
	node    *Node
	kernel  *kernel
	gossip  *fakeGossip
	runtime *fakeRuntime
	end     func()

	mu       sync.Mutex
	deaf     bool // the managers take no report
	tasks    []swarm.Task
	networks []netd.Network
	nodes    []netd.Node
	others   []netd.Endpoint // of other nodes
	reports  []dispatch.Report
	events   []string
	sent     uint64
}

// inRig runs a test in virtual time with a node that runs.
func inRig(t *testing.T, test func(*rig)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, dir)
		r.run()
		test(r)
		r.end()
		if len(r.runtime.overlaps) > 0 {
			t.Errorf("two workers were at tasks %v at once", r.runtime.overlaps)
		}
	})
}

// run runs the node until r.end.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.node.Run(ctx) }()
	r.end = func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			r.t.Errorf("Run: %v", err)
		}
	}
}

func newRig(t *testing.T, dir string) *rig {
	r := &rig{
		t: t, kernel: &kernel{bad: map[string]error{}}, gossip: newFakeGossip("n1"), runtime: newFakeRuntime(), end: func() {},
		nodes: []netd.Node{{ID: "n1", Name: "one", Addr: loopback}},
	}
	r.runtime.log = r.event
	r.node = New(Config{
		Self: "n1", Name: "one", Addr: loopback, Port: 4789, DataDir: dir, NetNSDir: dir,
		Overlay: fakeOverlay{r.kernel}, Balancer: fakeBalancer{r.kernel}, Ingress: fakeIngress{r.kernel}, Resolver: fakeResolver{r.kernel},
		Gossip: r.gossip, Runtime: r.runtime, Report: r.hear, Log: slog.New(slog.DiscardHandler),
	})
	return r
}

// event writes down what happened, in order.
func (r *rig) event(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

// hear takes a report as the managers do: what a task's node says of it comes
// back in the next assignment.
func (r *rig) hear(report dispatch.Report) {
	for _, s := range report.Statuses {
		r.event("report %s %s", s.ID, s.Status.State)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, report)
	if r.deaf || len(report.Statuses) == 0 {
		return
	}
	for _, s := range report.Statuses {
		if i := r.index(s.ID); i >= 0 {
			r.tasks[i].Status = s.Status
		}
	}
	r.assignLocked()
}

func (r *rig) index(id string) int {
	return slices.IndexFunc(r.tasks, func(t swarm.Task) bool { return t.ID == id })
}

// assignLocked sends the assignment as it is now.
func (r *rig) assignLocked() {
	a := dispatch.Assignment{
		Tasks: slices.Clone(r.tasks), ServiceNames: map[string]string{"web": "web"}, DataPathPort: 4789,
		Snapshot: netd.Snapshot{Nodes: slices.Clone(r.nodes), Networks: slices.Clone(r.networks), Endpoints: slices.Clone(r.others)},
	}
	r.sent++
	a.Generation = r.sent
	for _, n := range r.networks {
		vip := n.Subnet.Addr().Next().Next()
		a.Snapshot.Services = append(a.Snapshot.Services, netd.Service{ID: "web", Network: n.ID, Name: "web", VIP: vip})
	}
	for _, t := range r.tasks {
		for _, at := range t.NetworksAttachments {
			a.Snapshot.Endpoints = append(a.Snapshot.Endpoints, netd.Endpoint{
				Network: netd.NetworkID(at.Network.ID), Task: netd.TaskID(t.ID), Name: "web.1." + t.ID, Service: "web", Node: "n1",
				Addr: at.Addresses[0].Addr(), Leaving: terminal(t.DesiredState),
			})
		}
	}
	r.node.Assign(a)
}

// assign changes what the managers want, and sends it.
func (r *rig) assign(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	r.assignLocked()
}

// addNetwork adds a network; its number is the third byte of its subnet.
func (r *rig) addNetwork(id netd.NetworkID, number byte) {
	subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, number, 0}), 24)
	r.networks = append(r.networks, netd.Network{
		ID: id, Name: string(id), VNI: 4096 + uint32(number), Subnet: subnet, Gateway: subnet.Addr().Next(),
	})
}

// addTask adds a task of the service web with that last byte on the network.
func (r *rig) addTask(id string, on netd.NetworkID, last byte) {
	i := slices.IndexFunc(r.networks, func(n netd.Network) bool { return n.ID == on })
	addr := r.networks[i].Subnet.Addr().As4()
	addr[3] = last
	r.tasks = append(r.tasks, swarm.Task{
		ID: id, ServiceID: "web", Slot: 1, NodeID: "n1", DesiredState: swarm.TaskStateRunning,
		Status: swarm.TaskStatus{State: swarm.TaskStateAssigned},
		Spec:   swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "netd/echo"}},
		NetworksAttachments: []swarm.NetworkAttachment{{
			Network: swarm.Network{ID: string(on)}, Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(addr), 24)},
		}},
	})
}

// want sets the task's desired state.
func (r *rig) want(id string, state swarm.TaskState) {
	r.assign(func() { r.tasks[r.index(id)].DesiredState = state })
}

// addPeer adds a living node that has been heard of.
func (r *rig) addPeer(id netd.NodeID) {
	r.nodes = append(r.nodes, netd.Node{ID: id, Name: string(id), Addr: loopback})
	r.gossip.mu.Lock()
	defer r.gossip.mu.Unlock()
	r.gossip.peers[id] = gossip.Member{Alive: true, Version: 1}
}

// state is how the managers know the task.
func (r *rig) state(id string) swarm.TaskState {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := r.index(id); i >= 0 {
		return r.tasks[i].Status.State
	}
	return ""
}

// until lets the time pass until cond holds, and returns how long that took.
func (r *rig) until(what string, cond func() bool) time.Duration {
	r.t.Helper()
	const atMost = time.Minute
	for begun := time.Now(); ; <-time.After(5 * time.Millisecond) {
		synctest.Wait()
		switch took := time.Since(begun); {
		case cond():
			return took
		case took > atMost:
			r.t.Fatalf("%s: not within %s; events:\n%s", what, atMost, strings.Join(r.events, "\n"))
		}
	}
}

// pass lets the time pass.
func (r *rig) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// runs waits until the managers know that the tasks run, and peers that they are
// ready on the network.
func (r *rig) runs(on netd.NetworkID, ids ...string) {
	r.t.Helper()
	for _, id := range ids {
		r.until(id+" runs", func() bool {
			return r.state(id) == swarm.TaskStateRunning && r.gossip.state(on, netd.TaskID(id)) == netd.Ready
		})
	}
}

// heard returns the events of one task, in order.
func (r *rig) heard(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, e := range r.events {
		if strings.Contains(e, " "+id) {
			out = append(out, strings.ReplaceAll(e, " "+id, ""))
		}
	}
	return out
}

// desiredDiff says how two wishes differ.
func desiredDiff(a, b Desired) string { return cmp.Diff(a, b, netips) }
