package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"netd"
	"netd/balancer"
	"netd/dns"
	"netd/gossip"
	"netd/ingress"
	"netd/netd/task"
	"netd/vxlan"
)

// kernel is an overlay, a balancer and a resolver in memory: they hold what was
// set, and count what that changed.
type kernel struct {
	mu       sync.Mutex
	bad      map[string]error // by router: what its network answers
	overlay  vxlan.Config
	balancer balancer.Config
	ports    ingress.Config
	names    dns.Config
	set      func() // called by every Set of the overlay, if any
	// wanted are the arguments of every Set.
	wanted []Desired
}

type fakeOverlay struct{ *kernel }

// Set leaves a bad network as it is, and sets the others.
func (k fakeOverlay) Set(_ context.Context, want vxlan.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted = append(k.wanted, Desired{Overlay: want})
	if k.set != nil {
		k.set()
	}
	ops, errs := k.plan(want)
	if len(ops) > 0 {
		k.overlay = vxlan.Config{}
		for _, n := range want.Networks {
			if k.bad[n.Router] == nil {
				k.overlay.Networks = append(k.overlay.Networks, n)
			}
		}
	}
	return ops, errs
}

func (k fakeOverlay) plan(want vxlan.Config) (ops []string, err error) {
	have := map[string]vxlan.Network{}
	for _, n := range k.overlay.Networks {
		have[n.Router] = n
	}
	for _, n := range want.Networks {
		if bad := k.bad[n.Router]; bad != nil {
			err = errors.Join(err, fmt.Errorf("router %s: %w", n.Router, bad))
		} else if !reflect.DeepEqual(have[n.Router], n) {
			ops = append(ops, "set "+n.Router)
		}
		delete(have, n.Router)
	}
	for _, router := range slices.Sorted(maps.Keys(have)) {
		ops = append(ops, "remove "+router)
	}
	return ops, err
}

func (k fakeOverlay) Diff(want vxlan.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.plan(want)
}

func (k fakeOverlay) Get() (vxlan.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.overlay, nil
}

type fakeBalancer struct{ *kernel }

func (k fakeBalancer) Set(_ context.Context, want balancer.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted[len(k.wanted)-1].Balancer = want
	var ops []string
	if !reflect.DeepEqual(k.balancer, want) {
		ops = append(ops, "set balancers")
	}
	k.balancer = want
	return ops, nil
}

func (k fakeBalancer) Diff(_ context.Context, want balancer.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if reflect.DeepEqual(k.balancer, want) {
		return nil, nil
	}
	return []string{"set balancers"}, nil
}

func (k fakeBalancer) Get(context.Context, []string) (balancer.Config, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.balancer, nil
}

type fakeIngress struct{ *kernel }

func (k fakeIngress) Set(_ context.Context, want ingress.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted[len(k.wanted)-1].Ingress = want
	ops := k.changes(want)
	k.ports = want
	return ops, nil
}

func (k fakeIngress) Diff(want ingress.Config) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.changes(want), nil
}

func (k fakeIngress) changes(want ingress.Config) []string {
	if reflect.DeepEqual(k.ports, want) {
		return nil
	}
	return []string{"set ports"}
}

type fakeResolver struct{ *kernel }

func (k fakeResolver) Set(_ context.Context, want dns.Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wanted[len(k.wanted)-1].DNS = want
	k.names = want
	return nil
}

// fakeGossip is this node's part of a gossip whose other nodes the test plays.
type fakeGossip struct {
	self netd.NodeID
	bell chan struct{}

	mu      sync.Mutex
	version uint64
	entries map[netd.EndpointKey]netd.EndpointState
	peers   map[netd.NodeID]gossip.Member
	acked   map[netd.NodeID]uint64
	applied []*gossip.View
}

func newFakeGossip(self netd.NodeID) *fakeGossip {
	return &fakeGossip{
		self: self, bell: make(chan struct{}, 1), entries: map[netd.EndpointKey]netd.EndpointState{},
		peers: map[netd.NodeID]gossip.Member{}, acked: map[netd.NodeID]uint64{},
	}
}

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

func (g *fakeGossip) Publish(entries []gossip.Entry) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := map[netd.EndpointKey]netd.EndpointState{}
	for _, e := range entries {
		now[e.Key] = e.State
	}
	if g.version == 0 || !maps.Equal(now, g.entries) {
		g.version++
		g.entries = now
		ring(g.bell)
	}
	return g.version
}

func (g *fakeGossip) View() *gossip.View {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := &gossip.View{Members: maps.Clone(g.peers)}
	v.Members[g.self] = gossip.Member{Alive: true, Version: g.version, Entries: g.entries}
	return v
}

func (g *fakeGossip) Changed() <-chan struct{} { return g.bell }

func (g *fakeGossip) Applied(v *gossip.View) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.applied = append(g.applied, v)
}

// Acked returns the living peers that have not applied the version.
func (g *fakeGossip) Acked(version uint64) []netd.NodeID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var missing []netd.NodeID
	for id, m := range g.peers {
		if m.Alive && g.acked[id] < version {
			missing = append(missing, id)
		}
	}
	return missing
}

// ack makes the peer say that it has applied all that it heard.
func (g *fakeGossip) ack(peer netd.NodeID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.acked[peer] = g.version
	ring(g.bell)
}

func (g *fakeGossip) state(network netd.NetworkID, id netd.TaskID) netd.EndpointState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.entries[netd.EndpointKey{Network: network, Task: id}]
}

// fakeRuntime runs nothing; what it is asked to do takes a while and is written
// down.
type fakeRuntime struct {
	bell chan struct{}
	took time.Duration
	log  func(format string, args ...any)

	mu     sync.Mutex
	tasks  map[string]task.Status
	at     map[string]bool  // tasks that a call is at
	refuse map[string]error // by image
	fail   map[string]error // by "verb id": what the call answers
	// overlaps names tasks that two calls were at.
	overlaps []string
	asked    []string
}

func newFakeRuntime() *fakeRuntime {
	return &fakeRuntime{
		bell: make(chan struct{}, 1), took: 50 * time.Millisecond, tasks: map[string]task.Status{}, at: map[string]bool{},
		refuse: map[string]error{}, fail: map[string]error{}, log: func(string, ...any) {},
	}
}

func (r *fakeRuntime) Check(s task.Spec) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refuse[s.Image]
}

// work does one call: it takes its time, then changes the task.
func (r *fakeRuntime) work(ctx context.Context, verb, id string, change func()) error {
	r.mu.Lock()
	r.log("%s %s", verb, id)
	r.asked = append(r.asked, verb+" "+id)
	if r.at[id] {
		r.overlaps = append(r.overlaps, id)
	}
	r.at[id] = true
	r.mu.Unlock()
	select {
	case <-time.After(r.took):
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.at, id)
	if err := cmp.Or(ctx.Err(), r.fail[verb+" "+id]); err != nil {
		return err
	}
	change()
	ring(r.bell)
	return nil
}

func (r *fakeRuntime) Prepare(ctx context.Context, s task.Spec) (string, error) {
	ns := "/run/netns/task-" + s.ID
	return ns, r.work(ctx, "prepare", s.ID, func() {
		r.tasks[s.ID] = task.Status{ID: s.ID, Phase: task.Created, NetNS: ns}
	})
}

func (r *fakeRuntime) Start(ctx context.Context, id string) error {
	return r.work(ctx, "start", id, func() { r.setLocked(id, task.Running, 100) })
}

func (r *fakeRuntime) Stop(ctx context.Context, id string) error {
	return r.work(ctx, "stop", id, func() { r.setLocked(id, task.Exited, 0) })
}

func (r *fakeRuntime) Remove(ctx context.Context, id string) error {
	return r.work(ctx, "remove", id, func() { delete(r.tasks, id) })
}

func (r *fakeRuntime) setLocked(id string, p task.Phase, pid int) {
	s := r.tasks[id]
	s.Phase, s.Pid = p, pid
	r.tasks[id] = s
}

// change sets a task's status as if by itself.
func (r *fakeRuntime) change(id string, change func(*task.Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.tasks[id]
	change(&s)
	r.tasks[id] = s
	ring(r.bell)
}

func (r *fakeRuntime) List() []task.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.tasks), func(a, b task.Status) int { return cmp.Compare(a.ID, b.ID) })
}

func (r *fakeRuntime) Changed() <-chan struct{} { return r.bell }

// calls lists what the runtime was asked to do for the task.
func (r *fakeRuntime) calls(id string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, call := range r.asked {
		var verb, of string
		if n, _ := fmt.Sscan(call, &verb, &of); n == 2 && of == id {
			out = append(out, verb)
		}
	}
	return out
}
