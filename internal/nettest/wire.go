package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// Link joins two namespaces by a veth pair and returns the names of its ends,
// each the first free eth<N>. Addresses are in CIDR form; "" means none.
func Link(t testing.TB, nsA, nsB, addrA, addrB string) (ifaceA, ifaceB string) {
	t.Helper()
	ifaceA, ifaceB = freeName(t, nsA), freeName(t, nsB)
	With(t, nsA, func(h *netns.Handle) error {
		return addVeth(h, ifaceA, nsB, ifaceB)
	})
	setUp(t, nsA, ifaceA, addrA)
	setUp(t, nsB, ifaceB, addrB)
	return ifaceA, ifaceB
}

// Underlay returns n host namespaces on one bridge, with 10.99.0.1/24 to
// 10.99.0.n/24 on their eth0. The bridge has a namespace of its own.
func Underlay(t testing.TB, n int) []string {
	t.Helper()
	fabric := NS(t)
	With(t, fabric, func(h *netns.Handle) error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "underlay"}}
		if err := h.LinkAdd(bridge); err != nil {
			return err
		}
		return h.LinkSetUp(bridge)
	})
	hosts := make([]string, n)
	for i := range hosts {
		hosts[i] = NS(t)
		With(t, hosts[i], func(h *netns.Handle) error {
			return addVeth(h, "eth0", fabric, fmt.Sprintf("host%d", i+1))
		})
		setUp(t, hosts[i], "eth0", fmt.Sprintf("10.99.0.%d/24", i+1))
		With(t, fabric, func(h *netns.Handle) error {
			port, err := h.LinkByName(fmt.Sprintf("host%d", i+1))
			if err != nil {
				return err
			}
			bridge, err := h.LinkByName("underlay")
			if err != nil {
				return err
			}
			if err := h.LinkSetMaster(port, bridge); err != nil {
				return err
			}
			return h.LinkSetUp(port)
		})
	}
	return hosts
}

// With runs fn with a netlink handle in the namespace and fails the test on its error.
func With(t testing.TB, ns string, fn func(*netns.Handle) error) {
	t.Helper()
	h, err := netns.Open(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := fn(h); err != nil {
		t.Fatalf("in %s: %v", ns, err)
	}
}

// Addr adds an address in CIDR form to the interface.
func Addr(t testing.TB, ns, iface, addr string) {
	t.Helper()
	setUp(t, ns, iface, addr)
}

// Route adds a route: dst in CIDR form ("0.0.0.0/0" is the default) by the
// gateway via ("" = directly on iface), which need not be on a connected net.
func Route(t testing.TB, ns, dst, via, iface string) {
	t.Helper()
	With(t, ns, func(h *netns.Handle) error {
		link, err := h.LinkByName(iface)
		if err != nil {
			return err
		}
		prefix, err := netip.ParsePrefix(dst)
		if err != nil {
			return err
		}
		route := netlink.Route{LinkIndex: link.Attrs().Index, Dst: IPNet(prefix)}
		if via == "" {
			route.Scope = netlink.SCOPE_LINK
		} else {
			route.Gw, route.Flags = net.ParseIP(via), int(netlink.FLAG_ONLINK)
		}
		return h.RouteReplace(&route)
	})
}

// Sysctl sets a kernel setting of the namespace.
func Sysctl(t testing.TB, ns, key, value string) {
	t.Helper()
	if err := netns.SetSysctl(ns, key, value); err != nil {
		t.Fatal(err)
	}
}

// IPNet converts a prefix to the type that netlink wants.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addVeth(h *netns.Handle, name, peerNS, peer string) error {
	file, err := openNS(peerNS)
	if err != nil {
		return err
	}
	defer file.Close()
	return h.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: name},
		PeerName:      peer,
		PeerNamespace: netlink.NsFd(int(file.Fd())),
	})
}

func setUp(t testing.TB, ns, iface, addr string) {
	t.Helper()
	With(t, ns, func(h *netns.Handle) error {
		link, err := h.LinkByName(iface)
		if err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
		if addr == "" {
			return nil
		}
		prefix, err := netip.ParsePrefix(addr)
		if err != nil {
			return err
		}
		return h.AddrReplace(link, &netlink.Addr{IPNet: IPNet(prefix), Flags: unix.IFA_F_NODAD})
	})
}

func freeName(t testing.TB, ns string) string {
	t.Helper()
	var name string
	With(t, ns, func(h *netns.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		taken := map[string]bool{}
		for _, link := range links {
			taken[link.Attrs().Name] = true
		}
		for i := 0; name == ""; i++ {
			if n := fmt.Sprintf("eth%d", i); !taken[n] {
				name = n
			}
		}
		return nil
	})
	return name
}
