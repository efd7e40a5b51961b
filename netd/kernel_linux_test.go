//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netd/balancer"
	"netd/internal/netns"
	"netd/internal/nettest"
)

// What the kernel lacks is said in one line, with the command that loads it.
func TestLacks(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("set overlay: ip link add vx netns net-x type vxlan id 4096: %w", unix.EOPNOTSUPP), "no VXLAN devices (set overlay: ip link add vx netns net-x type vxlan id 4096: operation not supported); load the modules with 'modprobe -a vxlan'"},
		{fmt.Errorf("set overlay: ip link add nd-up1 type veth peer: %w", unix.EOPNOTSUPP), "no veth pairs"},
		{fmt.Errorf("set overlay: nft add table ip netd-egress: %w", unix.EPROTONOSUPPORT), "modprobe -a nf_tables"},
		{fmt.Errorf("set balancer: ipvsadm -A -f 1 -s rr: %w", unix.ENOENT), "modprobe -a ip_vs ip_vs_rr"},
		{fmt.Errorf("create network namespace %q: unshare: %w", "x", unix.EINVAL), "no network namespaces"},
		{fmt.Errorf("create network namespace %q: unshare: %w", "x", unix.EPERM), "CAP_NET_ADMIN"},
		{errors.New("set overlay: ip route add: invalid argument"), "this kernel cannot do what an overlay network needs (set overlay: ip route add"},
		{errors.Join(errors.New("type vxlan"), errors.New("second line")), "no VXLAN devices (type vxlan);"},
	} {
		got := lacks(c.err)
		if !strings.Contains(got.Error(), c.want) || strings.Contains(got.Error(), "\n") {
			t.Errorf("got %v, want %q", got, c.want)
		}
	}
	for _, err := range []error{nil, context.Canceled} {
		if got := lacks(err); !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// This machine's kernel passes the rehearsal with each balancer that it has, as
// often as one likes, also after one that was cut off, and nothing is left of it.
func TestRootRehearsal(t *testing.T) {
	nettest.Root(t)
	kinds := []balancer.Kind{balancer.NFTables}
	if kind, _ := balancer.Probe(); kind == balancer.IPVS {
		kinds = append(kinds, kind)
	}
	parent := nettest.Dir(t)
	dir := filepath.Join(parent, "rehearsal")
	for _, name := range []string{"host", "net-rehearsal"} {
		if err := netns.Create(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range append(kinds, kinds...) {
		d := &Daemon{log: slog.New(slog.DiscardHandler), kind: kind}
		if err := d.rehearse(t.Context(), dir); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", kind, left, err)
		}
	}
	d := &Daemon{log: slog.New(slog.DiscardHandler), kind: "magic"}
	if err := d.rehearse(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "magic") {
		t.Errorf("a balancer that there is not: got %v", err)
	}
}
