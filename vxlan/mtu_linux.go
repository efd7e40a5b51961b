package vxlan

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// What VXLAN adds to an inner packet, in bytes: the inner Ethernet header (14)
// and the VXLAN (8), UDP (8) and IP (20 or 40) headers.
const (
	overheadV4 = 50
	overheadV6 = 70
)

// OverlayMTU is the MTU of an overlay over a path of that MTU. The underlay
// address tells the version of the outer IP header.
func OverlayMTU(pathMTU int, underlay netip.Addr) int {
	if underlay.Unmap().Is6() {
		return pathMTU - overheadV6
	}
	return pathMTU - overheadV4
}

// PathMTU returns the smallest MTU of the routes to the peers, in bytes of outer
// IP packet, as this namespace knows them: of the device, of the route, and of
// what ICMP told. An own address among the peers counts with the device that has
// it. Peers without a route are an error; the others still count. 0 is none.
func PathMTU(peers []netip.Addr) (int, error) {
	h, err := netns.Open("")
	if err != nil {
		return 0, fmt.Errorf("read path mtu: %w", err)
	}
	defer h.Close()
	smallest := 0
	var errs []error
	for _, peer := range peers {
		mtu, err := routeMTU(h, peer.Unmap())
		if err != nil {
			errs = append(errs, fmt.Errorf("read path mtu to %s: %w", peer, err))
		} else if smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	return smallest, errors.Join(errs...)
}

func routeMTU(h *netns.Handle, peer netip.Addr) (int, error) {
	routes, err := h.RouteGet(peer.AsSlice())
	if err != nil {
		return 0, err
	}
	smallest := 0
	for _, route := range routes {
		index := route.LinkIndex
		if route.Type == unix.RTN_LOCAL {
			if index, err = deviceOf(h, peer); err != nil {
				return 0, err
			}
		}
		device, err := h.LinkByIndex(index)
		if err != nil {
			return 0, err
		}
		mtu := device.Attrs().MTU
		if route.MTU > 0 && route.MTU < mtu {
			mtu = route.MTU
		}
		if smallest == 0 || mtu < smallest {
			smallest = mtu
		}
	}
	if smallest == 0 {
		return 0, unix.ENETUNREACH
	}
	return smallest, nil
}

// deviceOf finds the device with an own address, as the route to it is by the
// loopback.
func deviceOf(h *netns.Handle, own netip.Addr) (int, error) {
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return 0, err
	}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && addr.Unmap() == own {
			return a.LinkIndex, nil
		}
	}
	return 0, unix.EADDRNOTAVAIL
}
