//go:build linux

package vxlan

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// Whatever is removed or changed behind its back is repaired by the next Set, and
// the traffic flows again.
func TestRootHeal(t *testing.T) {
	l, containers := newTriple(t)
	h := l.hosts[0]
	c := Config{[]Network{h.network(0, 3)}}
	c.Networks[0].Return = true
	h.set(t, c)
	router := c.Networks[0].Router
	damages := routerDamages(c.Networks[0])
	maps.Copy(damages, otherDamages(h, containers[0], c.Networks[0]))
	for what, damage := range damages {
		t.Run(what, func(t *testing.T) {
			nettest.With(t, damage.ns, damage.do)
			ops, err := h.overlay.Set(t.Context(), c)
			if err != nil || len(ops) == 0 {
				t.Fatalf("did %q, %v", ops, err)
			}
			h.is(t, c)
			answers(t, containers[0], "tcp", "10.0.9.12:80", "c2 10.0.9.11")
			answers(t, containers[2], "udp", "10.0.9.11:80", "c1 10.0.9.13")
		})
	}
	t.Run("router's pin removed", func(t *testing.T) {
		if err := netns.Delete(router); err != nil {
			t.Fatal(err)
		}
		// The old namespace ends a moment later, and until then has the VNI.
		nettest.Eventually(t, 10*time.Second, "set", func() error {
			_, err := h.overlay.Set(t.Context(), c)
			return err
		})
		h.is(t, c)
		answers(t, containers[0], "tcp", "10.0.9.12:80", "c2 10.0.9.11")
	})
}

// damaging is something that a user, a crash or another program does.
type damaging struct {
	ns string
	do func(*netns.Handle) error
}

func linkNamed(name string) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name}}
}

func byName(h *netns.Handle, name string, fn func(netlink.Link) error) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return fn(l)
}

func routerDamages(n Network) map[string]damaging {
	router := n.Router
	far := nettest.IPNet(netip.MustParsePrefix("10.0.9.12/32"))
	return map[string]damaging{
		"vxlan device removed": {router, func(h *netns.Handle) error { return h.LinkDel(linkNamed("vx")) }},
		"vxlan device down":    {router, func(h *netns.Handle) error { return byName(h, "vx", h.LinkSetDown) }},
		"loopback down":        {router, func(h *netns.Handle) error { return byName(h, "lo", h.LinkSetDown) }},
		"port removed":         {router, func(h *netns.Handle) error { return h.LinkDel(linkNamed("c")) }},
		"port without note": {router, func(h *netns.Handle) error {
			return byName(h, "c", func(l netlink.Link) error { return h.LinkSetAlias(l, "") })
		}},
		"route removed": {router, func(h *netns.Handle) error {
			return h.RouteDel(&netlink.Route{Dst: far})
		}},
		"route led astray": {router, func(h *netns.Handle) error {
			return byName(h, "c", func(l netlink.Link) error {
				return h.RouteReplace(&netlink.Route{Dst: far, LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK})
			})
		}},
		"route put before": {router, func(h *netns.Handle) error {
			return byName(h, "c", func(l netlink.Link) error {
				r := &netlink.Route{Dst: far, LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
				return h.RouteAddEcmp(r) // NLM_F_CREATE alone prepends
			})
		}},
		"more specific route": {router, func(h *netns.Handle) error {
			return h.RouteAdd(&netlink.Route{Dst: nettest.IPNet(netip.MustParsePrefix("10.99.0.0/16")), Type: unix.RTN_UNREACHABLE, Priority: 5})
		}},
		"fdb removed":       {router, func(h *netns.Handle) error { return delPermanent(h, unix.AF_BRIDGE) }},
		"neighbour removed": {router, func(h *netns.Handle) error { return delPermanent(h, netlink.FAMILY_V4) }},
		"uplink renamed":    {router, func(h *netns.Handle) error { return rename(h, "up", "old") }},
		"strange link": {router, func(h *netns.Handle) error {
			return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "strange"}, PeerName: "stranger"})
		}},
		"mark's rule removed": {router, func(h *netns.Handle) error { return h.RuleDel(returnRule()) }},
		"mark's route removed": {router, func(h *netns.Handle) error {
			return h.RouteDel(&netlink.Route{Table: returnRoutes, Dst: nettest.IPNet(all)})
		}},
		"marks removed": {router, func(*netns.Handle) error {
			return netns.Do(router, func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				c.FlushRuleset()
				return c.Flush()
			})
		}},
		"sysctl":    {router, func(*netns.Handle) error { return netns.SetSysctl(router, "net/ipv4/conf/c/proxy_arp", "0") }},
		"rp_filter": {router, func(*netns.Handle) error { return netns.SetSysctl(router, "net/ipv4/conf/all/rp_filter", "1") }},
		"vxlan device made elsewhere": {router, func(h *netns.Handle) error {
			if err := h.LinkDel(linkNamed("vx")); err != nil {
				return err
			}
			return h.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx", MTU: n.MTU, HardwareAddr: n.MAC[:]},
				VxlanId: int(n.VNI), Port: int(n.Port), SrcAddr: n.Local.AsSlice()})
		}},
	}
}

func otherDamages(h *labHost, container string, n Network) map[string]damaging {
	return map[string]damaging{
		"container's end down":    {container, func(h *netns.Handle) error { return byName(h, "eth0", h.LinkSetDown) }},
		"container's end renamed": {container, func(h *netns.Handle) error { return rename(h, "eth0", "lan") }},
		"container's address removed": {container, func(h *netns.Handle) error {
			return byName(h, "eth0", func(l netlink.Link) error {
				return h.AddrDel(l, &netlink.Addr{IPNet: nettest.IPNet(n.Ports[0].Addr)})
			})
		}},
		"container's default route removed": {container, func(h *netns.Handle) error {
			return h.RouteDel(&netlink.Route{Dst: nettest.IPNet(all)})
		}},
		"uplink removed": {h.ns, func(h *netns.Handle) error { return h.LinkDel(linkNamed("nd-up4096")) }},
		"host route removed": {h.ns, func(h *netns.Handle) error {
			return h.RouteDel(&netlink.Route{Dst: nettest.IPNet(n.Subnet)})
		}},
		"forwarding":           {h.ns, func(*netns.Handle) error { return netns.SetSysctl(h.overlay.path(""), "net/ipv4/ip_forward", "0") }},
		"egress table removed": {h.ns, func(*netns.Handle) error { return h.overlay.setEgress(op{verb: verbDel}) }},
		"strange egress rule":  {h.ns, func(*netns.Handle) error { return h.overlay.nft("", addAccept) }},
	}
}

// addAccept is nft add rule ip netd-egress output accept.
func addAccept(c *nftables.Conn) error {
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}
	c.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: "output"}, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
	return c.Flush()
}

func rename(h *netns.Handle, from, to string) error {
	l, err := h.LinkByName(from)
	if err != nil {
		return err
	}
	if err := h.LinkSetDown(l); err != nil {
		return err
	}
	return h.LinkSetName(l, to)
}

func delPermanent(h *netns.Handle, family int) error {
	neighs, err := h.NeighList(0, family)
	if err != nil {
		return err
	}
	for _, n := range neighs {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && n.HardwareAddr[0] == 2 {
			if family != netlink.FAMILY_V4 {
				n.Flags = netlink.NTF_SELF
			}
			if err := h.NeighDel(&n); err != nil {
				return err
			}
		}
	}
	return nil
}

// A link that only has the right name is not the port: it is not reported as
// one, and the error names what stands in the way.
func TestRootImpostor(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	container := h.container(t, "c")
	c := Config{[]Network{h.network(0, 1)}}
	h.set(t, c)
	nettest.With(t, container, func(h *netns.Handle) error {
		if err := rename(h, "eth0", "lan"); err != nil {
			return err
		}
		return h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer"})
	})
	if got, err := h.overlay.Get(); err != nil || got.Networks[0].Ports != nil {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := h.overlay.Set(t.Context(), c); !errors.Is(err, unix.EEXIST) {
		t.Errorf("got %v, want exists", err)
	}
}
