package orchestrator

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/dispatch"
	"netd/orchestrator/store"
	"netd/pki"
)

// inWorld runs a test with a world of three nodes, in virtual time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.addNodes(3)
		w.settle()
		test(t, w)
	})
}

func joinRequest(t *testing.T, token, addr string) dispatch.JoinRequest {
	t.Helper()
	_, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return dispatch.JoinRequest{
		Token: token, CSR: csr, Addr: netip.MustParseAddr(addr),
		Description: swarm.NodeDescription{Hostname: "joiner"},
	}
}

// A node with the workers' token is admitted with a worker's certificate, and
// used from its first session on; who shows anything else is refused, and
// nothing is written.
func TestJoin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		tokens := w.store.View().Cluster().JoinTokens
		for _, tt := range []struct {
			token, addr string
			kind        error
			text        string
		}{
			{"SWMTKN-1-wrong", "192.0.2.9", netd.ErrInvalid, "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"},
			{"", "192.0.2.9", netd.ErrInvalid, "A valid join token is necessary"},
			{tokens.Manager, "192.0.2.9", netd.ErrUnsupported, "join as a worker"},
			{tokens.Worker, "0.0.0.0", netd.ErrInvalid, "--advertise-addr"},
			{tokens.Worker, "192.0.2.1", netd.ErrExists, "that of the manager host-n1"},
			{tokens.Worker, "192.0.2.3", netd.ErrExists, "that of node host-n3 (n3), which is up: set another --data-path-addr"},
			{tokens.Worker, "::ffff:192.0.2.3", netd.ErrExists, "run 'docker node rm n3'"},
		} {
			_, err := w.o.Join(w.ctx, joinRequest(t, tt.token, tt.addr))
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) || tt.token != "" && strings.Contains(err.Error(), tt.token) {
				t.Errorf("%s: got %v, want %v with %q", tt.addr, err, tt.kind, tt.text)
			}
		}
		if got := len(w.nodes()); got != 3 {
			t.Fatalf("after refusals: got %d nodes, want 3", got)
		}
		reply, err := w.o.Join(w.ctx, joinRequest(t, tokens.Worker, "192.0.2.9"))
		w.must(err)
		n := w.store.View().Node(string(reply.NodeID))
		if n == nil || n.Status.State != swarm.NodeStateUnknown || n.Spec.Role != swarm.NodeRoleWorker || n.Description.Hostname != "joiner" || n.Status.Addr != "192.0.2.9" {
			t.Fatalf("got %+v", n)
		}
		if reply.ClusterID != "swarm1" || len(reply.Managers) != 1 || reply.Managers[0] != "192.0.2.1:2377" || !strings.Contains(string(reply.CA), "CERTIFICATE") {
			t.Errorf("got %+v", reply)
		}
		if _, err := w.o.Attach(w.ctx, reply.NodeID); err != nil {
			t.Fatal(err)
		}
		if n := w.store.View().Node(string(reply.NodeID)); n.Status.State != swarm.NodeStateReady {
			t.Errorf("after attaching: got %s, want ready", n.Status.State)
		}
	})
}

// A host whose former membership is down joins again with its address: what it
// was before is given up at once, and does not come back beside the new node.
func TestJoinAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 3))
		w.must(err)
		w.settle()
		w.cut["n3"] = true
		w.advance(nodeTimeout)
		reply, err := w.o.Join(w.ctx, joinRequest(t, w.store.View().Cluster().JoinTokens.Worker, "192.0.2.3"))
		w.must(err)
		for _, task := range w.store.View().TasksByNode("n3") {
			if task.Status.State != swarm.TaskStateOrphaned {
				t.Errorf("got %s, want orphaned", task.Status.State)
			}
		}
		for range 2 { // before the new node's first session, and after
			_, err = w.o.Attach(w.ctx, "n3")
			wantError(t, "the old node", err, netd.ErrExists, "is now that of node joiner ("+string(reply.NodeID)+")")
			if s := w.store.View().Node("n3").Status.State; s != swarm.NodeStateDown {
				t.Errorf("the old node: got %s, want down", s)
			}
			_, err = w.o.Attach(w.ctx, reply.NodeID)
			w.must(err)
		}
		w.must(w.o.RemoveNode(w.ctx, string(reply.NodeID), true))
		_, err = w.o.Attach(w.ctx, "n3")
		w.must(err)
	})
}

// A node that says that it has the address of another one, or the manager's, is
// refused as a whole, and so is not heard of; its own address it may repeat.
func TestReportHeldAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		before := w.dump()
		for _, addr := range []string{"192.0.2.1", "192.0.2.3", "::ffff:192.0.2.3"} {
			err := w.o.Report(w.ctx, "n2", dispatch.Report{Addr: netip.MustParseAddr(addr), Description: &swarm.NodeDescription{Hostname: "thief"}})
			wantError(t, addr, err, netd.ErrExists, "is now that of node host-n")
		}
		if w.dump() != before {
			t.Error("a refused report was stored")
		}
		w.must(w.o.Report(w.ctx, "n2", dispatch.Report{Addr: netip.MustParseAddr("192.0.2.2")}))
		w.cut["n3"] = true
		w.advance(nodeTimeout)
		w.must(w.o.Report(w.ctx, "n2", dispatch.Report{Addr: netip.MustParseAddr("192.0.2.3")}))
		wantError(t, "come back", w.o.Report(w.ctx, "n3", dispatch.Report{}), netd.ErrExists, "is now that of node host-n2")
	})
}

// A node moves its own tasks forward and nothing else: not back, not past the
// end, not those of others, not into the managers' states.
func TestReport(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 1))
		w.must(err)
		w.pass()
		task := w.store.View().Tasks()[0]
		for _, tt := range []struct {
			node  string
			state swarm.TaskState
			want  swarm.TaskState
		}{
			{task.NodeID, swarm.TaskStatePending, swarm.TaskStateAssigned},
			{task.NodeID, swarm.TaskStateOrphaned, swarm.TaskStateAssigned},
			{task.NodeID, swarm.TaskStateRemove, swarm.TaskStateAssigned},
			{task.NodeID, "running!", swarm.TaskStateAssigned},
			{"n3", swarm.TaskStateRunning, swarm.TaskStateAssigned},
			{task.NodeID, swarm.TaskStateStarting, swarm.TaskStateStarting},
			{task.NodeID, swarm.TaskStateAccepted, swarm.TaskStateStarting},
			{task.NodeID, swarm.TaskStateRunning, swarm.TaskStateRunning},
			{task.NodeID, swarm.TaskStateFailed, swarm.TaskStateFailed},
			{task.NodeID, swarm.TaskStateComplete, swarm.TaskStateFailed},
			{task.NodeID, swarm.TaskStateRunning, swarm.TaskStateFailed},
		} {
			<-time.After(time.Second)
			w.must(w.o.Report(w.ctx, netd.NodeID(tt.node), dispatch.Report{Statuses: []dispatch.TaskStatus{
				{ID: task.ID, Status: swarm.TaskStatus{State: tt.state, Err: strings.Repeat("x", 1<<20)}}, {ID: "no-such-task"},
			}}))
			got := w.store.View().Task(task.ID)
			if got.Status.State != tt.want {
				t.Fatalf("%s says %s: got %s, want %s", tt.node, tt.state, got.Status.State, tt.want)
			}
			if len(got.Status.Err) > maxStatusText {
				t.Fatalf("stored %d bytes of error", len(got.Status.Err))
			}
		}
		if d, ran := ranFor(w.store.View().Task(task.ID)); !ran || d != time.Second {
			t.Errorf("ran for: got %v %v, want 1s", d, ran)
		}
		if err := w.o.Report(w.ctx, "stranger", dispatch.Report{}); !errors.Is(err, netd.ErrForbidden) {
			t.Errorf("stranger: got %v, want forbidden", err)
		}
	})
}

// A heartbeat writes nothing; a changed description or address is stored once.
func TestReportDescription(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		report := func(r dispatch.Report) uint64 {
			w.must(w.o.Report(w.ctx, "n2", r))
			return w.store.View().Node("n2").Version.Index
		}
		before := report(dispatch.Report{})
		d := swarm.NodeDescription{Hostname: "renamed"}
		after := report(dispatch.Report{Description: &d, Addr: netip.MustParseAddr("::ffff:192.0.2.77")})
		if after == before || report(dispatch.Report{Description: &d}) != after || report(dispatch.Report{}) != after {
			t.Errorf("versions: a change must be written once")
		}
		if n := w.store.View().Node("n2"); n.Description.Hostname != "renamed" || n.Status.Addr != "192.0.2.77" {
			t.Errorf("got %+v", n)
		}
	})
}

// A node that leaves is down at once, and its tasks are placed elsewhere without
// a wait; until it is removed it stays in everybody's list of members. Coming back,
// as after a leave that failed, it is ready again.
func TestLeavingNode(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 6))
		w.must(err)
		w.settle()
		if n := len(w.assignment("n2").Tasks); n != 2 {
			t.Fatalf("n2 has %d tasks, want 2", n)
		}
		begun := time.Now()
		w.cut["n2"] = true
		w.must(w.o.Report(w.ctx, "n2", dispatch.Report{Leaving: true}))
		if s := w.store.View().Node("n2").Status; s.State != swarm.NodeStateDown || s.Message != "the node has left the swarm" {
			t.Errorf("got %+v", s)
		}
		version := w.store.View().Node("n2").Version.Index
		w.must(w.o.Report(w.ctx, "n2", dispatch.Report{Leaving: true}))
		if again := w.store.View().Node("n2").Version.Index; again != version {
			t.Error("what was known was written again")
		}
		w.advance(6 * time.Second) // the default delay of a restart is 5 s
		running := 0
		for _, task := range w.store.View().Tasks() {
			if task.Status.State == swarm.TaskStateRunning && task.DesiredState == swarm.TaskStateRunning && task.NodeID != "n2" {
				running++
			}
		}
		if running != 6 {
			t.Errorf("%s later %d of 6 tasks run elsewhere:\n%s", time.Since(begun), running, w.tasks())
		}
		if got := w.assignment("n1").Members; !slices.Equal(got, []netd.NodeID{"n1", "n2", "n3"}) {
			t.Errorf("members %v", got)
		}
		_, err = w.o.Attach(w.ctx, "n2")
		w.must(err)
		if s := w.store.View().Node("n2").Status; s.State != swarm.NodeStateReady || s.Message != "" {
			t.Errorf("come back: got %+v", s)
		}
		w.must(w.o.RemoveNode(w.ctx, "n2", true))
		if got := w.assignment("n1").Members; !slices.Equal(got, []netd.NodeID{"n1", "n3"}) {
			t.Errorf("members %v after a removal", got)
		}
	})
}

// The tasks of a node that has left keep their addresses while it may still stop
// them, each for its own grace period, and no longer: then they are shown as gone.
func TestLeavingNodeGivesBackAddresses(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("tiny", "10.9.0.0/29") // five addresses and the gateway's
		w.setAvailability("n1", "pause")
		w.setAvailability("n3", "pause")
		slow := spec("slow", "ok", 1)
		slow.TaskTemplate.ContainerSpec.StopGracePeriod = ptr(time.Minute)
		for _, s := range []swarm.ServiceSpec{slow, spec("web", "ok", 2, "tiny")} {
			_, _, err := w.o.CreateService(w.ctx, s)
			w.must(err)
		}
		w.settle()
		w.setAvailability("n1", "active")
		w.cut["n2"] = true
		w.must(w.o.Report(w.ctx, "n2", dispatch.Report{Leaving: true}))
		states := func() string {
			var all []string
			for _, task := range w.store.View().TasksByNode("n2") {
				all = append(all, w.serviceName(task)+" "+string(task.Status.State))
			}
			slices.Sort(all)
			return strings.Join(all, ", ")
		}
		for _, step := range []struct {
			wait time.Duration
			want string
		}{
			{19 * time.Second, "slow running, web running, web running"},
			{time.Second, "slow running, web orphaned, web orphaned"},
			{50 * time.Second, "slow orphaned, web orphaned, web orphaned"},
		} {
			w.advance(step.wait)
			if got := states(); got != step.want {
				t.Errorf("%s later: got %s, want %s\n%s", step.wait, got, step.want, w.tasks())
			}
		}
		w.must(w.edit("web", func(s *swarm.ServiceSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: ptr(uint64(4))}
		}))
		w.settle()
		if got := w.command([]string{"status", "web"}); got != "4/4 running, image ok\n" {
			t.Errorf("the addresses are not free: got %s\n%s", got, w.tasks())
		}
	})
}

// A member gets a certificate of its own role, nobody else gets one.
func TestRenew(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		_, csr, err := pki.NewKey()
		w.must(err)
		for node, want := range map[netd.NodeID]error{"n1": nil, "n2": nil, "n9": netd.ErrForbidden} {
			if cert, err := w.o.Renew(w.ctx, node, csr); !errors.Is(err, want) || (err == nil) != (len(cert) > 0) {
				t.Errorf("%s: got %d bytes, %v, want %v", node, len(cert), err, want)
			}
		}
	})
}

// With the loops running, a session hears of every change, a slow one only of
// the newest; generations grow and repeat nothing; a removed node's session ends
// and another is refused for good; the newer of two sessions of a node wins.
func TestSession(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ctx, cancel := context.WithCancel(w.ctx)
		done := make(chan error, 1)
		go func() { done <- w.o.Run(ctx) }()
		synctest.Wait()
		ch, err := w.o.Attach(ctx, "n2")
		w.must(err)
		first := <-ch
		if first.Generation != 1 || first.Node.ID != "n2" || len(first.Tasks) != 0 || len(first.GossipPeers) != 3 || first.DataPathPort != 4789 {
			t.Fatalf("got %+v", first)
		}
		for _, name := range []string{"a", "b", "c"} {
			_, _, err := w.o.CreateService(w.ctx, spec(name, "ok", 3))
			w.must(err)
			<-time.After(time.Second)
		}
		if a := <-ch; a.Generation != 4 || len(a.Tasks) != 3 || a.ServiceNames[a.Tasks[0].ServiceID] == "" {
			t.Errorf("got generation %d with %d tasks, want 4 with 3", a.Generation, len(a.Tasks))
		}
		_, err = w.o.CreateNetwork(w.ctx, networkRequest("unrelated"))
		w.must(err)
		<-time.After(time.Second)
		select {
		case a := <-ch:
			t.Errorf("got generation %d for a change that is not the node's", a.Generation)
		default:
		}
		second, err := w.o.Attach(ctx, "n2")
		w.must(err)
		<-second
		if _, open := <-ch; open {
			t.Error("the older session goes on")
		}
		w.must(w.o.RemoveNode(w.ctx, "n2", true))
		if _, open := <-second; open {
			t.Error("the removed node's session goes on")
		}
		if _, err := w.o.Attach(ctx, "n2"); !errors.Is(err, netd.ErrForbidden) {
			t.Errorf("attach a removed node: got %v, want forbidden", err)
		}
		third, err := w.o.Attach(ctx, "n3")
		w.must(err)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		for range third {
		}
	})
}

// A manager that stood still for a minute, as a suspended machine does, takes no
// node for dead because of its own deafness.
func TestStandstill(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var offset atomic.Int64
		w.o = New(Config{Store: w.store, Log: w.o.log, Now: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }})
		ctx, cancel := context.WithCancel(w.ctx)
		done := make(chan error, 1)
		go func() { done <- w.o.Run(ctx) }()
		w.report()
		synctest.Wait()
		offset.Store(int64(time.Minute))
		w.must(w.store.Update(w.ctx, func(tx *store.Tx) error { return tx.Put(tx.Node("n3")) }))
		<-time.After(time.Second)
		if got := w.store.View().Node("n2").Status.State; got != swarm.NodeStateReady {
			t.Errorf("got %s, want ready", got)
		}
		<-time.After(time.Minute)
		if got := w.store.View().Node("n2").Status.State; got != swarm.NodeStateDown {
			t.Errorf("a minute of silence later: got %s, want down", got)
		}
		cancel()
		w.must(<-done)
	})
}
