package node

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"netd"
	"netd/balancer"
	"netd/dns"
	"netd/gossip"
	"netd/vxlan"
)

var (
	addr   = netip.MustParseAddr
	netips = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})
)

// shop is a network with the service web on three nodes and the client on the
// first, seen from there.
func shop() Input {
	endpoint := func(id netd.TaskID, service netd.ServiceID, node netd.NodeID, a string) netd.Endpoint {
		return netd.Endpoint{Network: "shop", Task: id, Name: string(service) + ".1." + string(id), Service: service, Node: node, Addr: addr(a)}
	}
	ready := func(ids ...netd.TaskID) map[netd.EndpointKey]netd.EndpointState {
		m := map[netd.EndpointKey]netd.EndpointState{}
		for _, id := range ids {
			m[netd.EndpointKey{Network: "shop", Task: id}] = netd.Ready
		}
		return m
	}
	return Input{
		Self: "n1", Addr: addr("192.0.2.1"), Port: 4789, NetNSDir: "/ns", MTU: 1450,
		Snapshot: netd.Snapshot{
			Nodes:    []netd.Node{{ID: "n1", Addr: addr("192.0.2.1")}, {ID: "n2", Addr: addr("192.0.2.2")}, {ID: "n3", Addr: addr("192.0.2.3")}},
			Networks: []netd.Network{{ID: "shop", Name: "shop", VNI: 4097, Subnet: netip.MustParsePrefix("10.0.9.0/24"), Gateway: addr("10.0.9.1")}},
			Services: []netd.Service{{ID: "web", Network: "shop", Name: "web", VIP: addr("10.0.9.2")}},
			Endpoints: []netd.Endpoint{
				endpoint("w1", "web", "n1", "10.0.9.5"), endpoint("w2", "web", "n2", "10.0.9.6"), endpoint("w3", "web", "n3", "10.0.9.7"),
			},
		},
		Gossip: &gossip.View{Members: map[netd.NodeID]gossip.Member{
			"n1": {Alive: true, Version: 1, Entries: ready("w1")}, "n2": {Alive: true, Version: 1, Entries: ready("w2")}, "n3": {Alive: true, Version: 1, Entries: ready("w3")},
		}},
		Local: []LocalTask{{ID: "w1", NetNS: "/ns/task-w1", Attachments: []Attachment{{Network: "shop", Addr: netip.MustParsePrefix("10.0.9.5/24")}}}},
	}
}

// A network with a task here becomes a router with the task's port, a route to
// each remote endpoint, and one neighbour for each remote node.
func TestCompileOverlay(t *testing.T) {
	got := Compile(shop()).Overlay
	want := vxlan.Config{Networks: []vxlan.Network{{
		Router: "/ns/net-shop", VNI: 4097, MTU: 1450, Local: addr("192.0.2.1"), Port: 4789,
		MAC: vxlan.MAC(netd.RouterMAC("n1")), Subnet: netip.MustParsePrefix("10.0.9.0/24"),
		Addrs: []netip.Addr{addr("10.0.9.1"), addr("10.0.9.2"), netd.RouterAddr},
		Alias: addr("169.254.80.1"), Uplink: true,
		Peers:   []vxlan.Peer{{VTEP: addr("192.0.2.2"), MAC: vxlan.MAC(netd.RouterMAC("n2"))}, {VTEP: addr("192.0.2.3"), MAC: vxlan.MAC(netd.RouterMAC("n3"))}},
		Remotes: []vxlan.Remote{{Addr: addr("10.0.9.6"), VTEP: addr("192.0.2.2")}, {Addr: addr("10.0.9.7"), VTEP: addr("192.0.2.3")}},
		Ports:   []vxlan.Port{{Name: "nd-w1", NetNS: "/ns/task-w1", Iface: "eth0", Addr: netip.MustParsePrefix("10.0.9.5/24"), First: true, Default: true}},
	}}}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Error(diff)
	}
}

// A backend is ready only if the managers grant it, its owner says so and the
// owner is alive; an unreachable owner's backends keep their connections until
// the managers give them up too.
func TestCompileBackends(t *testing.T) {
	key := netd.EndpointKey{Network: "shop", Task: "w2"}
	ready := balancer.Backend{Addr: addr("10.0.9.6"), State: balancer.Ready}
	draining := balancer.Backend{Addr: addr("10.0.9.6"), State: balancer.Draining}
	for name, c := range map[string]struct {
		change func(*Input)
		want   []balancer.Backend
	}{
		"granted and ready":         {func(*Input) {}, []balancer.Backend{ready}},
		"not granted":               {func(in *Input) { in.Snapshot.Endpoints = slices.Delete(in.Snapshot.Endpoints, 1, 2) }, nil},
		"its owner says nothing":    {func(in *Input) { delete(in.Gossip.Members["n2"].Entries, key) }, nil},
		"its owner is unknown":      {func(in *Input) { delete(in.Gossip.Members, "n2") }, nil},
		"its owner withdraws it":    {func(in *Input) { in.Gossip.Members["n2"].Entries[key] = netd.Draining }, []balancer.Backend{draining}},
		"the managers want it gone": {func(in *Input) { in.Snapshot.Endpoints[1].Leaving = true }, []balancer.Backend{draining}},
		"its owner is unreachable": {func(in *Input) {
			in.Gossip.Members["n2"] = gossip.Member{Version: 1, Entries: in.Gossip.Members["n2"].Entries}
		}, []balancer.Backend{draining}},
		"unreachable and given up": {func(in *Input) {
			in.Gossip.Members["n2"] = gossip.Member{Version: 1, Entries: in.Gossip.Members["n2"].Entries}
			in.Snapshot.Endpoints[1].Leaving = true
		}, nil},
	} {
		in := shop()
		c.change(&in)
		var got []balancer.Backend
		for _, b := range Compile(in).Balancer.Routers[0].Services[0].Backends {
			if b.Addr == addr("10.0.9.6") {
				got = append(got, b)
			}
		}
		if diff := cmp.Diff(c.want, got, netips); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// The service's name is its VIP, tasks.NAME its ready endpoints, and a draining
// endpoint keeps its own name but leaves the list.
func TestCompileNames(t *testing.T) {
	in := shop()
	in.Gossip.Members["n3"].Entries[netd.EndpointKey{Network: "shop", Task: "w3"}] = netd.Draining
	got := Compile(in).DNS.Resolvers
	want := []dns.Resolver{{
		NetNS: "/ns/net-shop", Addr: netd.RouterAddr,
		Clients: []dns.Client{{Addr: addr("10.0.9.5"), Zones: []string{"shop"}, Forward: true}},
		Zones: []dns.Zone{{ID: "shop", Name: "shop", Subnet: netip.MustParsePrefix("10.0.9.0/24"),
			Records: []dns.Record{
				{Name: "tasks.web", Addrs: []netip.Addr{addr("10.0.9.5"), addr("10.0.9.6")}},
				{Name: "web", Addrs: []netip.Addr{addr("10.0.9.2")}},
				{Name: "web.1.w1", Addrs: []netip.Addr{addr("10.0.9.5")}},
				{Name: "web.1.w2", Addrs: []netip.Addr{addr("10.0.9.6")}},
				{Name: "web.1.w3", Addrs: []netip.Addr{addr("10.0.9.7")}},
			},
			PTRs: []dns.PTR{
				{Addr: addr("10.0.9.2"), Name: "web.shop"}, {Addr: addr("10.0.9.5"), Name: "web.1.w1.shop"},
				{Addr: addr("10.0.9.6"), Name: "web.1.w2.shop"}, {Addr: addr("10.0.9.7"), Name: "web.1.w3.shop"},
			}},
		},
	}}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Error(diff)
	}
}

// An alias answers as its service's name does, with all who share it; a service
// that bears the name itself is not hidden by another's alias.
func TestCompileAliases(t *testing.T) {
	in := shop()
	in.Snapshot.Services[0].Aliases = []string{"Db", "api", "other"}
	in.Snapshot.Services = append(in.Snapshot.Services,
		netd.Service{ID: "s8", Network: "shop", Name: "other", VIP: addr("10.0.9.8"), Aliases: []string{"api"}},
		netd.Service{ID: "s9", Network: "shop", Name: "rr", Aliases: []string{"api", "round"}})
	got := map[string][]netip.Addr{}
	for _, r := range Compile(in).DNS.Resolvers[0].Zones[0].Records {
		if _, twice := got[r.Name]; twice {
			t.Errorf("%s is there twice", r.Name)
		}
		got[r.Name] = r.Addrs
	}
	for name, want := range map[string][]netip.Addr{
		"db": {addr("10.0.9.2")}, "api": {addr("10.0.9.2"), addr("10.0.9.8")}, "other": {addr("10.0.9.8")}, "round": {},
		"tasks.db": {addr("10.0.9.5"), addr("10.0.9.6"), addr("10.0.9.7")}, "tasks.other": {}, "web": {addr("10.0.9.2")},
	} {
		if addrs, in := got[name]; !in || !slices.Equal(addrs, want) {
			t.Errorf("%s: got %v, want %v", name, addrs, want)
		}
	}
}

// A task on two networks has its default route on the first that has a way out,
// and may ask either router for the names of both.
func TestCompileTwoNetworks(t *testing.T) {
	in := shop()
	in.Snapshot.Networks = append(in.Snapshot.Networks, netd.Network{
		ID: "vault", Name: "vault", VNI: 4098, Subnet: netip.MustParsePrefix("10.0.8.0/24"), Gateway: addr("10.0.8.1"), Internal: true,
	})
	in.Local[0].Attachments = []Attachment{
		{Network: "vault", Addr: netip.MustParsePrefix("10.0.8.5/24")}, {Network: "shop", Addr: netip.MustParsePrefix("10.0.9.5/24")},
	}
	d := Compile(in)
	shopPort, vaultPort := d.Overlay.Networks[0].Ports[0], d.Overlay.Networks[1].Ports[0]
	if shopPort.Iface != "eth1" || shopPort.First || !shopPort.Default || vaultPort.Iface != "eth0" || !vaultPort.First || vaultPort.Default {
		t.Errorf("got ports %+v and %+v", shopPort, vaultPort)
	}
	if d.Overlay.Networks[1].Uplink {
		t.Error("an internal network has an uplink")
	}
	for _, r := range d.DNS.Resolvers {
		if len(r.Clients) != 1 || !slices.Equal(r.Clients[0].Zones, []string{"vault", "shop"}) || !r.Clients[0].Forward {
			t.Errorf("resolver of %s has clients %+v", r.NetNS, r.Clients)
		}
	}
}

// A network without a task on this node costs it nothing.
func TestCompileNothingLocal(t *testing.T) {
	in := shop()
	in.Local = nil
	if got := Compile(in); len(got.Overlay.Networks)+len(got.Balancer.Routers)+len(got.DNS.Resolvers) != 0 {
		t.Errorf("got %+v", got)
	}
}

// The order in which maps and slices come does not matter: equal inputs compile
// to deeply equal results, so that an unchanged swarm changes no kernel.
func TestCompileIsStable(t *testing.T) {
	want := Compile(shop())
	rapid.Check(t, func(t *rapid.T) {
		in := shop()
		in.Snapshot.Endpoints = rapid.Permutation(in.Snapshot.Endpoints).Draw(t, "endpoints")
		in.Snapshot.Nodes = rapid.Permutation(in.Snapshot.Nodes).Draw(t, "nodes")
		got := Compile(in)
		if diff := cmp.Diff(want, got, netips); diff != "" {
			t.Fatal(diff)
		}
	})
}
