package orchestrator

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// publish gives the service these ports and no others.
func publish(ports ...swarm.PortConfig) func(*swarm.ServiceSpec) {
	return func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Ports: ports} }
}

// ingressAddrs are the addresses that the service's wanted tasks have on the
// ingress network, by task.
func (w *world) ingressAddrs(id string) map[string]string {
	addrs := map[string]string{}
	for _, t := range w.store.View().TasksByService(id) {
		if !wanted(t) {
			continue
		}
		addrs[t.ID] = ""
		for _, a := range t.NetworksAttachments {
			if a.Network.Spec.Ingress {
				addrs[t.ID] = a.Addresses[0].String()
			}
		}
	}
	return addrs
}

// A port that is published makes the service's tasks join the ingress network,
// those that ran without it by being replaced; one more port, or one less, changes
// no task.
func TestPublishAddRemove(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		id, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 2, "blue"))
		w.must(err)
		w.settle()
		before := w.ingressAddrs(id)
		w.must(w.edit("web", publish(swarm.PortConfig{TargetPort: 80, PublishedPort: 8080})))
		w.advance(time.Minute)
		first := w.ingressAddrs(id)
		if len(first) != 2 {
			t.Fatalf("got tasks %v", first)
		}
		for task, addr := range first {
			if _, old := before[task]; old || addr == "" {
				t.Errorf("task %s with %q: want a new one with an address on the ingress network", task, addr)
			}
		}
		for _, ports := range [][]swarm.PortConfig{
			{{TargetPort: 80, PublishedPort: 8080}, {Protocol: network.UDP, TargetPort: 53}},
			{{Protocol: network.UDP, TargetPort: 53}}, nil,
		} {
			w.must(w.edit("web", publish(ports...)))
			w.advance(time.Minute)
			if now := w.ingressAddrs(id); fmt.Sprint(now) != fmt.Sprint(first) {
				t.Errorf("ports %v: tasks were %v, are %v", ports, first, now)
			}
			if got := w.assignment("n3").Snapshot.Ports; len(got) != len(ports) {
				t.Errorf("ports %v: the nodes know %v", ports, got)
			}
		}
		for _, p := range w.store.View().Service(id).Endpoint.VirtualIPs {
			if n := w.store.View().Network(p.NetworkID); n.Spec.Ingress {
				t.Errorf("nothing is published, and the service has %s on the ingress network", p.Addr)
			}
		}
	})
}

// Once a port is open on every node, every node is told of it, of the ingress
// network with its endpoints, and of all nodes; of a host port only the nodes with
// a task are.
func TestAssignmentPorts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		host := swarm.PortConfig{Protocol: network.UDP, TargetPort: 53, PublishedPort: 53, PublishMode: swarm.PortConfigPublishModeHost}
		on := func(s swarm.ServiceSpec, ports ...swarm.PortConfig) string {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.id==n1"}}
			publish(ports...)(&s)
			id, _, err := w.o.CreateService(w.ctx, s)
			w.must(err)
			w.settle()
			return id
		}
		dns := on(spec("dns", "ok", 1, "blue"), host)
		for task, addr := range w.ingressAddrs(dns) {
			if addr != "" {
				t.Errorf("task %s has a way out and needs no other for its host port: got %s", task, addr)
			}
		}
		if s := w.assignment("n3").Snapshot; len(s.Ports)+len(s.Networks) != 0 || len(s.Nodes) != 1 {
			t.Errorf("n3 has no task and nothing is open everywhere: got %+v", s)
		}
		bare := on(spec("bare", "ok", 1), swarm.PortConfig{TargetPort: 9, PublishedPort: 9, PublishMode: swarm.PortConfigPublishModeHost})
		for task, addr := range w.ingressAddrs(bare) {
			if addr == "" {
				t.Errorf("task %s has no network for its host port to lead to", task)
			}
		}
		web := on(spec("web", "ok", 1, "blue"), swarm.PortConfig{TargetPort: 80})
		open := netd.Port{Service: netd.ServiceID(web), Protocol: "tcp", Published: 30000, Target: 80}
		s := w.assignment("n3").Snapshot
		if len(s.Networks) != 1 || !s.Networks[0].Ingress || len(s.Nodes) != 3 || !slices.Equal(s.Ports, []netd.Port{open}) || len(s.Endpoints) != 2 {
			t.Errorf("n3: got %+v", s)
		}
		if s := w.assignment("n1").Snapshot; len(s.Ports) != 3 || len(s.Networks) != 2 {
			t.Errorf("n1: got %+v", s)
		}
	})
}

// A port that the swarm itself uses is refused, as are two services for one port.
func TestOwnPorts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		for _, p := range []swarm.PortConfig{
			{TargetPort: 80, PublishedPort: 2377}, {TargetPort: 80, PublishedPort: 7946}, {Protocol: network.UDP, TargetPort: 80, PublishedPort: 7946},
			{Protocol: network.UDP, TargetPort: 80, PublishedPort: 4789, PublishMode: swarm.PortConfigPublishModeHost},
		} {
			_, _, err := w.o.CreateService(w.ctx, change(spec("bad", "ok", 1), publish(p)))
			wantError(t, fmt.Sprint(p.PublishedPort), err, netd.ErrInvalid, "already in use by the swarm itself")
		}
		for _, p := range []swarm.PortConfig{{Protocol: network.UDP, TargetPort: 80, PublishedPort: 2377}, {TargetPort: 80, PublishedPort: 4789}} {
			_, _, err := w.o.CreateService(w.ctx, change(spec(fmt.Sprint("ok", p.PublishedPort), "ok", 1), publish(p)))
			w.must(err)
		}
	})
}
