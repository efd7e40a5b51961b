package orchestrator

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/dispatch"
	"netd/orchestrator/store"
)

func (w *world) assignment(node netd.NodeID) dispatch.Assignment {
	w.t.Helper()
	a, ok := newProjection(w.store.View()).assignment(node)
	if !ok {
		w.t.Fatalf("node %s has no assignment", node)
	}
	return a
}

// text shows an assignment without IDs that differ from run to run.
func text(a dispatch.Assignment, services map[netd.ServiceID]string) string {
	var out strings.Builder
	for _, t := range a.Tasks {
		fmt.Fprintf(&out, "task %s %s\n", a.ServiceNames[t.ServiceID], t.DesiredState)
	}
	for _, n := range a.Snapshot.Nodes {
		fmt.Fprintf(&out, "node %s %s %s\n", n.ID, n.Name, n.Addr)
	}
	for _, n := range a.Snapshot.Networks {
		fmt.Fprintf(&out, "network %s %d %s %s\n", n.Name, n.VNI, n.Subnet, n.Gateway)
	}
	for _, s := range a.Snapshot.Services {
		fmt.Fprintf(&out, "service %s %s\n", s.Name, s.VIP)
	}
	for _, e := range a.Snapshot.Endpoints {
		fmt.Fprintf(&out, "endpoint %s %s %s leaving %v\n", services[e.Service], e.Node, e.Addr, e.Leaving)
	}
	return out.String()
}

// A node is told of its own tasks, and of the swarm only what these can reach:
// their networks with every service and endpoint there and the nodes of those.
func TestAssignment(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		w.network("red", "")
		names := map[netd.ServiceID]string{}
		create := func(s swarm.ServiceSpec, node string) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.id==" + node}}
			id, _, err := w.o.CreateService(w.ctx, s)
			w.must(err)
			names[netd.ServiceID(id)] = s.Name
			w.settle()
		}
		create(spec("web", "ok", 1, "blue"), "n1")
		create(spec("db", "stubborn", 1, "blue", "red"), "n2")
		create(change(spec("rr", "ok", 1, "red"), func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr"} }), "n3")
		create(spec("far", "slow", 0, "red"), "n3")
		w.must(w.o.RemoveService(w.ctx, "db"))
		for node, want := range map[netd.NodeID]string{
			"n1": `task web running
node n1 host-n1 192.0.2.1
node n2 host-n2 192.0.2.2
network blue 4097 10.0.1.0/24 10.0.1.1
service web 10.0.1.2
endpoint web n1 10.0.1.3 leaving false
endpoint db n2 10.0.1.5 leaving true
`,
			"n3": `task rr running
node n2 host-n2 192.0.2.2
node n3 host-n3 192.0.2.3
network red 4098 10.0.2.0/24 10.0.2.1
service rr invalid IP
service far 10.0.2.5
endpoint db n2 10.0.2.3 leaving true
endpoint rr n3 10.0.2.4 leaving false
`,
		} {
			if got := text(w.assignment(node), names); got != want {
				t.Errorf("%s: got\n%swant\n%s", node, got, want)
			}
		}
		if a := w.assignment("n1"); !slices.Equal(a.Managers, []string{"192.0.2.1:2377"}) || !slices.Equal(a.ManagerIDs, []netd.NodeID{"n1"}) {
			t.Errorf("managers: got %v, %v", a.Managers, a.ManagerIDs)
		}
		if a := w.assignment("n2"); len(a.Tasks) != 1 || a.Tasks[0].DesiredState != swarm.TaskStateRemove || len(a.Snapshot.Networks) != 2 {
			t.Errorf("a task that stops: got %+v", a.Tasks)
		}
		// Whoever is down takes no new connections, whatever it last said.
		w.cut["n3"] = true
		w.advance(25 * time.Second)
		for _, e := range newProjection(w.store.View()).endpoints[string(w.assignment("n3").Snapshot.Networks[0].ID)] {
			if e.Node == "n3" && !e.Leaving {
				t.Errorf("endpoint of a node that is down: got %+v", e)
			}
		}
		if _, ok := newProjection(w.store.View()).assignment("n9"); ok {
			t.Error("a stranger has an assignment")
		}
	})
}

// The other names that a service has on a network reach the nodes of that network.
func TestAssignmentAliases(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		w.network("red", "")
		_, _, err := w.o.CreateService(w.ctx, change(spec("web", "ok", 3, "blue", "red"), func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks[0].Aliases = []string{"www", "db", "www"}
		}))
		w.must(err)
		w.settle()
		blue, err := w.o.GetNetwork(w.ctx, "blue")
		w.must(err)
		for _, s := range w.assignment("n1").Snapshot.Services {
			want := ""
			if string(s.Network) == blue.ID {
				want = "db www"
			}
			if got := strings.Join(s.Aliases, " "); got != want {
				t.Errorf("on %s: got aliases %q, want %q", s.Network, got, want)
			}
		}
	})
}

// The same state gives the same assignment, field for field: a session sends it once.
func TestAssignmentStable(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		for i := range 5 {
			_, _, err := w.o.CreateService(w.ctx, spec(fmt.Sprintf("s%d", i), "ok", 4, "blue"))
			w.must(err)
		}
		w.settle()
		if a, b := w.assignment("n2"), w.assignment("n2"); !reflect.DeepEqual(a, b) {
			t.Errorf("got\n%+v\nthen\n%+v", a, b)
		}
	})
}

// What this package would never write, a new leader finds, mends and tells of:
// the older holder keeps an address, the newer task or service gets another.
func TestAuditMends(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		for _, name := range []string{"a", "b"} {
			s := spec(name, "ok", 2, "blue")
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
			_, _, err := w.o.CreateService(w.ctx, s)
			w.must(err)
			w.advance(time.Second)
		}
		w.must(w.store.Update(w.ctx, func(tx *store.Tx) error {
			a, b := tx.ServiceByName("a"), *tx.ServiceByName("b")
			b.Endpoint.VirtualIPs, b.Endpoint.Ports = a.Endpoint.VirtualIPs, a.Endpoint.Ports
			tasks := tx.TasksByService(a.ID)
			twin := *tasks[1]
			twin.NetworksAttachments = []swarm.NetworkAttachment{{Network: twin.NetworksAttachments[0].Network, Addresses: []netip.Prefix{tasks[0].NetworksAttachments[0].Addresses[0]}}}
			lost := *tx.TasksByService(b.ID)[0]
			lost.NodeID = "n9"
			for _, obj := range []any{&b, &twin, &lost} {
				if err := tx.Put(obj); err != nil {
					return err
				}
			}
			return nil
		}))
		var found []string
		w.must(w.store.Update(w.ctx, func(tx *store.Tx) error {
			p := w.o.newPass(tx, time.Now())
			found = p.audit()
			return p.err
		}))
		for _, want := range []string{"service b: virtual address", "service b: port 30000/tcp is already published by service a", "task t", "does not exist"} {
			if !strings.Contains(strings.Join(found, "\n"), want) {
				t.Errorf("not found %q in %q", want, found)
			}
		}
		w.advance(time.Minute)
		if b := w.store.View().ServiceByName("b"); b.Endpoint.Ports[0].PublishedPort != 30001 || b.Endpoint.VirtualIPs[0] == w.store.View().ServiceByName("a").Endpoint.VirtualIPs[0] {
			t.Errorf("service b: got %+v", b.Endpoint)
		}
		w.checkConverged()
	})
}

// bigWorld has a thousand tasks on ten nodes and one network.
func bigWorld(b *testing.B) *world {
	w := newWorld(b)
	b.Cleanup(w.close)
	w.addNodes(10)
	w.network("wide", "10.64.0.0/16")
	for _, n := range w.nodes() {
		w.must(w.o.Report(w.ctx, netd.NodeID(n), dispatch.Report{}))
	}
	for i := range 50 {
		_, _, err := w.o.CreateService(w.ctx, spec(fmt.Sprintf("s%d", i), "ok", 20, "wide"))
		w.must(err)
	}
	w.settle()
	return w
}

// BenchmarkPass is one decision on a thousand running tasks with nothing to do.
func BenchmarkPass(b *testing.B) {
	w := bigWorld(b)
	for b.Loop() {
		w.o.pass(w.ctx)
	}
}

// BenchmarkProjection is telling ten nodes about a thousand tasks on one network.
func BenchmarkProjection(b *testing.B) {
	w := bigWorld(b)
	for b.Loop() {
		pr := newProjection(w.store.View())
		for i := range 10 {
			pr.assignment(netd.NodeID(fmt.Sprintf("n%d", i+1)))
		}
	}
}

// BenchmarkCreate is deciding on a service of a hundred tasks: addresses, nodes,
// and one raft entry.
func BenchmarkCreate(b *testing.B) {
	w := bigWorld(b)
	for i := 0; b.Loop(); i++ {
		_, _, err := w.o.CreateService(w.ctx, spec(fmt.Sprintf("x%d", i), "ok", 100, "wide"))
		w.must(err)
		w.o.pass(w.ctx)
		b.StopTimer()
		w.must(w.o.RemoveService(w.ctx, fmt.Sprintf("x%d", i)))
		w.settle()
		b.StartTimer()
	}
}

// Ten thousand decisions a minute apart are no different from one: the virtual
// clock of the bubble stands for the days that a swarm runs.
func TestIdleWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.close()
		w.network("blue", "")
		_, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 3, "blue"))
		w.must(err)
		w.settle()
		before := w.dump()
		w.advance(3 * time.Minute)
		if after := w.dump(); after != before {
			t.Errorf("three idle minutes changed\n%s\nto\n%s", before, after)
		}
	})
}
