// Package gossip spreads what every node says of its own endpoints, and tells
// which nodes are alive: hashicorp/memberlist for membership, failure detection
// and transport, and on it a table with one versioned state per owner node.
//
// Only a node itself writes its state; the others order what they hear of it by
// (boot, version), so that messages may be lost, repeated or swapped. A node that
// fails is marked and keeps its entries; they go when it leaves or is forgotten.
//
// It is a hint and never an authority: whoever has the key can claim anything,
// so what may exist at all is decided by the managers. It carries no addresses,
// names or secrets, and stores nothing on disk.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
	"netd"
)

// DefaultPort is where nodes gossip, UDP and TCP.
const DefaultPort = 7946

// Config is what a Table needs to know of its own node.
type Config struct {
	Node netd.NodeID
	// Addr is bound, and announced to the peers.
	Addr netip.Addr
	// Port is bound for UDP and TCP; 0 picks a free one.
	Port uint16
	// Keys are AES keys of 16, 24 or 32 bytes; the first encrypts, all decrypt.
	Keys [][]byte
	// Boot orders the starts of this node's daemon: each is higher than the last.
	Boot uint64
	Log  *slog.Logger
}

// Entry is one endpoint of this node.
type Entry struct {
	Key   netd.EndpointKey
	State netd.EndpointState
}

// Member is one node as this one knows it.
type Member struct {
	// Alive is false for a node that does not answer, or was never met: its
	// entries are the last ones heard.
	Alive bool
	Addr  netip.Addr
	// Boot and Version say which of the node's states Entries are; both are 0 as
	// long as none has been heard.
	Boot, Version uint64
	Entries       map[netd.EndpointKey]netd.EndpointState
}

// View is everything known at one moment, this node included. It is never
// changed: a later one is another View.
type View struct {
	Members map[netd.NodeID]Member
}

// member is memberlist's word on a node.
type member struct {
	node  memberlist.Node
	alive bool
}

func (m member) addrPort() netip.AddrPort {
	addr, _ := netip.AddrFromSlice(m.node.Addr)
	return netip.AddrPortFrom(addr.Unmap(), m.node.Port)
}

// Table is this node's part in the gossip. Its methods may be called from any
// goroutine, also before Run.
type Table struct {
	node  netd.NodeID
	addr  netip.AddrPort
	log   *slog.Logger
	list  *memberlist.Memberlist
	ready chan struct{} // closed once list is set: it calls us before
	queue *memberlist.TransmitLimitedQueue
	keys  *keys
	bell  chan struct{}
	// outbox holds what is sent over TCP, by Run; when full, more is dropped and
	// asked for again.
	outbox chan outgoing
	// live counts the living members, for queue: memberlist's own count may not be
	// asked for under mu.
	live atomic.Int32

	// endMu keeps Leave, which panics after the end, and the end apart.
	endMu sync.Mutex
	ended bool

	// mu guards what follows. It is never held while memberlist is called, since
	// memberlist calls its delegate with its own locks held.
	mu      sync.Mutex
	own     history
	records map[netd.NodeID]record
	members map[netd.NodeID]member
	// wanted are versions known to exist that are newer than the records.
	wanted map[netd.NodeID]stamp
	// passed is the newest state of each owner that was handed on.
	passed map[netd.NodeID]stamp
	// boots are the starts of which each node told when it was last probed.
	boots map[netd.NodeID]uint64
	// held is, by owner, what our kernel holds; acked what of our own state the
	// kernels of others do.
	held, acked map[netd.NodeID]stamp
	dials       map[netip.AddrPort]*dial
	noOutbid    time.Time
	rounds      int   // of upkeep
	view        *View // nil when out of date
}

type outgoing struct {
	to  memberlist.Node
	msg []byte
}

// New opens the sockets in the calling thread's network namespace and begins to
// listen. Run must follow: it owns what New began and ends it.
func New(cfg Config) (*Table, error) { return open(cfg, nil) }

// open is New on a transport that is open already; with nil it opens one.
func open(cfg Config, transport memberlist.Transport) (*Table, error) {
	if cfg.Node == "" || len(cfg.Node) > maxID {
		return nil, fmt.Errorf("gossip: node ID of %d bytes: want 1 to %d", len(cfg.Node), maxID)
	}
	if !cfg.Addr.IsValid() || cfg.Addr.IsUnspecified() {
		return nil, fmt.Errorf("gossip: address %s: want one that peers can reach", cfg.Addr)
	}
	keys, err := newKeys(cfg.Keys)
	if err != nil {
		return nil, err
	}
	t := &Table{
		node:    cfg.Node,
		log:     cfg.Log,
		keys:    keys,
		ready:   make(chan struct{}),
		bell:    make(chan struct{}, 1),
		outbox:  make(chan outgoing, 1024),
		own:     history{record: record{stamp: stamp{boot: cfg.Boot}}},
		records: make(map[netd.NodeID]record),
		members: make(map[netd.NodeID]member),
		wanted:  make(map[netd.NodeID]stamp),
		passed:  make(map[netd.NodeID]stamp),
		boots:   make(map[netd.NodeID]uint64),
		held:    make(map[netd.NodeID]stamp),
		acked:   make(map[netd.NodeID]stamp),
		dials:   make(map[netip.AddrPort]*dial),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.queue = &memberlist.TransmitLimitedQueue{
		NumNodes:       func() int { return int(t.live.Load()) },
		RetransmitMult: retransmitMult,
	}
	defer close(t.ready)
	conf := listConfig(cfg, t)
	conf.Transport = transport
	t.list, err = memberlist.Create(conf)
	if err != nil {
		return nil, fmt.Errorf("open gossip on %s: %w", netip.AddrPortFrom(cfg.Addr, cfg.Port), err)
	}
	t.addr = netip.AddrPortFrom(cfg.Addr.Unmap(), uint16(conf.BindPort))
	return t, nil
}

// Addr returns the address and port that peers reach the table under.
func (t *Table) Addr() netip.AddrPort { return t.addr }

// Run gossips until ctx ends, then closes the sockets without a word: a daemon
// that restarts has not left. It then waits for exchanges under way, at most for
// streamTimeout.
func (t *Table) Run(ctx context.Context) error {
	var tasks errgroup.Group
	tasks.Go(func() error { return t.upkeep(ctx) })
	tasks.Go(func() error { return t.deliver(ctx) })
	<-ctx.Done()
	t.endMu.Lock()
	t.ended = true
	err := t.list.Shutdown()
	t.endMu.Unlock()
	if err := errors.Join(err, tasks.Wait()); err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}

// upkeep joins and asks again, at a steady pace.
func (t *Table) upkeep(ctx context.Context) error {
	var dials errgroup.Group
	dials.SetLimit(parallelDials)
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return dials.Wait()
		case <-tick.C:
			t.redial(&dials)
			t.askAgain()
		}
	}
}

// deliver sends what is in the outbox.
func (t *Table) deliver(ctx context.Context) error {
	var sends errgroup.Group
	sends.SetLimit(parallelSends)
	for {
		select {
		case <-ctx.Done():
			return sends.Wait()
		case out := <-t.outbox:
			sends.Go(func() error {
				if err := t.list.SendReliable(&out.to, out.msg); err != nil {
					t.log.Debug("send gossip", "node", out.to.Name, "err", err)
				}
				return nil
			})
		}
	}
}

// Publish makes entries the whole state of this node's endpoints and returns
// its version. The same entries again are no new version.
func (t *Table) Publish(entries []Entry) (version uint64) {
	t.mu.Lock()
	if t.own.left || !t.own.set(entries) {
		defer t.mu.Unlock()
		return t.own.version
	}
	version = t.own.version
	msg := t.announceLocked()
	targets := t.aliveLocked()
	t.mu.Unlock()

	// In a small cluster everybody hears at once; the gossip tells the rest.
	rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
	t.sendPackets(targets[:min(len(targets), directSends)], msg)
	return version
}

// announceLocked gives our newest state to the gossip and returns its message.
func (t *Table) announceLocked() []byte {
	t.changedLocked()
	msg := t.own.message(t.node, packetBudget)
	t.queue.QueueBroadcast(&broadcast{string(t.node), msg})
	return msg
}

// changedLocked drops the view and rings the bell.
func (t *Table) changedLocked() {
	t.view = nil
	t.ringLocked()
}

func (t *Table) ringLocked() {
	select {
	case t.bell <- struct{}{}:
	default:
	}
}

// Changed is a doorbell for one listener: it rings when View or Acked may answer
// differently than before.
func (t *Table) Changed() <-chan struct{} { return t.bell }

// View returns what is known now. It is the same pointer as long as nothing changes.
func (t *Table) View() *View {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.view != nil {
		return t.view
	}
	v := &View{Members: make(map[netd.NodeID]Member, len(t.members)+1)}
	for id, m := range t.members {
		v.Members[id] = Member{Alive: m.alive, Addr: m.addrPort().Addr()}
	}
	fill := func(id netd.NodeID, r record) {
		m := v.Members[id]
		m.Boot, m.Version, m.Entries = r.boot, r.version, r.entries
		v.Members[id] = m
	}
	for id, r := range t.records {
		if _, met := t.members[id]; met || !r.left {
			fill(id, r)
		}
	}
	v.Members[t.node] = Member{Alive: !t.own.left, Addr: t.addr.Addr()}
	fill(t.node, t.own.record)
	t.view = v
	return v
}

// aliveLocked returns the living members but this node, in the order of their IDs.
func (t *Table) aliveLocked() []memberlist.Node {
	var alive []memberlist.Node
	for _, id := range slices.Sorted(maps.Keys(t.members)) {
		if m := t.members[id]; m.alive && id != t.node {
			alive = append(alive, m.node)
		}
	}
	return alive
}

// Forget drops everything about a node that the managers have removed. What
// others still say of its present state is not taken up again.
func (t *Table) Forget(node netd.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.records[node]
	m, met := t.members[node]
	if node == t.node || !known && !met {
		return
	}
	if known {
		t.records[node] = record{stamp: r.stamp, left: true}
	}
	if !m.alive {
		delete(t.members, node)
	}
	delete(t.wanted, node)
	delete(t.held, node)
	delete(t.acked, node)
	delete(t.boots, node)
	delete(t.passed, node)
	t.changedLocked()
}

// Leave tells the others that this node goes for good: its entries go with it.
// It waits until that has been heard by some, at most until ctx ends or for
// leaveTimeout. Run goes on until its own context ends.
func (t *Table) Leave(ctx context.Context) error {
	t.endMu.Lock()
	defer t.endMu.Unlock()
	if t.ended {
		return errors.New("leave gossip: it has ended")
	}
	t.mu.Lock()
	if t.own.left {
		t.mu.Unlock()
		return nil
	}
	t.own.leave()
	msg := t.announceLocked()
	targets := t.aliveLocked()
	t.mu.Unlock()
	t.sendPackets(targets, msg)

	wait := leaveTimeout
	if deadline, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(deadline)), time.Millisecond)
	}
	if err := t.list.Leave(wait); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}
