package node

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"netd"
	"netd/ingress"
)

// mesh is shop with web's port 8080 open on every node: web is on the ingress
// network too, with one task on each of the first two nodes.
func mesh() Input {
	in := shop()
	in.Snapshot.Networks = append(in.Snapshot.Networks, netd.Network{
		ID: "mesh", Name: "ingress", VNI: 4096, Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: addr("10.0.0.1"), Ingress: true})
	in.Snapshot.Services = append(in.Snapshot.Services, netd.Service{ID: "web", Network: "mesh", Name: "web", VIP: addr("10.0.0.2")})
	for i, task := range []netd.TaskID{"w1", "w2"} {
		node := netd.NodeID([]string{"n1", "n2"}[i])
		in.Snapshot.Endpoints = append(in.Snapshot.Endpoints, netd.Endpoint{Network: "mesh", Task: task, Name: "web.1." + string(task),
			Service: "web", Node: node, Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(5 + i)})})
		in.Gossip.Members[node].Entries[netd.EndpointKey{Network: "mesh", Task: task}] = netd.Ready
	}
	in.Local[0].Attachments = append(in.Local[0].Attachments, Attachment{Network: "mesh", Addr: netip.MustParsePrefix("10.0.0.5/24")})
	in.Snapshot.Ports = []netd.Port{{Service: "web", Protocol: "tcp", Published: 8080, Target: 80}}
	return in
}

// A port that is open on every node leads to the service's VIP on the ingress
// network, on nodes with a task and without; host ports lead to the node's own
// task, and nowhere where there is none.
func TestCompilePorts(t *testing.T) {
	hostPort := netd.Port{Service: "web", Protocol: "udp", Published: 53, Target: 5353, Host: true}
	everywhere := ingress.Port{Protocol: ingress.TCP, Port: 8080, To: netip.MustParseAddrPort("10.0.0.2:80")}
	uplink := []string{"nd-up4096"}
	for name, test := range map[string]struct {
		edit func(*Input)
		want ingress.Config
	}{
		"with a task":    {func(*Input) {}, ingress.Config{Ports: []ingress.Port{everywhere}, Local: uplink}},
		"without a task": {func(in *Input) { in.Local = nil }, ingress.Config{Ports: []ingress.Port{everywhere}, Local: uplink}},
		"host port": {func(in *Input) { in.Snapshot.Ports = append(in.Snapshot.Ports, hostPort) },
			ingress.Config{Ports: []ingress.Port{everywhere, {Protocol: ingress.UDP, Port: 53, To: netip.MustParseAddrPort("10.0.0.5:5353")}}, Local: uplink}},
		"host port without a task": {func(in *Input) { in.Local, in.Snapshot.Ports = nil, []netd.Port{hostPort} }, ingress.Config{}},
		"host port by another network": {func(in *Input) {
			in.Local[0].Attachments, in.Snapshot.Ports = in.Local[0].Attachments[:1], []netd.Port{hostPort}
		}, ingress.Config{Ports: []ingress.Port{{Protocol: ingress.UDP, Port: 53, To: netip.MustParseAddrPort("10.0.9.5:5353")}}, Local: []string{"nd-up4097"}}},
		"no VIP yet":   {func(in *Input) { in.Snapshot.Services[1].VIP = netip.Addr{} }, ingress.Config{}},
		"nothing open": {func(in *Input) { in.Snapshot.Ports = nil }, ingress.Config{}},
	} {
		t.Run(name, func(t *testing.T) {
			in := mesh()
			test.edit(&in)
			if diff := cmp.Diff(test.want, Compile(in).Ingress, netips); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The ingress router knows every node as a peer, as clients come by any; the
// task's default route is there, its resolver is not, and no name is.
func TestCompileIngressRouter(t *testing.T) {
	in := mesh()
	d := Compile(in)
	router := d.Overlay.Networks[0]
	if !router.Return || !router.Uplink || len(router.Peers) != 2 || len(router.Remotes) != 1 {
		t.Errorf("got %+v", router)
	}
	if p := router.Ports[0]; p.First || !p.Default || p.Iface != "eth1" {
		t.Errorf("ingress port: got %+v", p)
	}
	if p := d.Overlay.Networks[1].Ports[0]; !p.First || p.Default {
		t.Errorf("shop port: got %+v", p)
	}
	for _, r := range d.DNS.Resolvers {
		for _, z := range r.Zones {
			if z.ID == "mesh" {
				t.Errorf("%s answers for the ingress network", r.NetNS)
			}
		}
		for _, c := range r.Clients {
			if slices.Contains(c.Zones, "mesh") || !c.Forward {
				t.Errorf("%s: client %+v", r.NetNS, c)
			}
		}
	}
	in.Local, in.Self, in.Addr = nil, "n3", addr("192.0.2.3")
	d = Compile(in)
	if len(d.Overlay.Networks) != 1 || len(d.Overlay.Networks[0].Peers) != 2 || len(d.Overlay.Networks[0].Remotes) != 2 || len(d.Balancer.Routers[0].Services[0].Backends) != 2 {
		t.Errorf("a node without tasks: got %+v", d)
	}
}
