package orchestrator

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/ipam"
	"netd/orchestrator/store"
)

const (
	driverOverlay = "overlay"
	driverIPAM    = "default"
	// optionVNI is where Docker keeps the network's VXLAN identifier, and shows it.
	optionVNI = "com.docker.network.driver.overlay.vxlanid_list"
	// Published ports that the user leaves open are taken from this range.
	firstDynamicPort, lastDynamicPort = 30000, 32767
)

// vniOf returns the network's VXLAN identifier, zero when it has none.
func vniOf(n *swarm.Network) uint32 {
	vni, err := strconv.ParseUint(n.DriverState.Options[optionVNI], 10, 24)
	if err != nil {
		return 0
	}
	return uint32(vni)
}

// subnetOf returns the network's subnet and gateway.
func subnetOf(n *swarm.Network) (netip.Prefix, netip.Addr) {
	if n.IPAMOptions == nil || len(n.IPAMOptions.Configs) == 0 {
		return netip.Prefix{}, netip.Addr{}
	}
	c := n.IPAMOptions.Configs[0]
	return c.Subnet, c.Gateway
}

// allocateNetwork fills in what the managers choose for a new network: the VNI,
// and the subnet and gateway where the user named none.
func allocateNetwork(tx *store.Tx, n *swarm.Network) error {
	var vnis ipam.VNIs
	var used []netip.Prefix
	for _, o := range tx.Networks() {
		if vni := vniOf(o); vni != 0 {
			_ = vnis.Take(vni) // one that is taken twice is the audit's to report
		}
		if subnet, _ := subnetOf(o); subnet.IsValid() {
			used = append(used, subnet)
		}
	}
	vni, err := vnis.Next()
	if err != nil {
		return netd.Errorf(netd.ErrUnavailable, "create network %q: %w", n.Spec.Name, err)
	}
	var config swarm.IPAMConfig
	if n.Spec.IPAMOptions != nil && len(n.Spec.IPAMOptions.Configs) > 0 {
		config = n.Spec.IPAMOptions.Configs[0]
	}
	if config.Subnet.IsValid() {
		config.Subnet = config.Subnet.Masked()
		if i := slices.IndexFunc(tx.Networks(), func(o *swarm.Network) bool {
			subnet, _ := subnetOf(o)
			return removing(o) && subnet.IsValid() && subnet.Overlaps(config.Subnet)
		}); i >= 0 {
			return netd.Errorf(netd.ErrForbidden, "invalid pool request: Pool overlaps with that of network %s, which is being removed: its last tasks are still stopping; try again in a few seconds",
				tx.Networks()[i].DriverState.Options[optionRemoved])
		}
		if _, overlaps := ipam.Overlapping(config.Subnet, used); overlaps {
			return netd.Errorf(netd.ErrForbidden, "invalid pool request: Pool overlaps with other one on this address space")
		}
	} else {
		c := tx.Cluster()
		pool := ipam.Pool{Prefixes: c.DefaultAddrPool, Size: int(c.SubnetSize)}
		if config.Subnet, err = pool.Next(used); err != nil {
			return netd.Errorf(netd.ErrUnavailable, "create network %q: %w", n.Spec.Name, err)
		}
	}
	if !config.Gateway.IsValid() {
		config.Gateway = ipam.Gateway(config.Subnet)
	}
	n.DriverState = swarm.Driver{Name: driverOverlay, Options: map[string]string{optionVNI: strconv.FormatUint(uint64(vni), 10)}}
	n.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: driverIPAM}, Configs: []swarm.IPAMConfig{config}}
	return nil
}

// space is which addresses and ports are in use, by all that is stored.
type space struct {
	addrs map[string]*ipam.Addresses // by network ID
	ports map[hostPort]string        // service ID, of the ports of the mesh
}

type hostPort struct {
	protocol network.IPProtocol
	port     uint32
}

// inUse reads the space from the store when it is first asked for in a step.
func (p *pass) inUse() *space {
	if p.space != nil {
		return p.space
	}
	p.space = &space{addrs: map[string]*ipam.Addresses{}, ports: map[hostPort]string{}}
	for _, n := range p.tx.Networks() {
		subnet, gateway := subnetOf(n)
		a, err := ipam.NewAddresses(subnet, gateway)
		if err != nil {
			continue // never stored so
		}
		if last, ok := p.cursors[n.ID]; ok {
			a.After(last)
		}
		p.space.addrs[n.ID] = a
	}
	take := func(network string, addr netip.Addr) {
		if a := p.space.addrs[network]; a != nil {
			_ = a.Take(addr) // one that is taken twice is the audit's to report
		}
	}
	for _, s := range p.tx.Services() {
		for _, vip := range s.Endpoint.VirtualIPs {
			take(vip.NetworkID, vip.Addr.Addr())
		}
		for _, port := range s.Endpoint.Ports {
			if published(port) && port.PublishedPort != 0 {
				p.space.ports[hostPort{port.Protocol, port.PublishedPort}] = s.ID
			}
		}
	}
	for _, t := range p.tx.Tasks() {
		if !holdsAddress(t) {
			continue
		}
		for _, at := range t.NetworksAttachments {
			for _, addr := range at.Addresses {
				take(at.Network.ID, addr.Addr())
			}
		}
	}
	return p.space
}

// holdsAddress reports whether the task may still use its addresses: until its
// node says that it stopped, or the managers give the node up.
func holdsAddress(t *swarm.Task) bool { return !dead(t) }

// published reports whether the port is one of the mesh, open on every node.
func published(port swarm.PortConfig) bool {
	return port.PublishMode == "" || port.PublishMode == swarm.PortConfigPublishModeIngress
}

// nextAddr gives a free address of the network.
func (p *pass) nextAddr(n *swarm.Network) (netip.Prefix, error) {
	a := p.inUse().addrs[n.ID]
	if a == nil {
		return netip.Prefix{}, fmt.Errorf("network %s has no subnet", n.Spec.Name)
	}
	addr, err := a.Next()
	if err != nil {
		return netip.Prefix{}, err
	}
	if p.cursors != nil {
		p.cursors[n.ID] = addr
	}
	subnet, _ := subnetOf(n)
	return netip.PrefixFrom(addr, subnet.Bits()), nil
}

// networksOf returns the IDs of the networks that tasks with the spec join,
// without repetition: those that the user named, then the ingress network where
// published ports need it. The address there carries a task's default route.
func (p *pass) networksOf(s *swarm.Service, spec swarm.TaskSpec) []string {
	var ids []string
	for _, n := range spec.Networks {
		if !slices.Contains(ids, n.Target) {
			ids = append(ids, n.Target)
		}
	}
	if s != nil && p.throughIngress(s.Spec.EndpointSpec, ids) {
		if n := ingressNetwork(p.tx); n != nil && !slices.Contains(ids, n.ID) {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// throughIngress reports whether ports of the spec are reached by the ingress
// network: those open on every node, and those of the host of tasks that have no
// other network with a way out.
func (p *pass) throughIngress(spec *swarm.EndpointSpec, networks []string) bool {
	if spec == nil || len(spec.Ports) == 0 {
		return false
	}
	out := slices.ContainsFunc(networks, func(id string) bool {
		n := p.tx.Network(id)
		return n != nil && !n.Spec.Internal && !n.Spec.Ingress
	})
	return !out || slices.ContainsFunc(spec.Ports, published)
}

func ingressNetwork(tx *store.Tx) *swarm.Network {
	for _, n := range tx.Networks() {
		if n.Spec.Ingress && !removing(n) {
			return n
		}
	}
	return nil
}

// allocateService gives the service its ports and one virtual address on each of
// its networks. What it has and still needs it keeps, so that no client sees an
// address change. What cannot be had now is tried again in the next pass.
func (p *pass) allocateService(s *swarm.Service) *swarm.Service {
	var want swarm.Endpoint
	if s.Spec.EndpointSpec != nil {
		want.Spec = *s.Spec.EndpointSpec
		want.Ports = p.portsOf(s)
	}
	if want.Spec.Mode != swarm.ResolutionModeDNSRR {
		for _, id := range p.networksOf(s, s.Spec.TaskTemplate) {
			if vip, ok := p.vipOf(s, id); ok {
				want.VirtualIPs = append(want.VirtualIPs, vip)
			}
		}
	}
	if sameEndpoint(want, s.Endpoint) {
		return s
	}
	c := *s
	c.Endpoint = want
	p.put(&c)
	return &c
}

func sameEndpoint(a, b swarm.Endpoint) bool {
	return a.Spec.Mode == b.Spec.Mode && slices.Equal(a.Spec.Ports, b.Spec.Ports) &&
		slices.Equal(a.Ports, b.Ports) && slices.Equal(a.VirtualIPs, b.VirtualIPs)
}

func (p *pass) vipOf(s *swarm.Service, networkID string) (swarm.EndpointVirtualIP, bool) {
	for _, vip := range s.Endpoint.VirtualIPs {
		if vip.NetworkID == networkID {
			return vip, true
		}
	}
	n := openNetwork(p.tx, networkID)
	if n == nil {
		return swarm.EndpointVirtualIP{}, false
	}
	addr, err := p.nextAddr(n)
	return swarm.EndpointVirtualIP{NetworkID: networkID, Addr: addr}, err == nil
}

// portsOf returns the service's ports with the open ones chosen: the same as
// before where nothing else about the port changed.
func (p *pass) portsOf(s *swarm.Service) []swarm.PortConfig {
	old := slices.Clone(s.Endpoint.Ports)
	var ports []swarm.PortConfig
	for _, port := range s.Spec.EndpointSpec.Ports {
		port.Protocol = protocolOf(port)
		port.PublishMode = cmp.Or(port.PublishMode, swarm.PortConfigPublishModeIngress)
		if port.PublishedPort == 0 && published(port) {
			i := slices.IndexFunc(old, func(o swarm.PortConfig) bool {
				dynamic := o.PublishedPort >= firstDynamicPort && o.PublishedPort <= lastDynamicPort
				o.PublishedPort = 0
				return dynamic && o == port
			})
			if i >= 0 {
				port = old[i]
				old = slices.Delete(old, i, i+1)
			} else {
				port.PublishedPort = p.nextPort(s, port.Protocol)
			}
		}
		ports = append(ports, port)
	}
	return ports
}

// nextPort gives the lowest free port of the dynamic range, zero when there is
// none: the next pass tries again.
func (p *pass) nextPort(s *swarm.Service, protocol network.IPProtocol) uint32 {
	ports := p.inUse().ports
	for port := uint32(firstDynamicPort); port <= lastDynamicPort; port++ {
		if _, taken := ports[hostPort{protocol, port}]; !taken {
			ports[hostPort{protocol, port}] = s.ID
			return port
		}
	}
	return 0
}

// allocateTasks gives every new task an address on each of its networks. A task
// that cannot have them all gets none, stays new and says why.
func (p *pass) allocateTasks() {
	var pending []*swarm.Task
	for _, t := range p.tx.Tasks() {
		if t.Status.State == swarm.TaskStateNew && wanted(t) {
			pending = append(pending, t)
		}
	}
	slices.SortFunc(pending, inTurn)
	for _, t := range pending {
		attachments, err := p.attach(t)
		if err != nil {
			p.setStatus(t, swarm.TaskStateNew, t.Status.Message, err.Error())
			continue
		}
		c := *t
		c.NetworksAttachments = attachments
		c.Status = swarm.TaskStatus{Timestamp: p.now, State: swarm.TaskStatePending, Message: "pending task scheduling"}
		p.put(&c)
	}
}

func (p *pass) attach(t *swarm.Task) (attachments []swarm.NetworkAttachment, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, a := range attachments { // leave them to others
			p.inUse().addrs[a.Network.ID].Release(a.Addresses[0].Addr())
		}
	}()
	for _, id := range p.networksOf(p.tx.Service(t.ServiceID), t.Spec) {
		n := openNetwork(p.tx, id)
		if n == nil {
			return attachments, fmt.Errorf("network %s not found: update the service to leave it", id)
		}
		addr, err := p.nextAddr(n)
		if errors.Is(err, ipam.ErrExhausted) {
			subnet, _ := subnetOf(n)
			return attachments, fmt.Errorf("network %s is full: no free address in %s; remove or scale down a service on it, or move services to a network with a larger subnet",
				n.Spec.Name, subnet)
		}
		if err != nil {
			return attachments, fmt.Errorf("network %s: %w", n.Spec.Name, err)
		}
		attachments = append(attachments, swarm.NetworkAttachment{Network: *n, Addresses: []netip.Prefix{addr}})
	}
	return attachments, nil
}
