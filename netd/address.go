package main

import (
	"cmp"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"netd"
)

// defaultPort is where managers listen.
const defaultPort = 2377

// advertised resolves what the user gave as --advertise-addr: an address, an
// interface, either with a port, or nothing, which takes the host's only address.
// The port is 0 where none was given.
func advertised(given string) (netip.Addr, uint16, error) {
	host, port, err := splitPort(given)
	if err != nil {
		return netip.Addr{}, 0, err
	}
	if host == "" {
		addr, err := onlyAddress()
		return addr, port, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.IsUnspecified() {
			return netip.Addr{}, 0, netd.Errorf(netd.ErrInvalid, "advertise address must be a non-zero IP address or network interface (with optional port number)")
		}
		return addr.Unmap(), port, nil
	}
	addrs, err := interfaceAddresses(host)
	if err != nil {
		return netip.Addr{}, 0, netd.Errorf(netd.ErrInvalid, "could not parse advertise address %q: neither an IP address nor a network interface of this host", host)
	}
	if len(addrs) != 1 {
		return netip.Addr{}, 0, netd.Errorf(netd.ErrInvalid, "interface %s has %d usable addresses (%s); give one of them with --advertise-addr", host, len(addrs), join(addrs))
	}
	return addrs[0], port, nil
}

// splitPort splits HOST[:PORT]; an IPv6 address without a port needs no brackets.
func splitPort(given string) (host string, port uint16, err error) {
	bare := given
	if strings.HasPrefix(given, "[") && strings.HasSuffix(given, "]") {
		bare = given[1 : len(given)-1]
	}
	if _, err := netip.ParseAddr(bare); err == nil || !strings.Contains(given, ":") {
		return bare, 0, nil
	}
	host, text, err := net.SplitHostPort(given)
	if err != nil {
		return "", 0, netd.Errorf(netd.ErrInvalid, "invalid address %q: want HOST or HOST:PORT", given)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, netd.Errorf(netd.ErrInvalid, "invalid address %q: the port must be 1 to 65535", given)
	}
	return host, uint16(n), nil
}

// listenAddress completes Docker's --listen-addr, 0.0.0.0:2377 by default.
func listenAddress(given string) (string, uint16, error) {
	host, port, err := splitPort(given)
	if err != nil {
		return "", 0, err
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if _, err := netip.ParseAddr(host); err != nil {
		addrs, ierr := interfaceAddresses(host)
		if ierr != nil || len(addrs) == 0 {
			return "", 0, netd.Errorf(netd.ErrInvalid, "invalid listen address %q: neither an IP address nor a network interface of this host", given)
		}
		host = addrs[0].String()
	}
	if port == 0 {
		port = defaultPort
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), port, nil
}

// onlyAddress is the host's address where there can be no doubt which.
func onlyAddress() (netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, err
	}
	var found []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || strings.HasPrefix(i.Name, "nd-") {
			continue
		}
		addrs, err := interfaceAddresses(i.Name)
		if err == nil {
			found = append(found, addrs...)
		}
	}
	switch len(found) {
	case 0:
		return netip.Addr{}, netd.Errorf(netd.ErrInvalid, "could not find the system's IP address - specify one with --advertise-addr")
	case 1:
		return found[0], nil
	}
	return netip.Addr{}, netd.Errorf(netd.ErrInvalid, "could not choose an IP address to advertise since this system has multiple addresses (%s) - specify one with --advertise-addr", join(found))
}

// checkOwn refuses an address that this host cannot send from: the gossip and the
// overlay are bound to it.
func checkOwn(what string, addr netip.Addr) error {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	var own []netip.Addr
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		if p.Addr().Unmap() == addr {
			return nil
		}
		if !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			own = append(own, p.Addr())
		}
	}
	return netd.Errorf(netd.ErrInvalid, "%s address %s is not an address of this host, which has %s", what, addr, cmp.Or(join(own), "none"))
}

// interfaceAddresses lists the IPv4 addresses of an interface that other hosts
// can reach.
func interfaceAddresses(name string) ([]netip.Addr, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out, nil
}

func join(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, ", ")
}
