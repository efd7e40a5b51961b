package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"crypto/tls"

	"golang.org/x/sync/errgroup"

	"netd"
	"netd/balancer"
	"netd/dispatch"
	"netd/dns"
	"netd/gossip"
	"netd/netd/node"
	"netd/netd/task"
	"netd/orchestrator"
	"netd/orchestrator/store"
	"netd/pki"
	"netd/vxlan"
)

// member is the daemon's part in a swarm, from init or join to leave, or from
// one start of the daemon to its end. On a manager it holds the store and the
// orchestrator too.
type member struct {
	options
	id     *identity
	files  files
	kind   balancer.Kind
	log    *slog.Logger
	client *dispatch.Client

	// Set on managers only.
	server  *dispatch.Server
	store   *store.Store
	control *orchestrator.Orchestrator

	// first is closed by the first assignment.
	first    chan struct{}
	assigned atomic.Pointer[dispatch.Assignment]
	host     atomic.Pointer[host]

	cancel context.CancelCauseFunc
	done   chan struct{}
}

// host is what runs once the swarm has said what: the node's tasks and network.
type host struct {
	node     *node.Node
	gossip   *gossip.Table
	runtime  *task.Runtime
	overlay  *vxlan.Overlay
	balancer *balancer.Balancer
	resolver *dns.Server
}

// errLeft ends a membership that the user ended.
var errLeft = errors.New("the node leaves the swarm")

func (o options) netnsDir() string { return filepath.Join(o.RunDir, "netns") }

// newMember opens what the membership stands on: on a manager the port and the
// store. Nothing runs yet.
func newMember(d *Daemon, id *identity, key []byte) (*member, error) {
	m := &member{
		options: d.options, id: id, files: d.files, kind: d.kind, log: d.log,
		first: make(chan struct{}), done: make(chan struct{}),
	}
	ca, err := pki.LoadCA(id.CA, nil)
	if err != nil {
		return nil, fmt.Errorf("read the swarm's root certificate: %w", err)
	}
	cert, err := pki.Certificate(id.Certificate, key, ca)
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	if id.Role == pki.Manager {
		if err := m.openManager(cert, ca); err != nil {
			return nil, err
		}
	}
	m.client = dispatch.NewClient(dispatch.ClientConfig{TLS: pki.ClientTLS(cert, ca), Managers: id.Managers, Log: m.log})
	return m, nil
}

func (m *member) openManager(cert tls.Certificate, ca pki.CA) error {
	listener, err := net.Listen("tcp", m.id.Listen)
	if err != nil {
		return fmt.Errorf("listen for nodes: %w; another manager may run here: give this one its own port with --listen-addr", err)
	}
	m.server = dispatch.NewServer(dispatch.Config{
		Listener: listener, TLS: pki.ServerTLS(cert, ca), Log: m.log,
	})
	m.store, err = store.Open(store.Config{
		Dir: m.files.raft(), NodeID: string(m.id.NodeID), Addr: m.id.manager(), Layer: m.server.RaftLayer(), Log: m.log,
	})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	m.control = orchestrator.New(orchestrator.Config{Store: m.store, Log: m.log})
	m.server.SetManager(m.control)
	return nil
}

// manager is where this node answers as a manager.
func (id *identity) manager() string {
	return netip.AddrPortFrom(id.Advertise, id.Port).String()
}

// Run does the member's part until ctx ends or the swarm no longer wants it.
func (m *member) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if m.server != nil {
		g.Go(func() error { return m.server.Run(ctx) })
		g.Go(func() error { return m.store.Run(ctx) })
		g.Go(func() error { return m.control.Run(ctx) })
	}
	g.Go(func() error { return m.client.Run(ctx, m.assign) })
	g.Go(func() error { return m.work(ctx) })
	m.client.Send(dispatch.Report{Description: description(m.options, m.id), Addr: m.id.DataPath})
	return g.Wait()
}

// assign takes an assignment from the managers and keeps where they are.
func (m *member) assign(a dispatch.Assignment) {
	m.assigned.Store(&a)
	if len(a.Managers) > 0 && !slices.Equal(a.Managers, m.id.Managers) {
		m.id.Managers = slices.Clone(a.Managers)
		if err := m.files.save(m.id); err != nil {
			m.log.Error("keep the managers' addresses", "err", err)
		}
	}
	if h := m.host.Load(); h != nil {
		h.take(a, m.log)
		return
	}
	select {
	case <-m.first:
	default:
		close(m.first)
	}
}

func (h *host) take(a dispatch.Assignment, log *slog.Logger) {
	h.gossip.SetPeers(a.GossipPeers)
	if err := h.gossip.SetKeys(a.GossipKeys); err != nil {
		log.Error("take the gossip keys", "err", err)
	}
	h.node.Assign(a)
}

// work runs this host's tasks and network. It begins with the assignment that
// was kept from the last run, or waits for the first one: without it there is
// neither a key to gossip with nor anything to do.
func (m *member) work(ctx context.Context) error {
	kept, err := node.Kept(m.files.node())
	if err != nil {
		return err
	}
	if kept == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.first:
		}
		kept = m.assigned.Load()
	}
	h, err := m.openHost(*kept)
	if err != nil {
		return err
	}
	m.host.Store(h)
	h.take(*kept, m.log)
	if newest := m.assigned.Load(); newest != nil {
		h.take(*newest, m.log)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.gossip.Run(ctx) })
	g.Go(func() error { return h.resolver.Run(ctx) })
	g.Go(func() error { return h.runtime.Run(ctx) })
	g.Go(func() error { return h.node.Run(ctx) })
	return g.Wait()
}

func (m *member) openHost(a dispatch.Assignment) (h *host, err error) {
	h = &host{resolver: dns.New(m.log)}
	if h.overlay, err = vxlan.New(m.netnsDir(), m.log); err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	if h.balancer, err = balancer.New(m.kind, m.log); err != nil {
		return nil, fmt.Errorf("open balancer: %w", err)
	}
	if h.runtime, err = openRuntime(m.options, m.log); err != nil {
		return nil, err
	}
	upstreams, err := dns.HostUpstreams("/etc/resolv.conf", netd.RouterAddr)
	if err != nil {
		m.log.Warn("no upstream resolver; only the swarm's own names are answered", "err", err)
	}
	h.gossip, err = gossip.New(gossip.Config{
		Node: m.id.NodeID, Addr: m.id.Advertise, Port: uint16(m.GossipPort), Keys: a.GossipKeys, Boot: m.id.Boot, Log: m.log,
	})
	if err != nil {
		return nil, fmt.Errorf("open gossip: %w", err)
	}
	h.node = node.New(node.Config{
		Self: m.id.NodeID, Name: m.NodeName, Addr: m.id.DataPath, Port: uint16(a.DataPathPort),
		DataDir: m.files.node(), NetNSDir: m.netnsDir(), Upstreams: upstreams,
		Overlay: h.overlay, Balancer: h.balancer, Resolver: h.resolver, Gossip: h.gossip, Runtime: h.runtime,
		Report: m.client.Send, Log: m.log,
	})
	return h, nil
}

func openRuntime(o options, log *slog.Logger) (*task.Runtime, error) {
	r, err := task.Open(task.Config{DataDir: o.DataDir, RunDir: o.RunDir, Log: log})
	if err != nil {
		return nil, fmt.Errorf("open the task runtime: %w", err)
	}
	return r, nil
}

// stop ends the membership's goroutines and waits for them.
func (m *member) stop(cause error) {
	m.cancel(cause)
	<-m.done
}

// farewell tells the peers that this node goes, so that they need not find out.
func (m *member) farewell(ctx context.Context) {
	h := m.host.Load()
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := h.gossip.Leave(ctx); err != nil {
		m.log.Warn("take leave of the peers", "err", err)
	}
}
