package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"netd"
	"netd/internal/netns"
	"netd/netd/debug"
)

// Facts implements debug.Source.
func (d *Daemon) Facts() debug.Facts {
	s := d.Status()
	f := debug.Facts{
		Version: version, Name: s.NodeName, ID: netd.NodeID(s.NodeID), State: s.State, Error: s.Error,
		Manager: s.ControlAvailable, Up: time.Since(d.started), Balancer: string(d.kind), BalancerWhy: d.reason, GossipPort: d.GossipPort,
	}
	m := d.current()
	if m == nil {
		return f
	}
	f.Leader = m.store != nil && m.store.Leading()
	f.Connected, f.Managers = m.client.Connected(), m.client.Managers()
	h := m.host.Load()
	if h == nil {
		return f
	}
	f.View, f.Tasks = h.gossip.View(), h.runtime.List()
	if a := h.node.Assignment(); a != nil {
		f.Snapshot = a.Snapshot
	}
	if done := h.node.Applied(); done != nil {
		f.Generation, f.Applied, f.Took = done.Generation, time.Since(done.At), done.Took
		if done.Err != nil {
			f.ApplyError = done.Err.Error()
		}
	}
	changes := h.node.Changes()
	f.Changes, f.LastChanges = changes.Count, changes.Last
	if want := h.node.Desired(); want != nil {
		f.Wanted = want.Balancer
		if len(want.Overlay.Networks) > 0 {
			f.MTU = want.Overlay.Networks[0].MTU
		}
	}
	return f
}

// currentHost, or why there is none. It stays open until looked is called.
func (d *Daemon) currentHost() (h *host, looked func(), err error) {
	d.mu.Lock()
	m, failed := d.member, d.failed
	d.mu.Unlock()
	switch {
	case m == nil:
		return nil, nil, netd.Errorf(netd.ErrUnavailable, textNoSwarm)
	case failed != nil:
		return nil, nil, netd.Errorf(netd.ErrUnavailable, textEnded, failed)
	}
	if h = m.host.Load(); h == nil {
		return nil, nil, netd.Errorf(netd.ErrUnavailable, "no manager has assigned anything to this node yet; see 'netd status'")
	}
	h.looks.RLock()
	if h.closed {
		h.looks.RUnlock()
		return nil, nil, netd.Errorf(netd.ErrUnavailable, textEnded, errors.New("just now"))
	}
	return h, h.looks.RUnlock, nil
}

// Drift implements debug.Source.
func (d *Daemon) Drift(ctx context.Context) ([]string, error) {
	h, looked, err := d.currentHost()
	if err != nil {
		return nil, err
	}
	defer looked()
	return h.node.Drift(ctx)
}

// Kernel implements debug.Source.
func (d *Daemon) Kernel(ctx context.Context) (debug.Kernel, error) {
	h, looked, err := d.currentHost()
	if err != nil {
		return debug.Kernel{}, err
	}
	defer looked()
	k := debug.Kernel{}
	if k.Overlay, err = h.overlay.Get(); err != nil {
		return debug.Kernel{}, fmt.Errorf("read overlay: %w", err)
	}
	routers := []string{}
	for _, n := range k.Overlay.Networks {
		routers = append(routers, n.Router)
	}
	if k.Balancer, err = h.balancer.Get(ctx, routers); err != nil {
		return debug.Kernel{}, fmt.Errorf("read balancer: %w", err)
	}
	return k, nil
}

// Explain implements debug.Source.
func (d *Daemon) Explain(ctx context.Context, router string, vip netip.Addr) ([]string, error) {
	h, looked, err := d.currentHost()
	if err != nil {
		return nil, err
	}
	defer looked()
	return h.balancer.Explain(ctx, router, vip)
}

// probeTimeout bounds one probe from a task's namespace.
const probeTimeout = 3 * time.Second

// Lookup implements debug.Source.
func (d *Daemon) Lookup(ctx context.Context, ns, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	server := netip.AddrPortFrom(netd.RouterAddr, 53).String()
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialIn(ctx, ns, network, server)
	}}
	return resolver.LookupNetIP(ctx, "ip4", name+".")
}

// Dial implements debug.Source.
func (d *Daemon) Dial(ctx context.Context, ns string, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c, err := dialIn(ctx, ns, "tcp", to.String())
	if err != nil {
		return err
	}
	return c.Close()
}

// dialIn opens a socket in the namespace. The address must be numeric, so that
// the dialer makes its one socket on the calling thread.
func dialIn(ctx context.Context, ns, network, addr string) (c net.Conn, err error) {
	err = netns.Do(ns, func() error {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
