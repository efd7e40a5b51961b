package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"netd"
	"netd/balancer"
	"netd/dispatch"
	"netd/dns"
	"netd/gossip"
	"netd/ingress"
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
	id      *identity
	key     []byte // PEM
	files   files
	kind    balancer.Kind
	log     *slog.Logger
	client  *dispatch.Client
	runtime *task.Runtime
	// keeping guards what changes of id: Managers and Certificate, and their file.
	keeping sync.Mutex

	// Set on managers only.
	server  *dispatch.Server
	store   *store.Store
	control *orchestrator.Orchestrator

	// founded is closed once the swarm knows this node: a session before that would
	// be refused for good.
	founded chan struct{}
	// first is closed by the first assignment, which may be that of the last run.
	first    chan struct{}
	assigned atomic.Pointer[dispatch.Assignment]
	host     atomic.Pointer[host]
	// taking keeps an older assignment from replacing a newer one.
	taking sync.Mutex

	// opened is called once the host's part is at work.
	opened func()
	// ended is closed when Run has returned.
	ended chan struct{}
	// cancel ends the membership, and done is closed when it has ended: with this
	// member or with one that followed it.
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
	ingress  *ingress.Ingress
	resolver *dns.Server

	// looks is held for reading while someone looks into the host from outside;
	// closed, guarded by it, is true when there is nothing more to see.
	looks  sync.RWMutex
	closed bool
	// members are those of the assignment that was taken last; guarded by
	// member.taking.
	members []netd.NodeID
}

// close lets go of the kernel once nobody looks any more.
func (h *host) close() error {
	h.looks.Lock()
	defer h.looks.Unlock()
	h.closed = true
	return h.overlay.Close()
}

var (
	// errLeft ends a membership that the user ended.
	errLeft = errors.New("the node leaves the swarm")
	// errRemoved ends one that the managers ended.
	errRemoved = errors.New("the swarm no longer has this node")
)

func (o options) netnsDir() string { return filepath.Join(o.RunDir, "netns") }

// newMember opens what the membership stands on: what an earlier run kept, and on a
// manager the port and the store. A file that is damaged is an error that names
// it, and stays as it is. Nothing runs yet.
func newMember(d *Daemon, id *identity, key []byte) (*member, error) {
	m := &member{
		options: d.options, id: id, key: key, files: d.files, kind: d.kind, log: d.log,
		founded: make(chan struct{}), first: make(chan struct{}), done: make(chan struct{}), ended: make(chan struct{}),
	}
	m.opened = func() { d.set(m, nil) }
	cert, ca, err := id.credentials(key)
	if err != nil {
		return nil, fmt.Errorf("read the node's certificate: %w", err)
	}
	if err := m.recall(); err != nil {
		return nil, err
	}
	if m.runtime, err = openRuntime(d.options, d.log); err != nil {
		return nil, err
	}
	if id.Role == pki.Manager {
		if err := m.openManager(cert, ca); err != nil {
			return nil, errors.Join(err, m.runtime.Close())
		}
	}
	m.client = dispatch.NewClient(dispatch.ClientConfig{TLS: pki.ClientTLS(cert, ca), Managers: id.Managers, Log: m.log})
	return m, nil
}

// recall takes up the assignment that the last run kept: a node goes on with it
// where no manager answers.
func (m *member) recall() error {
	kept, err := node.Kept(m.files.node())
	if err != nil || kept == nil {
		return err
	}
	if kept.Node.ID != string(m.id.NodeID) {
		return fmt.Errorf("read assignment: what is kept in %q is of node %s, this is node %s; move it away and start again, the managers will send a new one", m.files.node(), kept.Node.ID, m.id.NodeID)
	}
	m.assigned.Store(kept)
	close(m.first)
	return nil
}

func (m *member) openManager(cert tls.Certificate, ca pki.CA) error {
	listener, err := net.Listen("tcp", m.id.Listen)
	if err != nil {
		return listenError(m.id.Listen, err)
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

// listenError says how to get past a port that cannot be had.
func listenError(addr string, err error) error {
	_, port, _ := net.SplitHostPort(addr)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return netd.Errorf(netd.ErrUnavailable, "TCP port %s, for the nodes of the swarm, is in use on this host (listen %s): stop its user, which 'ss -ltnp sport = :%s' shows; a new swarm can have another port: 'docker swarm init --listen-addr ADDRESS:PORT'", port, addr, port)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return netd.Errorf(netd.ErrInvalid, "cannot listen on %s: it is not an address of this host; give one of its own with --listen-addr", addr)
	}
	return fmt.Errorf("listen for nodes on %s: %w", addr, err)
}

// manager is where this node answers as a manager.
func (id *identity) manager() string {
	return netip.AddrPortFrom(id.Advertise, id.Port).String()
}

// Run does the member's part until ctx ends or the swarm no longer wants it.
func (m *member) Run(ctx context.Context) (err error) {
	defer func() {
		err = errors.Join(err, m.runtime.Close())
		close(m.ended)
	}()
	g, ctx := errgroup.WithContext(ctx)
	if m.server != nil {
		g.Go(func() error { return m.server.Run(ctx) })
		g.Go(func() error { return m.store.Run(ctx) })
		g.Go(func() error { return m.control.Run(ctx) })
	}
	g.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-m.founded:
			err := m.client.Run(ctx, m.assign)
			if errors.Is(err, netd.ErrForbidden) {
				return fmt.Errorf("%w: %w", errRemoved, err)
			}
			return err
		}
	})
	g.Go(func() error { return m.renewals(ctx) })
	g.Go(func() error { return m.work(ctx) })
	m.client.Send(dispatch.Report{Description: description(m.options, m.id), Addr: m.id.DataPath})
	return g.Wait()
}

// assign takes an assignment from the managers and keeps where they are.
func (m *member) assign(a dispatch.Assignment) {
	m.assigned.Store(&a)
	m.keepManagers(a.Managers)
	if h := m.host.Load(); h != nil {
		m.take(h)
		return
	}
	select {
	case <-m.first:
	default:
		close(m.first)
	}
}

func (m *member) keepManagers(managers []string) {
	m.keeping.Lock()
	defer m.keeping.Unlock()
	if len(managers) == 0 || slices.Equal(managers, m.id.Managers) {
		return
	}
	m.id.Managers = slices.Clone(managers)
	if err := m.files.save(m.id); err != nil {
		m.log.Error("keep the managers' addresses", "err", err)
	}
}

// take hands the newest assignment to the host.
func (m *member) take(h *host) {
	m.taking.Lock()
	defer m.taking.Unlock()
	a := m.assigned.Load()
	peers := make([]netip.AddrPort, 0, len(a.GossipPeers))
	for _, p := range a.GossipPeers { // the managers know the addresses; the port is the same on all nodes
		peers = append(peers, netip.AddrPortFrom(p.Addr(), uint16(m.GossipPort)))
	}
	h.gossip.SetPeers(peers)
	if err := h.gossip.SetKeys(a.GossipKeys); err != nil {
		m.log.Error("take the gossip keys", "err", err)
	}
	// A node that was never listed may be one that has just joined: only who was a
	// member and is none any more has been removed.
	for _, id := range h.members {
		if !slices.Contains(a.Members, id) {
			h.gossip.Forget(id)
		}
	}
	h.members = a.Members
	h.node.Assign(*a)
}

// work runs this host's tasks and network. It begins with the assignment that
// was kept from the last run, or waits for the first one: without it there is
// neither a key to gossip with nor anything to do.
func (m *member) work(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.first:
	}
	h, err := m.openHost(*m.assigned.Load())
	if err != nil {
		return err
	}
	defer h.close()
	m.host.Store(h)
	defer m.host.Store(nil)
	m.opened()
	m.take(h)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.gossip.Run(ctx) })
	g.Go(func() error { return h.resolver.Run(ctx) })
	g.Go(func() error { return h.runtime.Run(ctx) })
	g.Go(func() error { return h.node.Run(ctx) })
	return g.Wait()
}

func (m *member) openHost(a dispatch.Assignment) (h *host, err error) {
	h = &host{resolver: dns.New(m.log), runtime: m.runtime}
	if h.balancer, err = balancer.New(m.kind, m.log); err != nil {
		return nil, fmt.Errorf("open balancer: %w", err)
	}
	if h.ingress, err = ingress.New(m.log); err != nil {
		return nil, fmt.Errorf("open ingress: %w", err)
	}
	upstreams, err := dns.HostUpstreams("/etc/resolv.conf", netd.RouterAddr)
	if err != nil {
		m.log.Warn("no upstream resolver; only the swarm's own names are answered", "err", err)
	}
	if h.overlay, err = vxlan.New(m.netnsDir(), m.log); err != nil {
		return nil, err
	}
	if h.gossip, err = gossip.New(m.gossipConfig(a.GossipKeys)); err != nil {
		return nil, errors.Join(m.gossipError(err), h.overlay.Close())
	}
	h.node = node.New(node.Config{
		Self: m.id.NodeID, Name: m.NodeName, Addr: m.id.DataPath, Port: uint16(a.DataPathPort),
		DataDir: m.files.node(), NetNSDir: m.netnsDir(), Upstreams: upstreams,
		Overlay: h.overlay, Balancer: h.balancer, Ingress: h.ingress, Resolver: h.resolver, Gossip: h.gossip, Runtime: h.runtime,
		Report: m.client.Send, Log: m.log,
	})
	return h, nil
}

// gossipConfig has the gossip at the node's data path address: that is the one which
// the managers tell the other nodes.
func (m *member) gossipConfig(keys [][]byte) gossip.Config {
	return gossip.Config{
		Node: m.id.NodeID, Addr: m.id.DataPath, Port: uint16(m.GossipPort), Keys: keys, Boot: m.id.Boot, Log: m.log,
	}
}

// gossipError says how to get past an address that the gossip cannot have.
func (m *member) gossipError(err error) error {
	switch text := err.Error(); { // memberlist passes on the text only
	case strings.Contains(text, unix.EADDRINUSE.Error()):
		return netd.Errorf(netd.ErrUnavailable, "port %d, TCP or UDP, for the gossip of the nodes, is in use on %s: stop its user, which 'ss -lntup sport = :%d' shows; netd tries again until then. Or start netd with another --gossip-port on all nodes", m.GossipPort, m.id.DataPath, m.GossipPort)
	case strings.Contains(text, unix.EADDRNOTAVAIL.Error()):
		return netd.Errorf(netd.ErrInvalid, "%s, under which the other nodes know this one, is no longer an address of this host: give it back, netd tries again until then; or run 'docker swarm leave --force' and join again with another --advertise-addr", m.id.DataPath)
	}
	return err
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

// farewellTime bounds how long the managers, and then the peers, may take to hear
// that this node goes.
const farewellTime = 2 * time.Second

// farewell tells the managers and the peers that this node goes, so that they need
// not find out.
func (m *member) farewell(ctx context.Context) {
	select {
	case <-m.ended:
		return // there is nobody left who could speak
	default:
	}
	if m.control == nil { // else the swarm ends with its only manager
		ctx, cancel := context.WithTimeout(ctx, farewellTime)
		defer cancel()
		if err := m.client.Leave(ctx); err != nil {
			m.log.Warn("the managers will find out by themselves that this node has left", "err", err)
		}
	}
	if h := m.host.Load(); h != nil {
		ctx, cancel := context.WithTimeout(ctx, farewellTime)
		defer cancel()
		if err := h.gossip.Leave(ctx); err != nil {
			m.log.Warn("take leave of the peers", "err", err)
		}
	}
}
