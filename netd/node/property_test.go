package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"netd"
	"netd/balancer"
	"netd/gossip"
	"netd/vxlan"
)

// drawInput makes any world that managers, owners and this kernel could leave a
// node in, and some that they should not.
func drawInput(t *rapid.T) Input {
	in := Input{Self: "n1", Addr: addr("192.0.2.1"), Port: 4789, NetNSDir: "/ns", MTU: 1450, Gossip: &gossip.View{Members: map[netd.NodeID]gossip.Member{}}}
	nodes := rapid.IntRange(1, 5).Draw(t, "nodes")
	for i := 1; i <= nodes; i++ {
		id := netd.NodeID(fmt.Sprintf("n%d", i))
		if i == 1 || rapid.Bool().Draw(t, "told of the node") {
			in.Snapshot.Nodes = append(in.Snapshot.Nodes, netd.Node{ID: id, Name: string(id), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
		}
		if rapid.Bool().Draw(t, "met") {
			in.Gossip.Members[id] = gossip.Member{
				Alive: rapid.Bool().Draw(t, "alive"), Version: rapid.Uint64Range(0, 1).Draw(t, "version"),
				Entries: map[netd.EndpointKey]netd.EndpointState{},
			}
		}
	}
	for n := range rapid.IntRange(0, 3).Draw(t, "networks") {
		drawNetwork(t, &in, n, nodes)
	}
	return in
}

// drawNetwork adds a network with services and endpoints, and the local tasks of
// some of these.
func drawNetwork(t *rapid.T, in *Input, n, nodes int) {
	at := func(last int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(n), byte(last)}) }
	network := netd.NetworkID(fmt.Sprintf("network%d", n))
	if rapid.Bool().Draw(t, "told of the network") {
		in.Snapshot.Networks = append(in.Snapshot.Networks, netd.Network{
			ID: network, Name: string(network), VNI: uint32(4096 + n), Subnet: netip.PrefixFrom(at(0), 24), Gateway: at(1), Internal: rapid.Bool().Draw(t, "internal"),
		})
	}
	standing := balancer.Router{NetNS: RouterNetNS(in.NetNSDir, network)}
	for s := range rapid.IntRange(0, 3).Draw(t, "services") {
		service := netd.Service{ID: netd.ServiceID(fmt.Sprintf("s%d", s)), Network: network, Name: fmt.Sprintf("s%d", s)}
		if rapid.Bool().Draw(t, "has a VIP") {
			service.VIP = at(2 + s)
		}
		in.Snapshot.Services = append(in.Snapshot.Services, service)
	}
	for e := range rapid.IntRange(0, 8).Draw(t, "endpoints") {
		node := netd.NodeID(fmt.Sprintf("n%d", rapid.IntRange(1, nodes).Draw(t, "node")))
		service := fmt.Sprintf("s%d", rapid.IntRange(0, 3).Draw(t, "service"))
		endpoint := netd.Endpoint{
			Network: network, Task: netd.TaskID(fmt.Sprintf("t%d%d", n, e)), Service: netd.ServiceID(service), Node: node,
			Name: fmt.Sprintf("%s.1.t%d%d", service, n, e), Addr: at(10 + e), Leaving: rapid.Bool().Draw(t, "leaving"),
		}
		if rapid.IntRange(0, 4).Draw(t, "granted") > 0 {
			in.Snapshot.Endpoints = append(in.Snapshot.Endpoints, endpoint)
		}
		if m, met := in.Gossip.Members[node]; met {
			m.Entries[endpoint.Key()] = netd.EndpointState(rapid.IntRange(0, 2).Draw(t, "said"))
		}
		if rapid.Bool().Draw(t, "stands") {
			state := rapid.SampledFrom([]balancer.State{balancer.Ready, balancer.Draining}).Draw(t, "standing")
			standing.Services = append(standing.Services, balancer.Service{VIP: at(2), Backends: []balancer.Backend{{Addr: at(10 + e), State: state}}})
		}
		if node == in.Self && rapid.Bool().Draw(t, "here") {
			in.Local = append(in.Local, LocalTask{
				ID: endpoint.Task, NetNS: "/ns/task-" + string(endpoint.Task),
				Attachments: []Attachment{{Network: network, Addr: netip.PrefixFrom(at(10+e), 24)}},
			})
		}
	}
	in.Standing.Routers = append(in.Standing.Routers, standing)
}

// Whatever the managers, the owners and the kernel say, nothing gets into the
// kernel that was not granted: ports are of tasks that are here, remotes and
// peers of other nodes, backends and names of granted endpoints, and new
// connections go only where the owner wants them.
func TestCompileGrantsOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		d := Compile(in)
		if diff := cmp.Diff(d, Compile(in), netips); diff != "" {
			t.Fatalf("compiled twice: %s", diff)
		}
		granted := map[netip.Addr]netd.Endpoint{}
		for _, e := range in.Snapshot.Endpoints {
			granted[e.Addr] = e
		}
		for _, n := range d.Overlay.Networks {
			checkOverlay(t, in, n, granted)
		}
		for _, r := range d.Balancer.Routers {
			for _, s := range r.Services {
				for _, b := range s.Backends {
					checkBackend(t, in, b, granted)
				}
			}
		}
		for _, r := range d.DNS.Resolvers {
			for _, z := range r.Zones {
				for _, record := range z.Records {
					for _, a := range record.Addrs {
						if _, ok := granted[a]; !ok && !isVIP(in, a) {
							t.Fatalf("%s resolves to %s, which is neither an endpoint nor a VIP", record.Name, a)
						}
					}
				}
			}
		}
	})
}

func isVIP(in Input, a netip.Addr) bool {
	return slices.ContainsFunc(in.Snapshot.Services, func(s netd.Service) bool { return s.VIP == a })
}

func checkOverlay(t *rapid.T, in Input, n vxlan.Network, granted map[netip.Addr]netd.Endpoint) {
	for _, p := range n.Ports {
		i := slices.IndexFunc(in.Local, func(l LocalTask) bool { return l.NetNS == p.NetNS })
		if i < 0 || !slices.ContainsFunc(in.Local[i].Attachments, func(a Attachment) bool { return a.Addr == p.Addr }) {
			t.Fatalf("port %+v is of no local task", p)
		}
	}
	byVTEP := func(a, b vxlan.Peer) int { return a.VTEP.Compare(b.VTEP) }
	byAddr := func(a, b vxlan.Remote) int { return a.Addr.Compare(b.Addr) }
	if !slices.IsSortedFunc(n.Peers, byVTEP) || !slices.IsSortedFunc(n.Remotes, byAddr) {
		t.Fatalf("not sorted: %+v", n)
	}
	seen := map[netip.Addr]bool{in.Addr: true}
	for _, p := range n.Peers {
		if seen[p.VTEP] {
			t.Fatalf("peer %s twice, or this node", p.VTEP)
		}
		seen[p.VTEP] = true
	}
	for _, r := range n.Remotes {
		e, ok := granted[r.Addr]
		if !ok || e.Node == in.Self || !seen[r.VTEP] || r.VTEP == in.Addr {
			t.Fatalf("remote %+v of endpoint %+v, peers %v", r, e, n.Peers)
		}
	}
	if !strings.HasPrefix(n.Router, in.NetNSDir+"/net-") || len(n.Ports) == 0 {
		t.Fatalf("network %+v has no reason to be here", n)
	}
}

func checkBackend(t *rapid.T, in Input, b balancer.Backend, granted map[netip.Addr]netd.Endpoint) {
	e, ok := granted[b.Addr]
	if !ok {
		t.Fatalf("backend %s is no granted endpoint", b.Addr)
	}
	owner := in.Gossip.Members[e.Node]
	if b.State != balancer.Ready || owner.Version == 0 {
		return
	}
	if e.Leaving || !owner.Alive || owner.Entries[e.Key()] != netd.Ready {
		t.Fatalf("backend %+v gets new connections; owner %+v", e, owner)
	}
}

// As long as nothing was heard of an owner, what the kernel balances stands: a
// restarted daemon neither adds nor removes a backend, but the managers' word
// that one leaves counts.
func TestCompileKeepsWhatStands(t *testing.T) {
	in := shop()
	in.Gossip.Members = map[netd.NodeID]gossip.Member{"n1": in.Gossip.Members["n1"]}
	in.Snapshot.Endpoints[2].Leaving = true
	in.Standing = balancer.Config{Routers: []balancer.Router{{NetNS: "/ns/net-shop", Services: []balancer.Service{{
		VIP: addr("10.0.9.2"), Backends: []balancer.Backend{
			{Addr: addr("10.0.9.6"), State: balancer.Ready}, {Addr: addr("10.0.9.7"), State: balancer.Ready}, {Addr: addr("10.0.9.9"), State: balancer.Ready},
		},
	}}}}}
	if !in.unheard() {
		t.Error("two owners are not heard of, and the kernel would not be asked")
	}
	want := []balancer.Backend{
		{Addr: addr("10.0.9.5"), State: balancer.Ready}, {Addr: addr("10.0.9.6"), State: balancer.Ready}, {Addr: addr("10.0.9.7"), State: balancer.Draining},
	}
	if diff := cmp.Diff(want, Compile(in).Balancer.Routers[0].Services[0].Backends, netips); diff != "" {
		t.Error(diff)
	}
	// Both are heard, and leave.
	in.Heard = map[netd.NodeID]bool{"n2": true, "n3": true}
	if in.unheard() {
		t.Error("all owners were heard of, and the kernel would be asked")
	}
	if diff := cmp.Diff(want[:1], Compile(in).Balancer.Routers[0].Services[0].Backends, netips); diff != "" {
		t.Error(diff)
	}
}

// A large swarm: 5,000 endpoints of 1,000 services on 10 networks and 50 nodes,
// a hundred of the tasks here.
func BenchmarkCompile(b *testing.B) {
	in := Input{Self: "n0", Addr: addr("192.0.2.0"), Port: 4789, NetNSDir: "/ns", MTU: 1450, Gossip: &gossip.View{Members: map[netd.NodeID]gossip.Member{}}}
	for i := range 50 {
		id := netd.NodeID(fmt.Sprintf("n%d", i))
		in.Snapshot.Nodes = append(in.Snapshot.Nodes, netd.Node{ID: id, Name: string(id), Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})})
		in.Gossip.Members[id] = gossip.Member{Alive: true, Version: 1, Entries: map[netd.EndpointKey]netd.EndpointState{}}
	}
	for n := range 10 {
		id := netd.NetworkID(fmt.Sprintf("network%d", n))
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n), 0, 0}), 16)
		in.Snapshot.Networks = append(in.Snapshot.Networks, netd.Network{ID: id, Name: string(id), VNI: uint32(4096 + n), Subnet: subnet, Gateway: subnet.Addr().Next()})
		for s := range 100 {
			service := netd.ServiceID(fmt.Sprintf("s%d-%d", n, s))
			in.Snapshot.Services = append(in.Snapshot.Services, netd.Service{ID: service, Network: id, Name: string(service), VIP: netip.AddrFrom4([4]byte{10, byte(n), 1, byte(s)})})
			for e := range 5 {
				i := len(in.Snapshot.Endpoints)
				task := netd.TaskID(fmt.Sprintf("task%08d", i))
				at := netip.AddrFrom4([4]byte{10, byte(n), byte(2 + e), byte(s)})
				owner := netd.NodeID(fmt.Sprintf("n%d", i%50))
				in.Snapshot.Endpoints = append(in.Snapshot.Endpoints, netd.Endpoint{Network: id, Task: task, Name: fmt.Sprintf("%s.%d.%s", service, e, task), Service: service, Node: owner, Addr: at})
				in.Gossip.Members[owner].Entries[netd.EndpointKey{Network: id, Task: task}] = netd.Ready
				if owner == in.Self {
					in.Local = append(in.Local, LocalTask{ID: task, NetNS: "/ns/task-" + string(task), Attachments: []Attachment{{Network: id, Addr: netip.PrefixFrom(at, 16)}}})
				}
			}
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		Compile(in)
	}
}
