package orchestrator

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/dispatch"
	"netd/orchestrator/store"
)

// gossipPort is where every node's gossip listens, tcp and udp.
const gossipPort = 7946

// projection is one state of the store, arranged by network: the way from the
// Docker API's objects to the root package's values. It is made once per change
// and asked once per node.
type projection struct {
	tx         *store.Tx
	nodes      map[string]*swarm.Node
	networks   map[string]netd.Network
	services   map[string][]netd.Service  // by network
	endpoints  map[string][]netd.Endpoint // by network, sorted by task as the store is
	hosts      map[string]map[string]bool // by network, the nodes of its endpoints
	ports      []netd.Port                // of all services, sorted
	peers      []netip.AddrPort
	managers   []string      // sorted
	managerIDs []netd.NodeID // the managers' nodes, in the same order
	members    []netd.NodeID // sorted as the store is
}

func newProjection(tx *store.Tx) *projection {
	pr := &projection{
		tx:        tx,
		nodes:     map[string]*swarm.Node{},
		networks:  map[string]netd.Network{},
		services:  map[string][]netd.Service{},
		endpoints: map[string][]netd.Endpoint{},
		hosts:     map[string]map[string]bool{},
	}
	managers := map[string]netd.NodeID{}
	for _, n := range tx.Nodes() {
		pr.nodes[n.ID] = n
		pr.members = append(pr.members, netd.NodeID(n.ID))
		if addr, err := netip.ParseAddr(n.Status.Addr); err == nil {
			pr.peers = append(pr.peers, netip.AddrPortFrom(addr, gossipPort))
		}
		if n.ManagerStatus != nil && n.ManagerStatus.Addr != "" {
			managers[n.ManagerStatus.Addr] = netd.NodeID(n.ID)
		}
	}
	slices.SortFunc(pr.peers, netip.AddrPort.Compare)
	pr.peers = slices.Compact(pr.peers)
	for _, addr := range sortedKeys(managers) {
		pr.managers, pr.managerIDs = append(pr.managers, addr), append(pr.managerIDs, managers[addr])
	}
	for _, n := range tx.Networks() {
		pr.networks[n.ID] = networkValue(n)
	}
	names := map[string]string{}
	for _, s := range tx.Services() {
		pr.addPorts(s)
	}
	slices.SortFunc(pr.ports, func(a, b netd.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Published, b.Published), cmp.Compare(a.Service, b.Service))
	})
	for _, s := range tx.Services() {
		names[s.ID] = s.Spec.Name
		pr.addService(s)
	}
	for _, t := range tx.Tasks() {
		if name, ok := names[t.ServiceID]; ok && assigned(t) {
			pr.addEndpoints(t, name)
		} else if assigned(t) {
			pr.addEndpoints(t, t.ServiceID) // its service is removed: it is leaving
		}
	}
	return pr
}

func networkValue(n *swarm.Network) netd.Network {
	subnet, gateway := subnetOf(n)
	name := n.Spec.Name
	if removing(n) { // the tasks that are left go on under the old name
		name = n.DriverState.Options[optionRemoved]
	}
	return netd.Network{
		ID: netd.NetworkID(n.ID), Name: name, VNI: vniOf(n), Subnet: subnet, Gateway: gateway,
		Internal: n.Spec.Internal, Attachable: n.Spec.Attachable, Ingress: n.Spec.Ingress,
	}
}

// addService adds the service on each network on which it has or could have
// tasks: those of its spec, and those of its virtual addresses.
func (pr *projection) addService(s *swarm.Service) {
	on := map[string]netip.Addr{}
	aliases := map[string][]string{}
	for _, n := range s.Spec.TaskTemplate.Networks {
		on[n.Target] = netip.Addr{}
		aliases[n.Target] = append(aliases[n.Target], n.Aliases...)
	}
	for _, vip := range s.Endpoint.VirtualIPs {
		on[vip.NetworkID] = vip.Addr.Addr()
	}
	for network, vip := range on {
		slices.Sort(aliases[network])
		pr.services[network] = append(pr.services[network], netd.Service{
			ID: netd.ServiceID(s.ID), Network: netd.NetworkID(network), Name: s.Spec.Name, VIP: vip,
			Aliases: slices.Compact(aliases[network]),
		})
	}
}

// addPorts adds the service's published ports that have a number by now.
func (pr *projection) addPorts(s *swarm.Service) {
	for _, p := range s.Endpoint.Ports {
		if p.PublishedPort != 0 {
			pr.ports = append(pr.ports, netd.Port{
				Service: netd.ServiceID(s.ID), Protocol: netd.Protocol(protocolOf(p)),
				Published: uint16(p.PublishedPort), Target: uint16(p.TargetPort), Host: !published(p),
			})
		}
	}
}

func (pr *projection) addEndpoints(t *swarm.Task, service string) {
	n := pr.nodes[t.NodeID]
	if n == nil {
		return
	}
	for _, at := range t.NetworksAttachments {
		if len(at.Addresses) == 0 {
			continue
		}
		if pr.hosts[at.Network.ID] == nil {
			pr.hosts[at.Network.ID] = map[string]bool{}
		}
		pr.hosts[at.Network.ID][t.NodeID] = true
		pr.endpoints[at.Network.ID] = append(pr.endpoints[at.Network.ID], netd.Endpoint{
			Network: netd.NetworkID(at.Network.ID),
			Task:    netd.TaskID(t.ID),
			Name:    TaskName(service, t),
			Service: netd.ServiceID(t.ServiceID),
			Node:    netd.NodeID(t.NodeID),
			Addr:    at.Addresses[0].Addr(),
			Leaving: !wanted(t) || n.Status.State == swarm.NodeStateDown,
		})
	}
}

// TaskName is the task's name as Swarm forms it: web.1.<task ID>, and for a
// global service, whose tasks have no number, web.<node ID>.<task ID>.
func TaskName(service string, t *swarm.Task) string {
	place := t.NodeID
	if t.Slot != 0 {
		place = strconv.Itoa(t.Slot)
	}
	return service + "." + place + "." + t.ID
}

// assignment is all that one node is told: its tasks, and of the swarm's network
// what these can reach. It is pure, and the same for the same state but for the
// generation, which is the session's to count. ok is false when there is no such
// node.
func (pr *projection) assignment(node netd.NodeID) (a dispatch.Assignment, ok bool) {
	self := pr.nodes[string(node)]
	cluster := pr.tx.Cluster()
	if self == nil || cluster == nil {
		return dispatch.Assignment{}, false
	}
	a = dispatch.Assignment{
		Node:         *self,
		ServiceNames: map[string]string{},
		GossipKeys:   cluster.GossipKeys,
		GossipPeers:  pr.peers,
		Managers:     pr.managers,
		ManagerIDs:   pr.managerIDs,
		Members:      pr.members,
		DataPathPort: cluster.DataPathPort,
	}
	on, runs := map[string]bool{}, map[netd.ServiceID]bool{}
	for _, t := range pr.tx.TasksByNode(self.ID) {
		if !assigned(t) {
			continue
		}
		a.Tasks = append(a.Tasks, *t)
		if s := pr.tx.Service(t.ServiceID); s != nil {
			a.ServiceNames[s.ID] = s.Spec.Name
		}
		runs[netd.ServiceID(t.ServiceID)] = true
		for _, at := range t.NetworksAttachments {
			on[at.Network.ID] = true
		}
	}
	var ports []netd.Port
	everywhere := false
	for _, p := range pr.ports {
		if !p.Host || runs[p.Service] {
			ports = append(ports, p)
			everywhere = everywhere || !p.Host
		}
	}
	if n := ingressNetwork(pr.tx); n != nil && everywhere {
		on[n.ID] = true
	}
	a.Snapshot = pr.snapshot(self, sortedKeys(on), everywhere)
	a.Snapshot.Ports = ports
	return a, true
}

// snapshot is the part of the swarm's network that is on the networks, with the
// nodes that take part in it or, once a port is open everywhere, all.
func (pr *projection) snapshot(self *swarm.Node, networks []string, everywhere bool) netd.Snapshot {
	var s netd.Snapshot
	hosts := map[string]bool{self.ID: true}
	for id := range pr.nodes {
		if everywhere {
			hosts[id] = true
		}
	}
	for _, id := range networks {
		n, ok := pr.networks[id]
		if !ok {
			continue
		}
		s.Networks = append(s.Networks, n)
		s.Services = append(s.Services, pr.services[id]...)
		s.Endpoints = append(s.Endpoints, pr.endpoints[id]...)
		maps.Copy(hosts, pr.hosts[id])
	}
	for _, id := range sortedKeys(hosts) {
		n := pr.nodes[id]
		addr, err := netip.ParseAddr(n.Status.Addr)
		if err != nil {
			continue
		}
		s.Nodes = append(s.Nodes, netd.Node{ID: netd.NodeID(id), Name: n.Description.Hostname, Addr: addr})
	}
	if len(s.Networks) < 2 {
		return s // sorted already
	}
	slices.SortFunc(s.Services, func(a, b netd.Service) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Network, b.Network))
	})
	slices.SortFunc(s.Endpoints, func(a, b netd.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Network, b.Network))
	})
	return s
}
