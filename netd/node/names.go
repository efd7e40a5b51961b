package node

import (
	"net/netip"
	"slices"
	"strings"

	"netd"
	"netd/balancer"
	"netd/dns"
)

// resolver gives what the network's resolver on this node answers, and to whom.
// A client may see every network that it is on, whichever router it asks.
func (c *compiler) resolver(n netd.Network) dns.Resolver {
	r := dns.Resolver{NetNS: RouterNetNS(c.NetNSDir, n.ID), Addr: netd.RouterAddr}
	seen := map[netd.NetworkID]bool{}
	for _, t := range c.Local {
		at := slices.IndexFunc(t.Attachments, func(a Attachment) bool { return a.Network == n.ID })
		if at < 0 {
			continue
		}
		client := dns.Client{Addr: t.Attachments[at].Addr.Addr()}
		for _, a := range t.Attachments {
			on, known := c.networks[a.Network]
			if !known {
				continue
			}
			client.Forward = client.Forward || !on.Internal
			if on.Ingress { // tasks share it, but not to know each other
				continue
			}
			client.Zones = append(client.Zones, string(on.ID))
			seen[on.ID] = true
		}
		r.Clients = append(r.Clients, client)
	}
	for id := range seen {
		r.Zones = append(r.Zones, c.zone(c.networks[id]))
	}
	slices.SortFunc(r.Clients, func(a, b dns.Client) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(r.Zones, func(a, b dns.Zone) int { return strings.Compare(a.ID, b.ID) })
	return r
}

// zone gives the names of a network. A service's own name is its VIP, or in
// endpoint mode dnsrr its ready endpoints; tasks.NAME lists the ready endpoints;
// a task's name stands as long as the task takes part at all. An alias answers as
// the name of its service does, or of all that share it; where something on the
// network is named so itself, that is meant.
func (c *compiler) zone(n netd.Network) dns.Zone {
	z := dns.Zone{ID: string(n.ID), Name: n.Name, Subnet: n.Subnet}
	aliases := map[string][]netip.Addr{}
	for _, s := range c.Snapshot.Services {
		if s.Network != n.ID {
			continue
		}
		ready := []netip.Addr{}
		for _, e := range c.endpoints[serviceKey{n.ID, s.ID}] {
			state, in := c.backendState(e)
			if !in {
				continue
			}
			if state == balancer.Ready {
				ready = append(ready, e.Addr)
			}
			z.Records = append(z.Records, dns.Record{Name: e.Name, Addrs: []netip.Addr{e.Addr}})
			z.PTRs = append(z.PTRs, dns.PTR{Addr: e.Addr, Name: e.Name + "." + n.Name})
		}
		slices.SortFunc(ready, netip.Addr.Compare)
		z.Records = append(z.Records, dns.Record{Name: "tasks." + s.Name, Addrs: ready})
		own := ready
		if s.VIP.IsValid() {
			own = []netip.Addr{s.VIP}
			z.PTRs = append(z.PTRs, dns.PTR{Addr: s.VIP, Name: s.Name + "." + n.Name})
		}
		z.Records = append(z.Records, dns.Record{Name: s.Name, Addrs: own})
		for _, a := range s.Aliases {
			a = strings.ToLower(a)
			aliases[a] = append(aliases[a], own...)
			aliases["tasks."+a] = append(aliases["tasks."+a], ready...)
		}
	}
	for _, r := range z.Records {
		delete(aliases, strings.ToLower(r.Name))
	}
	for name, addrs := range aliases {
		slices.SortFunc(addrs, netip.Addr.Compare)
		z.Records = append(z.Records, dns.Record{Name: name, Addrs: slices.Compact(addrs)})
	}
	slices.SortFunc(z.Records, func(a, b dns.Record) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(z.PTRs, func(a, b dns.PTR) int { return a.Addr.Compare(b.Addr) })
	return z
}
