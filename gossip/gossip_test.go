package gossip

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"netd"
	"netd/internal/nettest"
)

var (
	testKey  = bytes.Repeat([]byte{1}, 16)
	otherKey = bytes.Repeat([]byte{2}, 32)
)

// wire is a real transport on loopback that can be cut.
type wire struct {
	*memberlist.NetTransport
	cut     atomic.Bool
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
}

func newWire(t *testing.T, port uint16) *wire {
	t.Helper()
	nt, err := memberlist.NewNetTransport(&memberlist.NetTransportConfig{
		BindAddrs: []string{"127.0.0.1"}, BindPort: int(port), Logger: log.New(io.Discard, "", 0),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{NetTransport: nt, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{})}
	go w.pump()
	return w
}

// Shutdown ends the pump after the transport, which waits to be emptied.
func (w *wire) Shutdown() error {
	defer close(w.done)
	return w.NetTransport.Shutdown()
}

// pump passes on what comes in while the wire is whole.
func (w *wire) pump() {
	for {
		select {
		case <-w.done:
			return
		case p := <-w.NetTransport.PacketCh():
			if !w.cut.Load() {
				select {
				case w.packets <- p:
				case <-w.done:
				}
			}
		case c := <-w.NetTransport.StreamCh():
			if w.cut.Load() {
				_ = c.Close()
				continue
			}
			select {
			case w.streams <- c:
			case <-w.done:
			}
		}
	}
}

func (w *wire) PacketCh() <-chan *memberlist.Packet { return w.packets }
func (w *wire) StreamCh() <-chan net.Conn           { return w.streams }

func (w *wire) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	if w.cut.Load() {
		return time.Now(), nil
	}
	return w.NetTransport.WriteToAddress(b, a)
}

func (w *wire) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if w.cut.Load() {
		return nil, fmt.Errorf("dial %s: the wire is cut", a.Addr)
	}
	return w.NetTransport.DialAddressTimeout(a, timeout)
}

// node is a running Table.
type node struct {
	*Table
	wire *wire
	stop func()
}

type start struct {
	id   netd.NodeID
	port uint16
	boot uint64
	keys [][]byte
}

// run starts a Table on loopback; the test's end or stop ends it.
func run(t *testing.T, s start) *node {
	t.Helper()
	if s.keys == nil {
		s.keys = [][]byte{testKey}
	}
	w := newWire(t, s.port)
	cfg := Config{Node: s.id, Addr: netip.MustParseAddr("127.0.0.1"), Keys: s.keys, Boot: max(s.boot, 1), Port: uint16(w.GetAutoBindPort())}
	table, err := open(cfg, w)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- table.Run(ctx) }()
	stopped := false
	n := &node{Table: table, wire: w}
	n.stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		if err := <-done; err != nil {
			t.Errorf("run %s: %v", s.id, err)
		}
	}
	t.Cleanup(n.stop)
	return n
}

// cluster starts n nodes n1, n2... of which the first is everybody's peer and
// knows them all, like a manager.
func cluster(t *testing.T, n int) []*node {
	t.Helper()
	var nodes []*node
	var addrs []netip.AddrPort
	for i := range n {
		nodes = append(nodes, run(t, start{id: netd.NodeID(fmt.Sprintf("n%d", i+1))}))
		addrs = append(addrs, nodes[i].Addr())
	}
	nodes[0].SetPeers(addrs)
	for _, node := range nodes[1:] {
		node.SetPeers(addrs[:1])
	}
	for _, node := range nodes {
		nettest.Eventually(t, 10*time.Second, "all alive", func() error { return alive(node, n) })
	}
	return nodes
}

func alive(on *node, want int) error {
	got := 0
	for _, m := range on.View().Members {
		if m.Alive {
			got++
		}
	}
	if got != want {
		return fmt.Errorf("%s sees %d alive, want %d", on.node, got, want)
	}
	return nil
}

func entries(from, to int, s netd.EndpointState) []Entry {
	var list []Entry
	for i := from; i < to; i++ {
		list = append(list, Entry{key(i), s})
	}
	return list
}

// holds says whether node on has exactly these entries of owner.
func holds(on *node, owner netd.NodeID, want []Entry) error {
	got := on.View().Members[owner].Entries
	if len(got) != len(want) {
		return fmt.Errorf("%s holds %d entries of %s, want %d", on.node, len(got), owner, len(want))
	}
	for _, e := range want {
		if got[e.Key] != e.State {
			return fmt.Errorf("%s holds %v as %v, want %v", on.node, e.Key, got[e.Key], e.State)
		}
	}
	return nil
}

func eventuallyHolds(t *testing.T, on *node, owner netd.NodeID, want []Entry) {
	t.Helper()
	nettest.Eventually(t, 10*time.Second, "converge", func() error { return holds(on, owner, want) })
}

// Small and large states of every node reach every other, changes and removals
// too, and an unchanged Publish is no new version.
func TestConverge(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 4)
	for i, size := range []int{3, 0, 60, 4000} {
		nodes[i].Publish(entries(0, size, netd.Ready))
		for _, on := range nodes {
			eventuallyHolds(t, on, nodes[i].node, entries(0, size, netd.Ready))
		}
	}
	big := nodes[3]
	change := append(entries(0, 1, netd.Draining), entries(2, 4000, netd.Ready)...)
	v := big.Publish(change)
	if again := big.Publish(change); v != 2 || again != v {
		t.Errorf("versions: got %d, then %d, want 2 twice", v, again)
	}
	for _, on := range nodes {
		eventuallyHolds(t, on, big.node, change)
	}
	if v := nodes[0].View(); v != nodes[0].View() {
		t.Error("View is another pointer although nothing changed")
	}
}

// A version counts as acknowledged when every living peer has applied it, also
// when their first acks are lost, and the bell rings for it.
func TestAcks(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	version := nodes[0].Publish(entries(0, 2, netd.Draining))
	for _, on := range nodes[1:] {
		eventuallyHolds(t, on, "n1", entries(0, 2, netd.Draining))
	}
	if got, want := nodes[0].Acked(version), []netd.NodeID{"n2", "n3"}; !slices.Equal(got, want) {
		t.Fatalf("before Applied: missing %v, want %v", got, want)
	}
	nodes[1].Applied(nodes[1].View())
	nodes[2].wire.cut.Store(true) // its ack is lost
	nodes[2].Applied(nodes[2].View())
	nodes[2].wire.cut.Store(false)
	deadline := time.After(10 * time.Second)
	for len(nodes[0].Acked(version)) > 0 {
		select {
		case <-nodes[0].Changed():
		case <-deadline:
			t.Fatalf("no bell: missing %v", nodes[0].Acked(version))
		}
	}
	if got := nodes[0].Acked(version + 1); len(got) != 2 {
		t.Errorf("a later version: missing %v, want both", got)
	}
}

// A node that is cut off is marked dead within 10 s, keeps its entries, is not
// waited for, and is back within 10 s of the repair at the same version.
func TestPartition(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	want := entries(0, 5, netd.Ready)
	nodes[2].Publish(want)
	for _, on := range nodes {
		eventuallyHolds(t, on, "n3", want)
	}
	before := nodes[0].View().Members["n3"]
	nodes[2].wire.cut.Store(true)
	cut := time.Now()
	for _, on := range nodes[:2] {
		nettest.Eventually(t, 10*time.Second, "dead", func() error { return alive(on, 2) })
	}
	t.Logf("dead after %s", time.Since(cut))
	nettest.Eventually(t, 10*time.Second, "alone", func() error { return alive(nodes[2], 1) })
	version := nodes[0].Publish(entries(10, 12, netd.Ready))
	nodes[1].Publish(entries(20, 22, netd.Ready))
	eventuallyHolds(t, nodes[1], "n1", entries(10, 12, netd.Ready))
	nodes[1].Applied(nodes[1].View())
	nettest.Eventually(t, 5*time.Second, "not waited for", func() error {
		if missing := nodes[0].Acked(version); len(missing) > 0 {
			return fmt.Errorf("missing %v", missing)
		}
		return nil
	})
	if err := holds(nodes[0], "n3", want); err != nil {
		t.Errorf("while dead: %v", err)
	}
	nodes[2].wire.cut.Store(false)
	repaired := time.Now()
	for _, on := range nodes {
		nettest.Eventually(t, 10*time.Second, "back", func() error { return alive(on, 3) })
	}
	t.Logf("back after %s", time.Since(repaired))
	after := nodes[0].View().Members["n3"]
	if after.Boot != before.Boot || after.Version != before.Version {
		t.Errorf("after: got version %d.%d, want %d.%d", after.Boot, after.Version, before.Boot, before.Version)
	}
	eventuallyHolds(t, nodes[2], "n1", entries(10, 12, netd.Ready))
	eventuallyHolds(t, nodes[2], "n2", entries(20, 22, netd.Ready))
}

// A manager that restarts at once, with no peers of its own to ask, is found by
// the others before they ever miss it, and its new state replaces the old one
// although its versions begin again.
func TestRestart(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	nodes[1].Publish(entries(0, 3, netd.Ready))
	for range 3 {
		nodes[0].Publish(entries(0, 4, netd.Ready))
		nodes[0].Publish(entries(0, 5, netd.Ready))
	}
	eventuallyHolds(t, nodes[1], "n1", entries(0, 5, netd.Ready))
	nettest.Eventually(t, 10*time.Second, "probed", func() error {
		nodes[1].mu.Lock()
		defer nodes[1].mu.Unlock()
		if nodes[1].boots["n1"] == 0 {
			return fmt.Errorf("n2 does not know the start of n1")
		}
		return nil
	})
	port := nodes[0].Addr().Port()
	nodes[0].stop()
	again := run(t, start{id: "n1", port: port, boot: 2})
	nettest.Eventually(t, 10*time.Second, "found again", func() error { return alive(again, 3) })
	eventuallyHolds(t, again, "n2", entries(0, 3, netd.Ready))
	if err := holds(nodes[1], "n1", entries(0, 5, netd.Ready)); err != nil {
		t.Errorf("before the new start publishes: %v", err)
	}
	again.Publish(entries(1, 2, netd.Ready))
	for _, on := range nodes[1:] {
		eventuallyHolds(t, on, "n1", entries(1, 2, netd.Ready))
	}
}

// A start whose boot number is behind its old ones still wins for its own name.
func TestBootBehind(t *testing.T) {
	t.Parallel()
	first := run(t, start{id: "n1"})
	second := run(t, start{id: "n2", boot: 9})
	second.SetPeers([]netip.AddrPort{first.Addr()})
	second.Publish(entries(0, 3, netd.Ready))
	eventuallyHolds(t, first, "n2", entries(0, 3, netd.Ready))
	port := second.Addr().Port()
	second.stop()
	again := run(t, start{id: "n2", port: port, boot: 4})
	again.SetPeers([]netip.AddrPort{first.Addr()})
	again.Publish(entries(5, 6, netd.Ready))
	eventuallyHolds(t, first, "n2", entries(5, 6, netd.Ready))
}

// A node that leaves takes its entries with it on every other node, and does not
// come back from anybody's memory; one that is forgotten neither.
func TestLeaveAndForget(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 4)
	for _, n := range nodes[2:] {
		n.Publish(entries(0, 3, netd.Ready))
		eventuallyHolds(t, nodes[0], n.node, entries(0, 3, netd.Ready))
		eventuallyHolds(t, nodes[1], n.node, entries(0, 3, netd.Ready))
	}
	nodes[0].SetPeers(nil)
	if err := nodes[2].Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes[2].stop()
	nodes[3].stop()
	for _, on := range nodes[:2] {
		nettest.Eventually(t, 10*time.Second, "left", func() error {
			if m, ok := on.View().Members["n3"]; ok {
				return fmt.Errorf("%s still lists it: %+v", on.node, m)
			}
			return nil
		})
		nettest.Eventually(t, 15*time.Second, "dead", func() error { return alive(on, 2) })
	}
	nodes[0].Forget("n4")
	if m, ok := nodes[0].View().Members["n4"]; ok {
		t.Errorf("forgotten and still listed: %+v", m)
	}
	if _, err := nodes[1].list.Join([]string{nodes[0].Addr().String()}); err != nil {
		t.Fatal(err)
	}
	if m, ok := nodes[0].View().Members["n4"]; ok {
		t.Errorf("brought back by another's memory: %+v", m)
	}
	if err := nodes[2].Leave(t.Context()); err == nil {
		t.Error("leave after the end: got no error")
	}
}

// A node with another key gets in nowhere and changes nothing.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	first := run(t, start{id: "n1"})
	stranger := run(t, start{id: "n2", keys: [][]byte{otherKey}})
	stranger.Publish(entries(0, 3, netd.Ready))
	if _, err := stranger.list.Join([]string{first.Addr().String()}); err == nil {
		t.Error("join with another key: got no error")
	}
	if n := len(first.View().Members); n != 1 {
		t.Errorf("the first node lists %d members, want 1", n)
	}
}

// Keys rotate in three steps without losing a member or a message, and the old
// key is of no use afterwards.
func TestRotation(t *testing.T) {
	t.Parallel()
	nodes := cluster(t, 3)
	third := bytes.Repeat([]byte{3}, 32)
	for step, keys := range [][][]byte{{testKey, otherKey}, {otherKey, testKey}, {otherKey}, {otherKey, third}, {third}} {
		for i, n := range nodes {
			if err := n.SetKeys(keys); err != nil {
				t.Fatal(err)
			}
			n.Publish(entries(step*10+i, step*10+i+3, netd.Ready))
		}
		for _, n := range nodes {
			for i, owner := range nodes {
				eventuallyHolds(t, n, owner.node, entries(step*10+i, step*10+i+3, netd.Ready))
			}
		}
	}
	for _, n := range nodes {
		if got := n.keys.ring.GetKeys(); len(got) != 1 || !bytes.Equal(got[0], third) {
			t.Errorf("%s has %d keys at the end", n.node, len(got))
		}
	}
	late := run(t, start{id: "n9"})
	if _, err := late.list.Join([]string{nodes[0].Addr().String()}); err == nil {
		t.Error("join with the first key: got no error")
	}
	for _, bad := range [][][]byte{nil, {testKey, []byte("short")}} {
		if err := nodes[0].SetKeys(bad); err == nil {
			t.Errorf("%d bad keys: got no error", len(bad))
		}
	}
}

// A port in use and a bad configuration are clear errors.
func TestNewErrors(t *testing.T) {
	t.Parallel()
	first := run(t, start{id: "n1"})
	good := Config{Node: "n2", Addr: first.Addr().Addr(), Port: first.Addr().Port(), Keys: [][]byte{testKey}}
	for name, change := range map[string]func(*Config){
		"port in use": func(*Config) {},
		"no keys":     func(c *Config) { c.Keys = nil },
		"no node":     func(c *Config) { c.Node = "" },
		"no address":  func(c *Config) { c.Addr = netip.Addr{} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: got no error", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
}

// On its own sockets a table finds a free port, says which, and is joined there.
func TestNew(t *testing.T) {
	t.Parallel()
	var tables []*Table
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	for i := range 2 {
		table, err := New(Config{Node: netd.NodeID(fmt.Sprint("n", i)), Addr: netip.MustParseAddr("127.0.0.1"), Keys: [][]byte{testKey}, Boot: 1})
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if err := table.Run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
		tables = append(tables, table)
	}
	tables[0].SetPeers([]netip.AddrPort{tables[1].Addr()})
	for _, table := range tables {
		nettest.Eventually(t, 10*time.Second, "joined", func() error { return alive(&node{Table: table}, 2) })
	}
}
