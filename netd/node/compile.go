package node

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"netd"
	"netd/balancer"
	"netd/dns"
	"netd/gossip"
	"netd/ingress"
	"netd/vxlan"
)

// Input is all that this node's network depends on.
type Input struct {
	Self netd.NodeID
	// Addr is this node's VTEP.
	Addr netip.Addr
	// Port is the swarm's VXLAN port.
	Port uint16
	// NetNSDir is where network namespaces are pinned.
	NetNSDir string
	// MTU is that of the overlay: the path's less the encapsulation.
	MTU int
	// Upstreams answer the DNS queries that are not about the swarm.
	Upstreams []netip.AddrPort
	// Snapshot is what the managers grant; Gossip is what the owners say of it.
	Snapshot netd.Snapshot
	Gossip   *gossip.View
	// Heard are the owners that were heard since this daemon's start, also those
	// that have left since and are in Gossip no more.
	Heard map[netd.NodeID]bool
	// Standing is what the kernel balances now, needed only while there are owners
	// that were not heard since this daemon's start.
	Standing balancer.Config
	// Local are the tasks whose namespaces exist on this node.
	Local []LocalTask
}

// LocalTask is a task of this node with its namespace.
type LocalTask struct {
	ID    netd.TaskID
	NetNS string
	// Attachments are in the order of the task's interfaces, eth0 first.
	Attachments []Attachment
}

// Attachment is a task's address on one network.
type Attachment struct {
	Network netd.NetworkID
	// Addr has the prefix length of the network's subnet.
	Addr netip.Prefix
}

// Desired is what this node's kernel and resolver must hold.
type Desired struct {
	Overlay  vxlan.Config
	Balancer balancer.Config
	DNS      dns.Config
	Ingress  ingress.Config
}

// Compile decides what this node's network must be. It is the one place of all
// network policy: who may be reached, who gets connections, who answers to which
// name. Pure: equal inputs give deeply equal results.
func Compile(in Input) Desired {
	c := compiler{
		Input: in, nodes: map[netd.NodeID]netd.Node{}, networks: map[netd.NetworkID]netd.Network{},
		endpoints: map[serviceKey][]netd.Endpoint{}, standing: map[netip.Addr]balancer.State{},
	}
	for _, r := range in.Standing.Routers {
		for _, s := range r.Services {
			for _, b := range s.Backends {
				c.standing[b.Addr] = b.State
			}
		}
	}
	for _, n := range in.Snapshot.Nodes {
		c.nodes[n.ID] = n
	}
	for _, n := range in.Snapshot.Networks {
		c.networks[n.ID] = n
	}
	for _, e := range in.Snapshot.Endpoints {
		key := serviceKey{e.Network, e.Service}
		c.endpoints[key] = append(c.endpoints[key], e)
	}
	d := Desired{DNS: dns.Config{Upstreams: in.Upstreams}}
	for _, n := range in.Snapshot.Networks {
		if !c.hasLocal(n.ID) && !n.Ingress {
			continue
		}
		d.Overlay.Networks = append(d.Overlay.Networks, c.overlay(n))
		d.Balancer.Routers = append(d.Balancer.Routers, c.router(n))
		d.DNS.Resolvers = append(d.DNS.Resolvers, c.resolver(n))
	}
	d.Ingress = c.ingress()
	slices.SortFunc(d.Overlay.Networks, func(a, b vxlan.Network) int { return int(a.VNI) - int(b.VNI) })
	slices.SortFunc(d.Balancer.Routers, func(a, b balancer.Router) int { return strings.Compare(a.NetNS, b.NetNS) })
	slices.SortFunc(d.DNS.Resolvers, func(a, b dns.Resolver) int { return strings.Compare(a.NetNS, b.NetNS) })
	return d
}

type compiler struct {
	Input
	nodes     map[netd.NodeID]netd.Node
	networks  map[netd.NetworkID]netd.Network
	endpoints map[serviceKey][]netd.Endpoint
	// standing is Input.Standing by backend: subnets do not overlap.
	standing map[netip.Addr]balancer.State
}

type serviceKey struct {
	network netd.NetworkID
	service netd.ServiceID
}

// RouterNetNS is where the router namespace of a network is pinned.
func RouterNetNS(dir string, id netd.NetworkID) string {
	return filepath.Join(dir, "net-"+string(id[:min(len(id), 12)]))
}

// portName is the router's end of a task's veth: unique in the router, at most
// 15 bytes (IFNAMSIZ).
func portName(id netd.TaskID) string { return "nd-" + string(id[:min(len(id), 12)]) }

func (c *compiler) hasLocal(id netd.NetworkID) bool {
	return slices.ContainsFunc(c.Local, func(t LocalTask) bool { return t.on(id) })
}

func (t LocalTask) on(id netd.NetworkID) bool {
	return slices.ContainsFunc(t.Attachments, func(a Attachment) bool { return a.Network == id })
}

// overlay gives the network's links, routes and neighbours on this node.
func (c *compiler) overlay(n netd.Network) vxlan.Network {
	v := vxlan.Network{
		Router: RouterNetNS(c.NetNSDir, n.ID), VNI: n.VNI, MTU: c.MTU, Local: c.Addr, Port: c.Port,
		MAC: vxlan.MAC(netd.RouterMAC(c.Self)), Subnet: n.Subnet, Alias: n.HairpinAlias(), Uplink: !n.Internal,
		Addrs: []netip.Addr{netd.RouterAddr, n.Gateway}, Return: n.Ingress,
	}
	for _, s := range c.Snapshot.Services {
		if s.Network == n.ID && s.VIP.IsValid() {
			v.Addrs = append(v.Addrs, s.VIP)
		}
	}
	peers := map[netip.Addr]vxlan.MAC{}
	for _, at := range c.Snapshot.Nodes {
		if n.Ingress && at.ID != c.Self { // clients come by any node
			peers[at.Addr] = vxlan.MAC(netd.RouterMAC(at.ID))
		}
	}
	for _, e := range c.Snapshot.Endpoints {
		at, known := c.nodes[e.Node]
		if e.Network != n.ID || e.Node == c.Self || !known || at.Addr == c.Addr {
			continue
		}
		peers[at.Addr] = vxlan.MAC(netd.RouterMAC(at.ID))
		v.Remotes = append(v.Remotes, vxlan.Remote{Addr: e.Addr, VTEP: at.Addr})
	}
	for vtep, mac := range peers {
		v.Peers = append(v.Peers, vxlan.Peer{VTEP: vtep, MAC: mac})
	}
	v.Ports = c.ports(n)
	slices.SortFunc(v.Addrs, netip.Addr.Compare)
	slices.SortFunc(v.Peers, func(a, b vxlan.Peer) int { return a.VTEP.Compare(b.VTEP) })
	slices.SortFunc(v.Remotes, func(a, b vxlan.Remote) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(v.Ports, func(a, b vxlan.Port) int { return strings.Compare(a.Name, b.Name) })
	return v
}

// ports gives the interfaces of this node's tasks on the network. The first
// interface carries the route to the resolver.
func (c *compiler) ports(n netd.Network) []vxlan.Port {
	var ports []vxlan.Port
	for _, t := range c.Local {
		way := c.way(t)
		for i, a := range t.Attachments {
			if a.Network != n.ID {
				continue
			}
			ports = append(ports, vxlan.Port{
				Name: portName(t.ID), NetNS: t.NetNS, Iface: "eth" + strconv.Itoa(i), Addr: a.Addr,
				First: i == 0, Default: i == way,
			})
		}
	}
	return ports
}

// way is the task's attachment that carries its default route, -1 for none: that
// on the ingress network, as a server that is bound to no address answers from the
// default route's, or else the first on a network with a way out.
func (c *compiler) way(t LocalTask) int {
	i := slices.IndexFunc(t.Attachments, func(a Attachment) bool { return c.networks[a.Network].Ingress })
	if i >= 0 {
		return i
	}
	return slices.IndexFunc(t.Attachments, func(a Attachment) bool {
		on, known := c.networks[a.Network]
		return known && !on.Internal
	})
}

// router gives the network's VIPs and their backends, as seen from this node.
func (c *compiler) router(n netd.Network) balancer.Router {
	r := balancer.Router{NetNS: RouterNetNS(c.NetNSDir, n.ID), Alias: n.HairpinAlias()}
	for _, t := range c.Local {
		for _, a := range t.Attachments {
			if a.Network == n.ID {
				r.Locals = append(r.Locals, a.Addr.Addr())
			}
		}
	}
	for _, s := range c.Snapshot.Services {
		if s.Network != n.ID || !s.VIP.IsValid() {
			continue
		}
		service := balancer.Service{VIP: s.VIP}
		for _, e := range c.endpoints[serviceKey{n.ID, s.ID}] {
			if state, in := c.backendState(e); in {
				service.Backends = append(service.Backends, balancer.Backend{Addr: e.Addr, State: state})
			}
		}
		slices.SortFunc(service.Backends, func(a, b balancer.Backend) int { return a.Addr.Compare(b.Addr) })
		r.Services = append(r.Services, service)
	}
	slices.SortFunc(r.Locals, netip.Addr.Compare)
	slices.SortFunc(r.Services, func(a, b balancer.Service) int { return a.VIP.Compare(b.VIP) })
	return r
}

// backendState joins what the managers grant with what the owner says. An
// endpoint whose owner is unreachable gets no new connections but keeps those it
// has, for the silence may be ours; once the managers too have given it up, it is
// dead, and its connections are reset instead of hanging. As long as nothing was
// heard of an owner, as after a start of this daemon, what the kernel does stands;
// an owner that was heard and has left has nothing any more.
func (c *compiler) backendState(e netd.Endpoint) (state balancer.State, in bool) {
	owner := c.Gossip.Members[e.Node]
	if !c.heard(e.Node) {
		state, in = c.standing[e.Addr]
		if e.Leaving && in {
			state = balancer.Draining
		}
		return state, in
	}
	said := owner.Entries[e.Key()]
	switch {
	case said == 0:
		return 0, false
	case !owner.Alive && e.Leaving:
		return 0, false
	case !owner.Alive || e.Leaving || said == netd.Draining:
		return balancer.Draining, true
	default:
		return balancer.Ready, true
	}
}

// heard is false for a node of which no state has come yet.
func (in Input) heard(id netd.NodeID) bool { return in.Heard[id] || in.Gossip.Members[id].Version > 0 }

// unheard says whether Compile needs to know what the kernel does now.
func (in Input) unheard() bool {
	return slices.ContainsFunc(in.Snapshot.Endpoints, func(e netd.Endpoint) bool { return !in.heard(e.Node) })
}
