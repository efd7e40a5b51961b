package gossip

import (
	"encoding/binary"
	"log"
	"time"

	"github.com/hashicorp/memberlist"
	"netd"
)

const (
	// A dead node is told within 3 to 5 s on a LAN: a probe each 0.5 s, one more
	// interval for the indirect and TCP probes, then the suspicion of four intervals
	// (up to three times that while too few others confirm it).
	probeInterval     = 500 * time.Millisecond
	probeTimeout      = 250 * time.Millisecond
	suspicionMult     = 4
	suspicionMaxMult  = 3
	retransmitMult    = 4
	gossipInterval    = 200 * time.Millisecond
	pushPullInterval  = 10 * time.Second
	deadNodeReclaim   = time.Second     // a dead node may come back under another address
	streamTimeout     = 3 * time.Second // for a whole TCP exchange
	leaveTimeout      = 2 * time.Second
	upkeepInterval    = 250 * time.Millisecond
	outbidInterval    = time.Second
	askEvery          = 2 // upkeep intervals
	parallelSends     = 8
	parallelDials     = 8
	directSends       = 16
	maxOwners         = 1 << 14 // owners remembered; far above any cluster
	packetSize        = 1232    // UDP payload that fits IPv6's least MTU of 1280 (RFC 8200 §5)
	packetBudget      = 1100    // of it for one message: the rest is encryption and framing
	handoffQueueDepth = 4096
)

func listConfig(cfg Config, t *Table) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(cfg.Node)
	c.BindAddr, c.AdvertiseAddr = cfg.Addr.String(), cfg.Addr.String()
	c.BindPort, c.AdvertisePort = int(cfg.Port), int(cfg.Port)
	c.ProbeInterval, c.ProbeTimeout = probeInterval, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	c.RetransmitMult = retransmitMult
	c.GossipInterval = gossipInterval
	c.PushPullInterval = pushPullInterval
	c.DeadNodeReclaimTime = deadNodeReclaim
	c.TCPTimeout = streamTimeout
	c.UDPBufferSize = packetSize
	c.HandoffQueueDepth = handoffQueueDepth
	c.Keyring = t.keys.ring
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false // IDs are random: it would cost and not save
	d := delegate{t}
	c.Delegate, c.Events, c.Ping = d, d, d
	c.Logger = log.New(newLogWriter(t.log), "", 0)
	return c
}

// broadcast is one owner's newest state in the queue: it replaces older ones.
type broadcast struct {
	owner string
	msg   []byte
}

func (b *broadcast) Name() string    { return b.owner }
func (b *broadcast) Message() []byte { return b.msg }
func (b *broadcast) Finished()       {}
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.owner == b.owner
}

// delegate is what memberlist calls. The event methods run with memberlist's
// locks held and so only write down what happened.
type delegate struct{ t *Table }

func (d delegate) NodeMeta(int) []byte { return nil }

func (d delegate) NotifyMsg(b []byte) { d.t.receive(b) }

func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.t.queue.GetBroadcasts(overhead, limit)
}

// LocalState is our half of a push/pull: everything at a join, so that a new
// node knows all after one exchange, else only the versions.
func (d delegate) LocalState(join bool) []byte {
	t := d.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if join {
		return encodeStates(t.statesLocked())
	}
	return encodeList(kindDigest, t.node, t.digestLocked())
}

func (d delegate) MergeRemoteState(b []byte, _ bool) { d.t.receive(b) }

func (d delegate) NotifyJoin(n *memberlist.Node)   { d.t.heard(*n, true) }
func (d delegate) NotifyLeave(n *memberlist.Node)  { d.t.heard(*n, false) }
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.t.heard(*n, true) }

// AckPayload rides on every answer to a probe: our boot and version. It makes
// each probe a check that the prober is up to date, and shows a restart that
// was too short to be seen as a failure.
func (d delegate) AckPayload() []byte {
	d.t.mu.Lock()
	defer d.t.mu.Unlock()
	b := binary.BigEndian.AppendUint64(nil, d.t.own.boot)
	return binary.BigEndian.AppendUint64(b, d.t.own.version)
}

func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, payload []byte) {
	if len(payload) < 16 {
		return
	}
	at := stamp{binary.BigEndian.Uint64(payload), binary.BigEndian.Uint64(payload[8:])}
	d.t.probed(netd.NodeID(n.Name), at)
}

// heard notes memberlist's word on a node. Its entries stay as they are.
func (t *Table) heard(n memberlist.Node, alive bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := netd.NodeID(n.Name)
	if alive {
		n.Addr = append([]byte(nil), n.Addr...)
		t.members[id] = member{node: n, alive: true}
	} else if m, ok := t.members[id]; ok {
		m.alive = false
		t.members[id] = m
		if t.records[id].left {
			delete(t.members, id)
		}
		t.redialSoonLocked(m.addrPort())
	}
	live := 0
	for _, m := range t.members {
		if m.alive {
			live++
		}
	}
	t.live.Store(int32(live))
	t.changedLocked()
}

// probed compares a living node's newest version with what we hold of it, and
// joins it anew when it has restarted: it may know nobody.
func (t *Table) probed(id netd.NodeID, at stamp) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.boots[id]
	if known == 0 {
		known = t.records[id].boot
	}
	t.boots[id] = at.boot
	if m, met := t.members[id]; met && known != 0 && known != at.boot {
		t.dialOnceLocked(m.addrPort())
	}
	if at.version > 0 {
		t.wantLocked(id, at)
	}
}
