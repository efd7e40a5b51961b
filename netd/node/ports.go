package node

import (
	"cmp"
	"net/netip"
	"slices"

	"netd"
	"netd/ingress"
	"netd/vxlan"
)

// ingress gives the ports that this node has open. One that is open on every node
// leads to the service's VIP on the ingress network; a host port to the task here.
func (c *compiler) ingress() ingress.Config {
	var config ingress.Config
	ways := map[netd.ServiceID]netip.Addr{}
	for _, p := range c.Snapshot.Ports {
		protocol, known := protocols()[p.Protocol]
		if !known {
			continue
		}
		to := c.published(p)
		if !to.IsValid() {
			continue
		}
		ways[p.Service] = to
		config.Ports = append(config.Ports, ingress.Port{Protocol: protocol, Port: p.Published, To: netip.AddrPortFrom(to, p.Target)})
	}
	slices.SortStableFunc(config.Ports, func(a, b ingress.Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
	})
	// The managers grant a port but once; should two services have it for a moment,
	// the first keeps it.
	config.Ports = slices.CompactFunc(config.Ports, func(a, b ingress.Port) bool { return a.Protocol == b.Protocol && a.Port == b.Port })
	if len(config.Ports) == 0 {
		return ingress.Config{}
	}
	for _, n := range c.Snapshot.Networks {
		leads := func(to netip.Addr) bool { return n.Subnet.Contains(to) }
		for _, to := range ways {
			if leads(to) {
				config.Local = append(config.Local, vxlan.UplinkName(n.VNI))
			}
		}
	}
	slices.Sort(config.Local)
	config.Local = slices.Compact(config.Local)
	return config
}

func protocols() map[netd.Protocol]ingress.Protocol {
	return map[netd.Protocol]ingress.Protocol{"tcp": ingress.TCP, "udp": ingress.UDP, "sctp": ingress.SCTP}
}

// published is the address that a port leads to, invalid for none.
func (c *compiler) published(p netd.Port) netip.Addr {
	if !p.Host {
		for _, s := range c.Snapshot.Services {
			if s.ID == p.Service && c.networks[s.Network].Ingress {
				return s.VIP
			}
		}
		return netip.Addr{}
	}
	var found netip.Addr
	for _, t := range c.Local {
		i := slices.IndexFunc(c.Snapshot.Endpoints, func(e netd.Endpoint) bool { return e.Task == t.ID && e.Service == p.Service })
		way := c.way(t)
		if i < 0 || way < 0 {
			continue
		}
		// Of two tasks, as when one takes the other's place, that which stays.
		if !found.IsValid() || !c.Snapshot.Endpoints[i].Leaving {
			found = t.Attachments[way].Addr.Addr()
		}
	}
	return found
}
