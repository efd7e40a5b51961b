package gossip

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"
	"netd"
)

// receive takes in one message, from a packet or a stream.
func (t *Table) receive(b []byte) {
	if <-t.ready; t.list == nil {
		return // New has failed
	}
	m, err := decode(b)
	if err != nil {
		t.log.Warn("drop gossip", "err", err)
		return
	}
	var reply []byte   // to node to, as a packet
	var to netd.NodeID // the sender, where one is named
	t.mu.Lock()
	switch m.kind {
	case kindState:
		t.mergeLocked(m.states[0])
		t.passOnLocked(m.states[0], b)
	case kindStates:
		for _, s := range m.states {
			t.mergeLocked(s)
		}
	case kindDigest:
		t.pullLocked(m.from, m.list)
	case kindPull:
		if states := t.newerLocked(m.list); len(states) > 0 {
			t.postLocked(m.from, encodeStates(states))
		}
	case kindAck:
		t.ackedLocked(m.from, m.list)
	case kindAsk:
		to, reply = m.from, t.answerLocked(m)
	}
	node := t.members[to].node
	t.mu.Unlock()
	if reply != nil && node.Name != "" {
		t.sendPackets([]memberlist.Node{node}, reply)
	}
}

// mergeLocked takes up what s says of its owner, unless that is ourselves.
func (t *Table) mergeLocked(s state) {
	if s.owner == t.node {
		t.claimedLocked(s.stamp)
		return
	}
	if _, known := t.records[s.owner]; !known && len(t.records) >= maxOwners {
		maps.DeleteFunc(t.records, func(_ netd.NodeID, r record) bool { return r.left })
		if len(t.records) >= maxOwners {
			return
		}
	}
	r, what := t.records[s.owner].merge(s)
	switch what {
	case behind:
		t.wantLocked(s.owner, s.stamp)
	case applied:
		t.records[s.owner] = r
		if !r.less(t.wanted[s.owner]) {
			delete(t.wanted, s.owner)
		}
		if m, met := t.members[s.owner]; r.left && met && !m.alive {
			delete(t.members, s.owner)
		}
		t.changedLocked()
	}
}

// claimedLocked answers a newer state under our own name: only we write it, so
// ours must become the newest again. Once an interval at most: a clone of this
// node does the same.
func (t *Table) claimedLocked(claim stamp) {
	now := time.Now()
	if !t.own.less(claim) || claim.boot == math.MaxUint64 || now.Before(t.noOutbid) {
		return
	}
	t.noOutbid = now.Add(outbidInterval)
	t.log.Warn("another state under this node's name: is its ID in use twice?", "boot", t.own.boot, "claimed", claim.boot)
	t.own.outbid(claim)
	if t.own.version > 0 {
		t.announceLocked()
	}
}

// passOnLocked gossips the message of a state that is newer than any passed on,
// also when we could not use it ourselves.
func (t *Table) passOnLocked(s state, msg []byte) {
	if s.owner == t.node || len(msg) > packetBudget || !t.passed[s.owner].less(s.stamp) {
		return
	}
	if _, known := t.passed[s.owner]; !known && len(t.passed) >= maxOwners {
		return
	}
	t.passed[s.owner] = s.stamp
	t.queue.QueueBroadcast(&broadcast{string(s.owner), slices.Clone(msg)})
}

// wantLocked notes that the owner has a version that we lack, and asks the owner
// for it at once when that is news.
func (t *Table) wantLocked(owner netd.NodeID, at stamp) {
	if owner == t.node || !t.records[owner].less(at) || !t.wanted[owner].less(at) {
		return
	}
	if _, known := t.wanted[owner]; !known && len(t.wanted) >= maxOwners {
		return
	}
	t.wanted[owner] = at
	t.pullLocked(owner, []stamped{{owner, at}})
}

// pullLocked asks a node for those of the listed states that we lack.
func (t *Table) pullLocked(from netd.NodeID, list []stamped) {
	var lack []stamped
	for _, s := range list {
		if r := t.records[s.owner]; s.owner == t.node {
			t.claimedLocked(s.stamp)
		} else if r.less(s.stamp) {
			lack = append(lack, stamped{s.owner, r.stamp})
		}
	}
	if len(lack) > 0 {
		t.postLocked(from, encodeList(kindPull, t.node, lack))
	}
}

// newerLocked returns the whole states of those listed that we hold newer.
func (t *Table) newerLocked(list []stamped) []state {
	var states []state
	for _, s := range list {
		r := t.records[s.owner]
		if s.owner == t.node {
			r = t.own.record
		}
		if r.version > 0 && s.less(r.stamp) {
			states = append(states, r.whole(s.owner))
		}
	}
	return states
}

// statesLocked returns all that we hold.
func (t *Table) statesLocked() []state {
	list := t.digestLocked()
	for i := range list {
		list[i].stamp = stamp{}
	}
	return t.newerLocked(list)
}

// digestLocked lists what we hold, our own state first: whatever has to be cut
// off, it is not that.
func (t *Table) digestLocked() []stamped {
	var list []stamped
	for id, r := range t.records {
		list = append(list, stamped{id, r.stamp})
	}
	slices.SortFunc(list, func(a, b stamped) int { return cmp.Compare(a.owner, b.owner) })
	if t.own.version > 0 {
		list = slices.Insert(list, 0, stamped{t.node, t.own.stamp})
	}
	return list
}

// postLocked puts a message for a living member into the outbox.
func (t *Table) postLocked(to netd.NodeID, msg []byte) {
	m := t.members[to]
	if !m.alive || to == t.node {
		return
	}
	select {
	case t.outbox <- outgoing{m.node, msg}:
	default: // full: askAgain and the push/pull make up for it
	}
}

// sendPackets sends msg over UDP. What is lost is asked for or sent again.
func (t *Table) sendPackets(nodes []memberlist.Node, msg []byte) {
	for i := range nodes {
		if err := t.list.SendBestEffort(&nodes[i], msg); err != nil {
			t.log.Debug("send gossip", "node", nodes[i].Name, "err", err)
		}
	}
}

// Applied tells the owners that this node's kernel now holds what the view says
// of them.
func (t *Table) Applied(v *View) {
	type ack struct {
		to  memberlist.Node
		msg []byte
	}
	var acks []ack
	t.mu.Lock()
	for _, id := range slices.Sorted(maps.Keys(v.Members)) {
		seen := v.Members[id]
		at := stamp{seen.Boot, seen.Version}
		if id == t.node || !t.held[id].less(at) {
			continue
		}
		t.held[id] = at
		if m := t.members[id]; m.alive {
			acks = append(acks, ack{m.node, encodeList(kindAck, t.node, []stamped{{id, at}})})
		}
	}
	t.mu.Unlock()
	for _, a := range acks {
		t.sendPackets([]memberlist.Node{a.to}, a.msg)
	}
}

// Acked returns the living members whose kernels are not known to hold this
// node's own state of at least that version, sorted.
func (t *Table) Acked(version uint64) (missing []netd.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.missingLocked(version)
}

func (t *Table) missingLocked(version uint64) (missing []netd.NodeID) {
	if version == 0 {
		return nil
	}
	want := stamp{t.own.boot, version}
	for id, m := range t.members {
		if m.alive && id != t.node && t.acked[id].less(want) {
			missing = append(missing, id)
		}
	}
	slices.Sort(missing)
	return missing
}

// ackedLocked notes an ack of our state, and rings when nobody is missing for
// that version any more.
func (t *Table) ackedLocked(from netd.NodeID, list []stamped) {
	if _, met := t.members[from]; !met || from == t.node {
		return
	}
	for _, s := range list {
		if s.owner != t.node || t.own.less(s.stamp) || !t.acked[from].less(s.stamp) {
			continue
		}
		t.acked[from] = s.stamp
		if len(t.missingLocked(s.version)) == 0 {
			t.ringLocked()
		}
	}
}

// answerLocked answers an owner's ask: with an ack, or not yet, and then pulls
// what is missing.
func (t *Table) answerLocked(m message) []byte {
	for _, s := range m.list {
		switch {
		case s.owner != m.from:
		case !t.held[s.owner].less(s.stamp):
			return encodeList(kindAck, t.node, []stamped{{s.owner, t.held[s.owner]}})
		default:
			t.pullLocked(m.from, []stamped{s})
		}
	}
	return nil
}

// askAgain repeats what may have been lost: our question to those who have not
// acknowledged our state, and our pulls. Two upkeep intervals lie between.
func (t *Table) askAgain() {
	t.mu.Lock()
	t.rounds++
	if t.rounds%askEvery != 0 || t.own.left {
		t.mu.Unlock()
		return
	}
	for owner, at := range t.wanted {
		if !t.records[owner].less(at) {
			delete(t.wanted, owner)
			continue
		}
		t.pullLocked(owner, []stamped{{owner, at}})
	}
	var missing []memberlist.Node
	for _, id := range t.missingLocked(t.own.version) {
		missing = append(missing, t.members[id].node)
	}
	ask := encodeList(kindAsk, t.node, []stamped{{t.node, t.own.stamp}})
	t.mu.Unlock()
	t.sendPackets(missing, ask)
}
