package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"netd/balancer"
	"netd/internal/netns"
	"netd/vxlan"
)

// rehearse makes a network with a VIP in namespaces that are thrown away, by the
// code that makes the real ones: a kernel that lacks something is found out when
// the daemon starts, not when the first task does. dir is made and removed. No
// packet is sent.
func (d *Daemon) rehearse(ctx context.Context, dir string) (err error) {
	host, router := filepath.Join(dir, "host"), filepath.Join(dir, "net-rehearsal")
	forget := func() error { return errors.Join(netns.Delete(host), netns.Delete(router), os.RemoveAll(dir)) }
	if err := forget(); err != nil { // of a daemon that was killed in the middle
		return err
	}
	defer func() { err = errors.Join(err, forget()) }()
	if err := netns.Create(host); err != nil {
		return lacks(err)
	}
	// Addresses for documentation (RFC 5737): nobody has them.
	var (
		self, peer = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		subnet     = netip.MustParsePrefix("198.51.100.0/24")
		gateway    = subnet.Addr().Next()
		vip        = gateway.Next()
		backend    = vip.Next()
		alias      = netip.MustParseAddr("169.254.80.1")
	)
	overlay := vxlan.Config{Networks: []vxlan.Network{{
		Router: router, VNI: 4096, MTU: 1450, Local: self, Port: 4789, MAC: vxlan.MAC{2, 0, 0, 0, 0, 1}, Subnet: subnet,
		Addrs: []netip.Addr{gateway, vip}, Alias: alias, Uplink: true,
		Peers:   []vxlan.Peer{{VTEP: peer, MAC: vxlan.MAC{2, 0, 0, 0, 0, 2}}},
		Remotes: []vxlan.Remote{{Addr: backend, VTEP: peer}},
	}}}
	err = netns.Do(host, func() error {
		o, err := vxlan.New(dir, d.log)
		if err != nil {
			return err
		}
		defer o.Close()
		_, err = o.Set(ctx, overlay)
		return err
	})
	if err != nil {
		return lacks(err)
	}
	b, err := balancer.New(d.kind, d.log)
	if err != nil {
		return err
	}
	_, err = b.Set(ctx, balancer.Config{Routers: []balancer.Router{{NetNS: router, Alias: alias, Services: []balancer.Service{{
		VIP: vip, Backends: []balancer.Backend{{Addr: backend, State: balancer.Ready}},
	}}}}})
	return lacks(err)
}

// lacks says in one line what the kernel lacks that made err, and how to get it.
func lacks(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("the kernel does not let netd change the network (%s): it needs CAP_NET_ADMIN and CAP_SYS_ADMIN, in a container --privileged", first)
	}
	for _, f := range []struct{ sign, feature, modules string }{
		{"type vxlan", "VXLAN devices", "vxlan"},
		{"type veth", "veth pairs", "veth"},
		{"ipvsadm", "working IPVS", "ip_vs ip_vs_rr"},
		{"nft", "nftables with connection tracking and NAT", "nf_tables nft_ct nft_chain_nat nft_masq nft_nat nft_numgen nft_reject_ipv4"},
		{"network namespace", "network namespaces", ""},
	} {
		if !strings.Contains(first, f.sign) {
			continue
		}
		load := ""
		if f.modules != "" {
			load = "load the modules with 'modprobe -a " + f.modules + "', or "
		}
		return fmt.Errorf("this kernel has no %s (%s); %sboot a kernel that has them, such as Debian's linux-image-amd64", f.feature, first, load)
	}
	return fmt.Errorf("this kernel cannot do what an overlay network needs (%s); netd wants Linux 5.10 or newer with vxlan, veth, nf_tables and network namespaces", first)
}
