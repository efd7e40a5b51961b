package orchestrator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/dispatch"
	"netd/orchestrator/store"
	"netd/pki"
)

// tester is what a world needs of a test or of a property's case.
type tester interface {
	Helper()
	Fatalf(format string, args ...any)
}

// world is a swarm in memory, in virtual time: the real store and orchestrator,
// and nodes that are nothing but their reports. It lives in a synctest bubble.
type world struct {
	t     tester
	ctx   context.Context
	close func()
	store *store.Store
	o     *Orchestrator
	ids   int
	// cut nodes neither hear nor are heard.
	cut map[string]bool
	// seen is each task's furthest state and began when it was first seen running
	// or stopping, by its node.
	seen  map[string]int
	began map[string]time.Time
	// failing tasks end by themselves.
	failing map[string]bool
}

func newWorld(t tester) *world {
	ctx, cancel := context.WithCancel(context.Background())
	st, err := store.OpenMemory(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	w := &world{
		t: t, ctx: ctx, store: st,
		cut: map[string]bool{}, seen: map[string]int{}, began: map[string]time.Time{}, failing: map[string]bool{},
		close: func() {
			cancel()
			if err := <-done; err != nil {
				t.Fatalf("close store: %v", err)
			}
		},
	}
	w.restart()
	ca, key, err := pki.NewCA(time.Now())
	w.must(err)
	worker, err := pki.NewToken(ca)
	w.must(err)
	manager, err := pki.NewToken(ca)
	w.must(err)
	cluster := store.Cluster{
		ID: "swarm1", CACert: ca.CertPEM, CAKey: key, JoinTokens: swarm.JoinTokens{Worker: worker, Manager: manager},
		DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, SubnetSize: 24, DataPathPort: 4789,
	}
	w.must(w.o.Init(ctx, cluster, w.hostNode("n1", &swarm.ManagerStatus{Addr: "192.0.2.1:2377"})))
	return w
}

func (w *world) hostNode(id string, ms *swarm.ManagerStatus) swarm.Node {
	n := swarm.Node{ID: id, ManagerStatus: ms}
	n.Spec.Role, n.Spec.Availability = swarm.NodeRoleWorker, swarm.NodeAvailabilityActive
	n.Description.Hostname = "host-" + id
	n.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 4 << 30}
	n.Status.Addr = "192.0.2." + strings.TrimPrefix(id, "n")
	return n
}

// restart replaces the orchestrator by a new one, which remembers nothing.
func (w *world) restart() {
	w.o = New(Config{Store: w.store, Log: slog.New(slog.DiscardHandler)})
	w.o.newID = func() string { w.ids++; return fmt.Sprintf("t%03d", w.ids) }
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v", err)
	}
}

// addNodes makes workers n2 and so on up to n<count>.
func (w *world) addNodes(count int) {
	w.must(w.store.Update(w.ctx, func(tx *store.Tx) error {
		for i := 2; i <= count; i++ {
			n := w.hostNode(fmt.Sprintf("n%d", i), nil)
			if err := tx.Put(&n); err != nil {
				return err
			}
		}
		return nil
	}))
}

// pass decides once, and checks what must hold after every decision.
func (w *world) pass() {
	w.t.Helper()
	w.o.pass(w.ctx)
	w.must(w.store.Update(w.ctx, func(tx *store.Tx) error {
		p := w.o.newPass(tx, time.Now())
		w.must(p.run())
		if p.writes > 0 || p.unsettled {
			w.t.Fatalf("a pass over its own result wrote %d objects (unsettled %v)", p.writes, p.unsettled)
		}
		if found := p.audit(); len(found) > 0 || p.writes > 0 {
			w.t.Fatalf("audit: %d writes, found %q", p.writes, found)
		}
		return nil
	}))
	for _, t := range w.store.View().Tasks() {
		if rank(t.Status.State) < w.seen[t.ID] {
			w.t.Fatalf("task %s went back to %s", t.ID, t.Status.State)
		}
		w.seen[t.ID] = rank(t.Status.State)
	}
}

// advance lets the time pass: heartbeats, reports and decisions.
func (w *world) advance(d time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(d); ; {
		w.settle()
		if !time.Now().Before(end) {
			return
		}
		<-time.After(min(time.Second, time.Until(end)))
	}
}

// settle decides and reports until nothing changes any more at this time.
func (w *world) settle() {
	w.t.Helper()
	for range 100 {
		w.pass()
		if !w.report() {
			return
		}
	}
	w.t.Fatalf("the world does not come to rest")
}

// report lets every node that is not cut say what became of its tasks.
func (w *world) report() (changed bool) {
	w.t.Helper()
	for _, n := range w.store.View().Nodes() {
		if w.cut[n.ID] {
			continue
		}
		a, ok := newProjection(w.store.View()).assignment(netd.NodeID(n.ID))
		if !ok {
			continue
		}
		var r dispatch.Report
		for _, t := range a.Tasks {
			if st := w.behave(&t); st.State != "" && st.State != t.Status.State {
				r.Statuses = append(r.Statuses, dispatch.TaskStatus{ID: t.ID, Status: st})
				changed = true
			}
		}
		changed = changed || n.Status.State != swarm.NodeStateReady
		w.must(w.o.Report(w.ctx, netd.NodeID(n.ID), r))
	}
	return changed
}

// behave is what a node makes of a task, by its image: ok runs for ever, crash
// fails after a second, done completes after one, bad cannot be started, slow
// takes 3 s to start, stubborn takes 20 s to stop.
func (w *world) behave(t *swarm.Task) swarm.TaskStatus {
	image := t.Spec.ContainerSpec.Image
	age := func(what string) time.Duration {
		key := t.ID + what
		if w.began[key].IsZero() {
			w.began[key] = time.Now()
		}
		return time.Since(w.began[key])
	}
	switch {
	case !wanted(t):
		if image == "stubborn" && age("stop") < 20*time.Second {
			return swarm.TaskStatus{}
		}
		return swarm.TaskStatus{State: swarm.TaskStateShutdown, Message: "shutdown"}
	case image == "bad":
		return swarm.TaskStatus{State: swarm.TaskStateRejected, Err: "No such image: bad"}
	case t.DesiredState == swarm.TaskStateReady:
		return swarm.TaskStatus{State: swarm.TaskStateReady}
	case image == "slow" && age("start") < 3*time.Second:
		return swarm.TaskStatus{State: swarm.TaskStateStarting}
	case t.Status.State != swarm.TaskStateRunning:
		age("run")
		return swarm.TaskStatus{State: swarm.TaskStateRunning, Message: "started"}
	case image == "crash" && age("run") >= time.Second, w.failing[t.ID]:
		return swarm.TaskStatus{State: swarm.TaskStateFailed, Err: "task: non-zero exit (1)"}
	case image == "done" && age("run") >= time.Second:
		return swarm.TaskStatus{State: swarm.TaskStateComplete, Message: "finished"}
	}
	return swarm.TaskStatus{}
}

// spec is a replicated service's.
func spec(name, image string, replicas uint64, networks ...string) swarm.ServiceSpec {
	s := swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name, Labels: map[string]string{}},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}
	for _, n := range networks {
		s.TaskTemplate.Networks = append(s.TaskTemplate.Networks, swarm.NetworkAttachmentConfig{Target: n})
	}
	return s
}

func (w *world) network(name, subnet string) {
	w.t.Helper()
	req := network.CreateRequest{Name: name, Driver: "overlay"}
	if subnet != "" {
		req.IPAM = &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix(subnet)}}}
	}
	_, err := w.o.CreateNetwork(w.ctx, req)
	w.must(err)
}

// edit updates a service as the docker command does: read, change, write.
func (w *world) edit(name string, change func(*swarm.ServiceSpec)) error {
	s, err := w.o.GetService(w.ctx, name, false)
	if err != nil {
		return err
	}
	change(&s.Spec)
	_, err = w.o.UpdateService(w.ctx, s.ID, s.Version.Index, s.Spec, false)
	return err
}

// tasks lists the tasks as docker service ps does, in a form for transcripts.
func (w *world) tasks() string {
	tx := w.store.View()
	all := slices.Clone(tx.Tasks())
	slices.SortFunc(all, func(a, b *swarm.Task) int {
		return cmp.Or(cmp.Compare(w.serviceName(a), w.serviceName(b)), cmp.Compare(a.Slot, b.Slot), newestFirst(a, b))
	})
	var out strings.Builder
	for _, t := range all {
		fmt.Fprintf(&out, "%s.%d %s %s %s", w.serviceName(t), t.Slot, cmp.Or(t.NodeID, "-"), t.Spec.ContainerSpec.Image, t.Status.State)
		if t.DesiredState != t.Status.State {
			fmt.Fprintf(&out, " (%s)", t.DesiredState)
		}
		if t.Status.Err != "" {
			fmt.Fprintf(&out, ": %s", t.Status.Err)
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func (w *world) serviceName(t *swarm.Task) string {
	if s := w.store.View().Service(t.ServiceID); s != nil {
		return s.Spec.Name
	}
	return t.ServiceID
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}
