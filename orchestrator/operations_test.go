package orchestrator

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/store"
)

func networkRequest(name string) network.CreateRequest {
	return network.CreateRequest{Name: name, Driver: "overlay", Labels: map[string]string{"a": "b"}}
}

func withSubnet(name, subnet, gateway string) network.CreateRequest {
	r := networkRequest(name)
	c := network.IPAMConfig{}
	if subnet != "" {
		c.Subnet = netip.MustParsePrefix(subnet)
	}
	if gateway != "" {
		c.Gateway = netip.MustParseAddr(gateway)
	}
	r.IPAM = &network.IPAM{Config: []network.IPAMConfig{c}}
	return r
}

// change returns the spec after f.
func change[T any](v T, f func(*T)) T {
	f(&v)
	return v
}

// wantError checks an error's kind and text, and that the store is untouched.
func wantError(t *testing.T, name string, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: got %v, want %v with %q", name, err, kind, text)
	}
}

// Every bad service is refused with Docker's kind and words, and changes nothing.
func TestServiceRefusals(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		published := change(spec("taken", "ok", 1, "blue"), func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80, PublishedPort: 8080}}}
		})
		_, _, err := w.o.CreateService(w.ctx, published)
		w.must(err)
		w.settle()
		before := w.dump()
		container := func(f func(*swarm.ContainerSpec)) func(*swarm.ServiceSpec) {
			return func(s *swarm.ServiceSpec) {
				c := *s.TaskTemplate.ContainerSpec
				f(&c)
				s.TaskTemplate.ContainerSpec = &c
			}
		}
		ports := func(mode swarm.ResolutionMode, all ...swarm.PortConfig) func(*swarm.ServiceSpec) {
			return func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: mode, Ports: all} }
		}
		replicas := func(n uint64) func(*swarm.ServiceSpec) {
			return func(s *swarm.ServiceSpec) { s.Mode.Replicated = &swarm.ReplicatedService{Replicas: &n} }
		}
		negative := -time.Second
		for _, tt := range []struct {
			name string
			edit func(*swarm.ServiceSpec)
			kind error
			text string
		}{
			{"duplicate", func(s *swarm.ServiceSpec) { s.Name = "Taken" }, netd.ErrExists, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service Taken already exists"},
			{"bad name", func(s *swarm.ServiceSpec) { s.Name = "-web" }, netd.ErrInvalid, "name must be valid as a DNS name component"},
			{"long name", func(s *swarm.ServiceSpec) { s.Name = strings.Repeat("x", 64) }, netd.ErrInvalid, "name must be 63 characters or fewer"},
			{"no image", container(func(c *swarm.ContainerSpec) { c.Image = "" }), netd.ErrInvalid, "rpc error: code = InvalidArgument desc = ContainerSpec: image reference must be provided"},
			{"bad image", container(func(c *swarm.ContainerSpec) { c.Image = "A B" }), netd.ErrInvalid, `ContainerSpec: "A B" is not a valid repository/tag`},
			{"secret", container(func(c *swarm.ContainerSpec) { c.Secrets = []*swarm.SecretReference{{}} }), netd.ErrUnsupported, "--secret"},
			{"no container", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil }, netd.ErrInvalid, "TaskSpec: missing runtime"},
			{"job", func(s *swarm.ServiceSpec) {
				s.Mode = swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{}}
			}, netd.ErrUnsupported, "job services are not supported yet"},
			{"two modes", func(s *swarm.ServiceSpec) { s.Mode.Global = &swarm.GlobalService{} }, netd.ErrInvalid, "must specify only one service mode"},
			{"huge", replicas(10_001), netd.ErrInvalid, "Number of replicas must be at most 10000"},
			{"negative", replicas(1 << 63), netd.ErrInvalid, "Number of replicas must be non-negative"},
			{"network", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "red"}}
			}, netd.ErrNotFound, "network red not found"},
			{"ingress", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "ingress"}}
			}, netd.ErrInvalid, "cannot be explicitly attached to the ingress network"},
			{"host network", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "host"}}
			}, netd.ErrForbidden, "The network host cannot be used with services."},
			{"port conflict", ports("", swarm.PortConfig{TargetPort: 1, PublishedPort: 8080}), netd.ErrInvalid, "port '8080' is already in use by service 'taken' ("},
			{"port range", ports("", swarm.PortConfig{TargetPort: 80, PublishedPort: 70000}), netd.ErrInvalid, "invalid published port 70000"},
			{"target port", ports("", swarm.PortConfig{TargetPort: 0, PublishedPort: 1}), netd.ErrInvalid, "invalid target port 0"},
			{"same port", ports("", swarm.PortConfig{TargetPort: 1, PublishedPort: 9}, swarm.PortConfig{TargetPort: 2, PublishedPort: 9}), netd.ErrInvalid, "duplicate published ports provided"},
			{"dnsrr", ports("dnsrr", swarm.PortConfig{TargetPort: 1, PublishedPort: 9}), netd.ErrInvalid, "can't be used with dnsrr mode"},
			{"constraint", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role=worker"}}
			}, netd.ErrInvalid, "constraint expected one operator from ==, !="},
			{"memory", func(s *swarm.ServiceSpec) {
				s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 1}}
			}, netd.ErrInvalid, "Must be at least 4MiB"},
			{"delay", func(s *swarm.ServiceSpec) { s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: &negative} }, netd.ErrInvalid, "restart-delay cannot be negative"},
			{"ratio", func(s *swarm.ServiceSpec) { s.UpdateConfig = &swarm.UpdateConfig{MaxFailureRatio: 2} }, netd.ErrInvalid, "maxfailureratio"},
			{"action", func(s *swarm.ServiceSpec) { s.RollbackConfig = &swarm.UpdateConfig{FailureAction: "rollback"} }, netd.ErrInvalid, "unrecognized rollback failure action"},
		} {
			_, _, err := w.o.CreateService(w.ctx, change(spec("web", "ok", 1, "blue"), tt.edit))
			wantError(t, tt.name, err, tt.kind, tt.text)
		}
		if after := w.dump(); after != before {
			t.Errorf("refusals changed the state:\n%s\nbefore\n%s", after, before)
		}
	})
}

// dump is the whole state as text, to see that nothing has changed.
func (w *world) dump() string {
	tx := w.store.View()
	return toJSON(tx.Services()) + toJSON(tx.Networks()) + toJSON(tx.Nodes()) + toJSON(tx.Tasks()) + toJSON(tx.Cluster())
}

// An update needs the version that was read, and may change neither name nor
// mode. Its write shows it in progress at once, if a task has to change.
func TestUpdateService(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id, _, err := w.o.CreateService(w.ctx, spec("web", "ok", 2))
		w.must(err)
		w.settle()
		s, err := w.o.GetService(w.ctx, "web", false)
		w.must(err)
		update := func(ref string, version uint64, s swarm.ServiceSpec, rollback bool) error {
			_, err := w.o.UpdateService(w.ctx, ref, version, s, rollback)
			return err
		}
		v := s.Version.Index
		wantError(t, "stale", update("web", v-1, s.Spec, false), netd.ErrOutOfSequence, "rpc error: code = Unknown desc = update out of sequence")
		wantError(t, "absent", update("nope", v, s.Spec, false), netd.ErrNotFound, "service nope not found")
		wantError(t, "rename", update("web", v, spec("other", "ok", 2), false), netd.ErrUnsupported, "renaming services is not supported")
		wantError(t, "mode", update("web", v, change(s.Spec, func(s *swarm.ServiceSpec) { s.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}} }), false),
			netd.ErrUnsupported, "service mode change is not allowed")
		wantError(t, "rollback", update("web", v, s.Spec, true), netd.ErrInvalid, "does not have a previous spec")
		w.must(update(id[:2], v, spec("", "ok", 3), false))
		if s, _ = w.o.GetService(w.ctx, id, false); s.UpdateStatus != nil || s.Spec.Name != "web" {
			t.Errorf("scaled: got %+v %q, want no update status", s.UpdateStatus, s.Spec.Name)
		}
		w.settle()
		s, _ = w.o.GetService(w.ctx, id, false)
		w.must(update("web", s.Version.Index, spec("web", "slow", 3), false))
		s, _ = w.o.GetService(w.ctx, id, false)
		if s.UpdateStatus == nil || s.UpdateStatus.State != swarm.UpdateStateUpdating || s.PreviousSpec == nil || s.PreviousSpec.TaskTemplate.ContainerSpec.Image != "ok" {
			t.Errorf("updated: got %+v", s.UpdateStatus)
		}
		for _, task := range w.store.View().TasksByService(id) {
			if w.o.UpToDate(w.ctx, *task) {
				t.Errorf("task %s is up to date before the update", task.ID)
			}
		}
		w.advance(time.Minute)
		for _, task := range w.store.View().TasksByService(id) {
			if w.o.UpToDate(w.ctx, *task) != wanted(task) {
				t.Errorf("task %s: up to date is %v", task.ID, !wanted(task))
			}
		}
		filled, err := w.o.GetService(w.ctx, "web", true)
		w.must(err)
		if filled.Spec.UpdateConfig.Monitor != 5*time.Second || *filled.Spec.TaskTemplate.RestartPolicy.Delay != 5*time.Second || s.Spec.UpdateConfig != nil {
			t.Errorf("defaults: got %+v", filled.Spec)
		}
	})
}

// A service keeps its virtual address and its chosen ports over any update that
// keeps the network and the port, and loses the address in mode dnsrr.
func TestEndpoint(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		w.network("red", "")
		s := spec("web", "ok", 1, "blue")
		s.EndpointSpec = &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{{TargetPort: 80}, {TargetPort: 81}}}
		id, _, err := w.o.CreateService(w.ctx, s)
		w.must(err)
		first := w.store.View().Service(id).Endpoint
		if len(first.VirtualIPs) != 2 || first.VirtualIPs[0].Addr.String() != "10.0.1.2/24" || first.VirtualIPs[1].Addr.String() != "10.0.0.2/24" || first.Ports[0].PublishedPort != 30000 || first.Ports[1].PublishedPort != 30001 {
			t.Fatalf("got %+v", first)
		}
		w.must(w.edit("web", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = append(slices.Clone(s.TaskTemplate.Networks), swarm.NetworkAttachmentConfig{Target: "red"})
			s.EndpointSpec = &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{{TargetPort: 81}}}
		}))
		second := w.store.View().Service(id).Endpoint
		if len(second.VirtualIPs) != 3 || second.VirtualIPs[0] != first.VirtualIPs[0] || second.VirtualIPs[2] != first.VirtualIPs[1] || len(second.Ports) != 1 || second.Ports[0].PublishedPort != 30001 {
			t.Errorf("got %+v", second)
		}
		w.must(w.edit("web", func(s *swarm.ServiceSpec) { s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr"} }))
		if third := w.store.View().Service(id).Endpoint; len(third.VirtualIPs)+len(third.Ports) != 0 {
			t.Errorf("dnsrr: got %+v", third)
		}
	})
}

// Networks get the next subnet and VNI; what overlaps, is in use or is not for
// networks is refused in Docker's words.
func TestNetworks(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "")
		w.network("own", "10.20.0.0/16")
		blue, err := w.o.GetNetwork(w.ctx, "blue")
		w.must(err)
		if subnet, gateway := subnetOf(&blue); subnet.String() != "10.0.1.0/24" || gateway.String() != "10.0.1.1" || vniOf(&blue) != 4097 {
			t.Errorf("got %v %v %d", subnet, gateway, vniOf(&blue))
		}
		ingress, err := w.o.GetNetwork(w.ctx, "ingress")
		w.must(err)
		if subnet, _ := subnetOf(&ingress); subnet.String() != "10.0.0.0/24" || !ingress.Spec.Ingress || vniOf(&ingress) != 4096 {
			t.Errorf("got %+v", ingress)
		}
		yes := true
		for _, tt := range []struct {
			name string
			req  network.CreateRequest
			kind error
			text string
		}{
			{"duplicate", networkRequest("blue"), netd.ErrExists, "network with name blue already exists"},
			{"no name", networkRequest(""), netd.ErrInvalid, "name must be provided"},
			{"overlap", withSubnet("x", "10.20.5.0/24", ""), netd.ErrForbidden, "Pool overlaps with other one on this address space"},
			{"host bits", withSubnet("x", "10.30.0.1/24", ""), netd.ErrInvalid, "invalid subnet 10.30.0.1/24: it should be 10.30.0.0/24"},
			{"small", withSubnet("x", "10.30.0.0/31", ""), netd.ErrInvalid, "too small"},
			{"link-local", withSubnet("x", "169.254.0.0/24", ""), netd.ErrInvalid, "is not for networks"},
			{"gateway", withSubnet("x", "10.30.0.0/24", "10.31.0.1"), netd.ErrInvalid, "not in subnet"},
			{"gateway alone", withSubnet("x", "", "10.31.0.1"), netd.ErrInvalid, "must have a corresponding subnet"},
			{"v6", withSubnet("x", "fd00::/64", ""), netd.ErrUnsupported, "IPv6"},
			{"v6 flag", network.CreateRequest{Name: "x", EnableIPv6: &yes}, netd.ErrUnsupported, "IPv6"},
			{"driver", network.CreateRequest{Name: "x", Driver: "macvlan"}, netd.ErrUnsupported, `"macvlan"`},
			{"predefined", networkRequest("host"), netd.ErrForbidden, "predefined host network"},
			{"encrypted", network.CreateRequest{Name: "x", Options: map[string]string{"encrypted": ""}}, netd.ErrUnsupported, "encrypted"},
			{"second ingress", network.CreateRequest{Name: "x", Ingress: true}, netd.ErrExists, "already present"},
		} {
			before := w.dump()
			_, err := w.o.CreateNetwork(w.ctx, tt.req)
			wantError(t, tt.name, err, tt.kind, tt.text)
			if w.dump() != before {
				t.Errorf("%s: the state has changed", tt.name)
			}
		}
	})
}

// A network goes when no service uses it. As long as a task of it still stops it is
// hidden, and its name is free, but not its subnet, its VNI or its addresses; with
// the last task it is gone.
func TestRemoveNetwork(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.network("blue", "10.9.0.0/24")
		id, _, err := w.o.CreateService(w.ctx, spec("web", "stubborn", 1, "blue"))
		w.must(err)
		w.settle()
		old, err := w.o.GetNetwork(w.ctx, "blue")
		w.must(err)
		wantError(t, "service", w.o.RemoveNetwork(w.ctx, "blue"), netd.ErrInvalid, "is in use by service "+id)
		w.must(w.o.RemoveService(w.ctx, "web"))
		w.must(w.o.RemoveNetwork(w.ctx, "blue")) // at once, as docker stack rm does
		w.settle()
		for _, ref := range []string{"blue", old.ID} {
			_, err := w.o.GetNetwork(w.ctx, ref)
			wantError(t, "hidden", err, netd.ErrNotFound, "network "+ref+" not found")
			wantError(t, "again", w.o.RemoveNetwork(w.ctx, ref), netd.ErrNotFound, "network "+ref+" not found")
		}
		if list, err := w.o.ListNetworks(w.ctx); err != nil || len(list) != 1 || list[0].Spec.Name != "ingress" {
			t.Errorf("list: got %v, %v", list, err)
		}
		if n := w.assignment(netd.NodeID(w.store.View().Tasks()[0].NodeID)).Snapshot.Networks; len(n) != 1 || n[0].Name != "blue" {
			t.Errorf("the stopping task's network: got %v", n)
		}
		again := network.CreateRequest{Name: "other", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.9.0.0/16")}}}}
		_, err = w.o.CreateNetwork(w.ctx, again)
		wantError(t, "same subnet", err, netd.ErrForbidden, "network blue, which is being removed")
		w.network("blue", "")
		next, err := w.o.GetNetwork(w.ctx, "blue")
		w.must(err)
		if vniOf(&next) == vniOf(&old) {
			t.Errorf("VNI %d is given again", vniOf(&old))
		}
		_, _, err = w.o.CreateService(w.ctx, spec("web", "ok", 1, "blue"))
		w.must(err)
		w.settle()
		w.advance(21 * time.Second)
		if n := w.store.View().Network(old.ID); n != nil {
			t.Errorf("the network is left: %+v", n)
		}
		_, err = w.o.CreateNetwork(w.ctx, again)
		w.must(err)
		wantError(t, "absent", w.o.RemoveNetwork(w.ctx, "red"), netd.ErrNotFound, "network red not found")
	})
}

// Nodes: versions, availability, roles, removal.
func TestNodes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		n, err := w.o.GetNode(w.ctx, "host-n2")
		w.must(err)
		update := func(ref string, version uint64, f func(*swarm.NodeSpec)) error {
			return w.o.UpdateNode(w.ctx, ref, version, change(n.Spec, f))
		}
		manager := w.store.View().Node("n1")
		wantError(t, "stale", update("n2", 0, func(*swarm.NodeSpec) {}), netd.ErrOutOfSequence, "update out of sequence")
		wantError(t, "promote", update("n2", n.Version.Index, func(s *swarm.NodeSpec) { s.Role = "manager" }), netd.ErrUnsupported, "several managers")
		wantError(t, "demote", update("n1", manager.Version.Index, func(s *swarm.NodeSpec) {}), netd.ErrInvalid, "attempting to demote the last manager of the swarm")
		wantError(t, "availability", update("n2", n.Version.Index, func(s *swarm.NodeSpec) { s.Availability = "asleep" }), netd.ErrInvalid, `invalid Availability: "asleep"`)
		wantError(t, "ambiguous", update("n", 0, func(*swarm.NodeSpec) {}), netd.ErrInvalid, "node n is ambiguous (3 matches found)")
		wantError(t, "ready", w.o.RemoveNode(w.ctx, "n2", false), netd.ErrInvalid, "node n2 is not down and can't be removed")
		wantError(t, "manager", w.o.RemoveNode(w.ctx, "n1", true), netd.ErrInvalid, "must be demoted to worker before removal")
		wantError(t, "absent", w.o.RemoveNode(w.ctx, "n7", true), netd.ErrNotFound, "node n7 not found")
		w.must(w.o.RemoveNode(w.ctx, "n2", true))
	})
}

// The swarm shows its tokens and root; rotating a token makes the old one void.
func TestSwarm(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, err := w.o.Swarm(w.ctx)
		w.must(err)
		if s.JoinTokens.Worker == "" || s.TLSInfo.TrustRoot == "" || len(s.TLSInfo.CertIssuerPublicKey) == 0 || s.Spec.Name != "default" {
			t.Errorf("got %+v", s)
		}
		wantError(t, "stale", w.o.UpdateSwarm(w.ctx, 0, s.Spec, false, false), netd.ErrOutOfSequence, "update out of sequence")
		short := s.Spec
		short.CAConfig.NodeCertExpiry = 10 * time.Minute
		wantError(t, "expiry", w.o.UpdateSwarm(w.ctx, s.Version.Index, short, false, false), netd.ErrInvalid, "minimum certificate expiry time is: 1h0m0s")
		w.must(w.o.UpdateSwarm(w.ctx, s.Version.Index, s.Spec, true, false))
		_, err = w.o.Join(w.ctx, joinRequest(t, s.JoinTokens.Worker, "192.0.2.9"))
		wantError(t, "old token", err, netd.ErrInvalid, "A valid join token is necessary")
		again, _ := w.o.Swarm(w.ctx)
		if again.JoinTokens.Worker == s.JoinTokens.Worker || again.JoinTokens.Manager != s.JoinTokens.Manager {
			t.Error("not exactly the worker's token was rotated")
		}
		wantError(t, "again", w.o.Init(w.ctx, store.Cluster{ID: "x"}, swarm.Node{ID: "x"}), netd.ErrExists, "holds a swarm already")
	})
}

// With a history of none, a slot that is finished keeps the one task that says so.
func TestNoHistory(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s, _ := w.o.Swarm(w.ctx)
		none := int64(0)
		s.Spec.Orchestration.TaskHistoryRetentionLimit = &none
		w.must(w.o.UpdateSwarm(w.ctx, s.Version.Index, s.Spec, false, false))
		for _, args := range []string{"once image=done condition=none", "web image=crash"} {
			sp := spec(strings.Fields(args)[0], "ok", 1)
			edit(&sp, strings.Fields(args)[1:])
			_, _, err := w.o.CreateService(w.ctx, sp)
			w.must(err)
		}
		w.advance(30 * time.Second)
		if got := len(w.store.View().Tasks()); got != 2 {
			t.Errorf("got %d tasks, want 2:\n%s", got, w.tasks())
		}
	})
}
