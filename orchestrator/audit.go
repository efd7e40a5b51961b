package orchestrator

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"netd/ipam"
)

// audit checks, when a leadership begins, that nothing is given twice and that
// every task has a node and a service that exist. It returns what it found and
// mends what can be mended without a user: the older holder keeps what two have.
// Nothing that this package writes should ever make it find anything.
func (p *pass) audit() (found []string) {
	report := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	p.auditNetworks(report)
	holders := map[string]*ipam.Addresses{}
	for _, n := range p.tx.Networks() {
		subnet, gateway := subnetOf(n)
		a, err := ipam.NewAddresses(subnet, gateway)
		if err != nil {
			report("network %s: %v", n.Spec.Name, err)
			continue
		}
		holders[n.ID] = a
	}
	p.auditServices(holders, report)
	p.auditTasks(holders, report)
	return found
}

func (p *pass) auditNetworks(report func(string, ...any)) {
	var vnis ipam.VNIs
	var subnets []netip.Prefix
	for _, n := range p.tx.Networks() {
		if err := vnis.Take(vniOf(n)); err != nil {
			report("network %s: %v", n.Spec.Name, err)
		}
		subnet, _ := subnetOf(n)
		if other, overlaps := ipam.Overlapping(subnet, subnets); overlaps {
			report("network %s: its subnet %s overlaps with another network's %s", n.Spec.Name, subnet, other)
		}
		subnets = append(subnets, subnet)
	}
}

func (p *pass) auditServices(holders map[string]*ipam.Addresses, report func(string, ...any)) {
	services := slices.Clone(p.tx.Services())
	slices.SortStableFunc(services, func(a, b *swarm.Service) int { return a.CreatedAt.Compare(b.CreatedAt) })
	ports := map[hostPort]string{}
	for _, s := range services {
		c := *s
		c.Endpoint.VirtualIPs, c.Endpoint.Ports = nil, nil
		for _, vip := range s.Endpoint.VirtualIPs {
			if err := take(holders, vip.NetworkID, vip.Addr.Addr()); err != nil {
				report("service %s: virtual address: %v", s.Spec.Name, err)
				continue
			}
			c.Endpoint.VirtualIPs = append(c.Endpoint.VirtualIPs, vip)
		}
		for _, port := range s.Endpoint.Ports {
			key := hostPort{port.Protocol, port.PublishedPort}
			if other, taken := ports[key]; published(port) && port.PublishedPort != 0 && taken {
				report("service %s: port %d/%s is already published by service %s", s.Spec.Name, key.port, key.protocol, other)
				continue
			}
			if published(port) {
				ports[key] = s.Spec.Name
			}
			c.Endpoint.Ports = append(c.Endpoint.Ports, port)
		}
		if !sameEndpoint(c.Endpoint, s.Endpoint) {
			p.put(&c)
		}
	}
}

func (p *pass) auditTasks(holders map[string]*ipam.Addresses, report func(string, ...any)) {
	tasks := slices.Clone(p.tx.Tasks())
	slices.SortFunc(tasks, func(a, b *swarm.Task) int { return newestFirst(b, a) })
	for _, t := range tasks {
		if t.NodeID != "" && p.tx.Node(t.NodeID) == nil && assigned(t) {
			report("task %s: its node %s does not exist", t.ID, t.NodeID)
			p.setStatus(t, swarm.TaskStateOrphaned, "the node is gone", "")
			continue
		}
		if !holdsAddress(t) {
			continue
		}
		for _, at := range t.NetworksAttachments {
			for _, addr := range at.Addresses {
				if err := take(holders, at.Network.ID, addr.Addr()); err != nil && wanted(t) {
					report("task %s: %v", t.ID, err)
					c := *p.tx.Task(t.ID)
					c.DesiredState = swarm.TaskStateShutdown // another task takes its slot
					p.put(&c)
				}
			}
		}
	}
}

func take(holders map[string]*ipam.Addresses, network string, addr netip.Addr) error {
	a := holders[network]
	if a == nil {
		return fmt.Errorf("address %s is on network %s, which does not exist", addr, network)
	}
	return a.Take(addr)
}
