package balancer

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/moby/ipvs"
	"golang.org/x/sys/unix"
)

// ipvsHandle is the only user of the IPVS library (which, once, runs modprobe
// and logs on its own).
type ipvsHandle struct{ *ipvs.Handle }

// openIPVS opens the calling thread's namespace.
func openIPVS() (*ipvsHandle, error) {
	h, err := ipvs.New("")
	if err != nil {
		return nil, fmt.Errorf("open IPVS: %w", err)
	}
	return &ipvsHandle{h}, nil
}

// svcHashed is IP_VS_SVC_F_HASHED: the kernel's own note that it has the service.
const svcHashed = 0x2

func (h *ipvsHandle) read(have *state) error {
	config, err := h.GetConfig()
	if err != nil {
		return fmt.Errorf("get timeouts: %w", err)
	}
	have.timeouts = timeouts{tcp: config.TimeoutTCP, tcpFin: config.TimeoutTCPFin, udp: config.TimeoutUDP}
	services, err := h.GetServices()
	if err != nil {
		return fmt.Errorf("get services: %w", err)
	}
	for _, s := range services {
		v := virtual{
			key:       virtualKey{mark: s.FWMark, family: s.AddressFamily, protocol: s.Protocol, addr: fromIP(s.Address), port: s.Port},
			scheduler: s.SchedName,
			flags:     s.Flags &^ svcHashed,
		}
		dests, err := h.GetDestinations(s)
		if err != nil {
			return fmt.Errorf("get destinations of %s: %w", v.key, err)
		}
		for _, d := range dests {
			v.dests = append(v.dests, dest{
				addr: fromIP(d.Address), port: d.Port, weight: d.Weight,
				method: d.ConnectionFlags & ipvs.ConnectionFlagFwdMask,
			})
		}
		slices.SortFunc(v.dests, dest.compare)
		have.virtuals = append(have.virtuals, v)
	}
	slices.SortFunc(have.virtuals, func(a, b virtual) int { return a.key.compare(b.key) })
	return nil
}

func (h *ipvsHandle) do(o op) error {
	switch o := o.(type) {
	case setTimeouts:
		return h.SetConfig(&ipvs.Config{TimeoutTCP: o.tcp, TimeoutTCPFin: o.tcpFin, TimeoutUDP: o.udp})
	case addVirtual:
		return h.NewService(service(o.key, o.virtual))
	case editVirtual:
		return h.UpdateService(service(o.key, o.virtual))
	case delVirtual:
		return h.DelService(service(o.key, virtual{}))
	case addDest:
		return h.NewDestination(service(o.key, virtual{}), destination(o.dest))
	case editDest:
		return h.UpdateDestination(service(o.key, virtual{}), destination(o.dest))
	case delDest:
		return h.DelDestination(service(o.key, virtual{}), destination(o.dest))
	default:
		return fmt.Errorf("unknown operation %T", o)
	}
}

func fromIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// service is v as the library wants it; for all but adding and editing the key
// is enough.
func service(key virtualKey, v virtual) *ipvs.Service {
	s := &ipvs.Service{
		FWMark: key.mark, AddressFamily: key.family, Protocol: key.protocol, Address: key.addr.AsSlice(), Port: key.port,
		SchedName: v.scheduler, Flags: v.flags, Netmask: 0xffffffff,
	}
	if key.family == unix.AF_INET6 {
		s.Netmask = 128
	}
	return s
}

func destination(d dest) *ipvs.Destination {
	family := uint16(unix.AF_INET)
	if d.addr.Is6() {
		family = unix.AF_INET6
	}
	return &ipvs.Destination{
		Address: d.addr.AsSlice(), Port: d.port, Weight: d.weight, ConnectionFlags: d.method, AddressFamily: family,
	}
}

// selfTest tries in the calling thread's namespace, which must be a new one, all
// that the IPVS kind needs of ip_vs.
func (h *ipvsHandle) selfTest() error {
	r := Router{Services: []Service{{
		VIP:      netip.AddrFrom4([4]byte{192, 0, 2, 1}),
		Backends: []Backend{{Addr: netip.AddrFrom4([4]byte{192, 0, 2, 2}), State: Ready}},
	}}}
	for _, o := range plan(state{}, render(IPVS, r)) {
		switch o.(type) {
		case addVirtual, addDest:
			if err := h.do(o); err != nil {
				return fmt.Errorf("%s: %w", o, err)
			}
		}
	}
	return nil
}
