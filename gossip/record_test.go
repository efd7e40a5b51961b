package gossip

import (
	"fmt"
	"maps"
	"reflect"
	"testing"

	"netd"
	"pgregory.net/rapid"
)

func key(i int) netd.EndpointKey {
	return netd.EndpointKey{
		Network: netd.NetworkID(fmt.Sprintf("network%d", i%3)),
		Task:    netd.TaskID(fmt.Sprintf("task-%020d", i)),
	}
}

func drawEntries(t *rapid.T) []Entry {
	var entries []Entry
	for _, i := range rapid.SliceOfNDistinct(rapid.IntRange(0, 40), 0, 30, rapid.ID).Draw(t, "keys") {
		entries = append(entries, Entry{key(i), netd.EndpointState(rapid.IntRange(0, 2).Draw(t, "state"))})
	}
	return entries
}

// Whatever order an owner's messages come in, lost, repeated or swapped: a
// record that claims a version holds exactly the owner's entries at that
// version, and the whole state brings every record up to date.
func TestMergeModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const owner = netd.NodeID("owner")
		truth := map[stamp]map[netd.EndpointKey]netd.EndpointState{{}: {}}
		h := &history{record: record{stamp: stamp{boot: 1}}}
		var sent []state
		send := func() {
			truth[h.stamp] = maps.Clone(h.entries)
			for _, budget := range []int{100, 400, 1100, 1 << 20} {
				m, err := decode(h.message(owner, budget))
				if err != nil {
					t.Fatal(err)
				}
				sent = append(sent, m.states[0])
			}
		}
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0: // the daemon restarts
				h = &history{record: record{stamp: stamp{boot: h.boot + 1}}}
			case 1:
				h.outbid(stamp{boot: h.boot + 3, version: 7})
				if h.version == 0 {
					break
				}
				send()
			default:
				if h.set(drawEntries(t)) {
					send()
				}
			}
		}
		var r record
		check := func() {
			if want := truth[r.stamp]; len(r.entries) != len(want) || len(want) > 0 && !maps.Equal(r.entries, want) {
				t.Fatalf("at %v: got %v, want %v", r.stamp, r.entries, want)
			}
		}
		if len(sent) > 0 {
			for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(sent)-1), 0, 60).Draw(t, "delivered") {
				before := r
				var what outcome
				r, what = r.merge(sent[i])
				check()
				if r.less(before.stamp) {
					t.Fatalf("went back from %v to %v", before.stamp, r.stamp)
				}
				if what == stale && before.less(sent[i].stamp) || what != applied && r.stamp != before.stamp {
					t.Fatalf("outcome %d for %v on %v", what, sent[i].stamp, before.stamp)
				}
			}
		}
		if h.version == 0 {
			return
		}
		r, _ = r.merge(h.whole(owner))
		if check(); r.stamp != h.stamp {
			t.Fatalf("after the whole state: got %v, want %v", r.stamp, h.stamp)
		}
	})
}

// A change in one endpoint of many is told in one packet, from a version that
// the others have; thousands at once are only announced.
func TestMessageFitsPacket(t *testing.T) {
	h := &history{record: record{stamp: stamp{boot: 1}}}
	var entries []Entry
	for i := range 3000 {
		entries = append(entries, Entry{key(i), netd.Ready})
	}
	h.set(entries)
	m := decodeState(t, h.message("owner", packetBudget))
	if m.base != 1 || len(m.changes) != 0 {
		t.Errorf("first state: got base %d with %d changes, want an announcement", m.base, len(m.changes))
	}
	entries[7].State = netd.Draining
	h.set(entries)
	h.set(entries[1:])
	msg := h.message("owner", packetBudget)
	if m = decodeState(t, msg); m.base != 1 || len(m.changes) != 2 || len(msg) > packetBudget {
		t.Errorf("changes: got base %d, %d changes, %d bytes", m.base, len(m.changes), len(msg))
	}
}

func decodeState(t *testing.T, b []byte) state {
	t.Helper()
	m, err := decode(b)
	if err != nil || len(m.states) != 1 {
		t.Fatalf("got %d states, %v", len(m.states), err)
	}
	return m.states[0]
}

// An owner that left has no entries, and no change to its old state brings some back.
func TestMergeLeft(t *testing.T) {
	h := &history{record: record{stamp: stamp{boot: 1}}}
	h.set([]Entry{{key(1), netd.Ready}})
	r, _ := record{}.merge(h.whole("owner"))
	h.leave()
	r, what := r.merge(decodeState(t, h.message("owner", packetBudget)))
	if what != applied || !r.left || len(r.entries) != 0 {
		t.Fatalf("leave: got %d, %+v", what, r)
	}
	delta := state{owner: "owner", stamp: stamp{1, 9}, base: 1, changes: []change{{key(2), netd.Ready}}}
	if r, what = r.merge(delta); what != behind || len(r.entries) != 0 {
		t.Errorf("a change after the leave: got %d, %+v", what, r)
	}
	if r, what = r.merge(state{owner: "owner", stamp: stamp{2, 1}, changes: delta.changes}); what != applied || r.left || len(r.entries) != 1 {
		t.Errorf("a new start: got %d, %+v", what, r)
	}
}

// Every message reads back as it was written, alone and in a bundle.
func TestWire(t *testing.T) {
	h := &history{record: record{stamp: stamp{boot: 1 << 60}}}
	h.set([]Entry{{key(1), netd.Ready}, {key(4), netd.Draining}, {key(2), netd.Ready}})
	want := h.whole("owner")
	if got := decodeState(t, encodeState(want)); !reflect.DeepEqual(got, want) {
		t.Errorf("state: got %+v, want %+v", got, want)
	}
	left := state{owner: "gone", stamp: stamp{1, 2}, left: true}
	m, err := decode(encodeStates([]state{want, left}))
	if err != nil || len(m.states) != 2 || !reflect.DeepEqual(m.states[0], want) || !m.states[1].left {
		t.Errorf("states: got %+v, %v", m, err)
	}
	list := []stamped{{"a", stamp{1, 2}}, {"b", stamp{3, 4}}}
	m, err = decode(encodeList(kindPull, "me", list))
	if err != nil || m.kind != kindPull || m.from != "me" || !reflect.DeepEqual(m.list, list) {
		t.Errorf("list: got %+v, %v", m, err)
	}
	if m, err = decode([]byte{200, 1, 2}); err != nil || len(m.states) != 0 {
		t.Errorf("unknown kind: got %+v, %v", m, err)
	}
}

// No bytes make decode panic or believe a count, and what it accepts it can
// write and read again.
func FuzzDecode(f *testing.F) {
	h := &history{record: record{stamp: stamp{boot: 1}}}
	h.set([]Entry{{key(1), netd.Ready}, {key(2), netd.Draining}})
	f.Add(encodeState(h.whole("owner")))
	f.Add(encodeStates([]state{h.whole("owner")}))
	f.Add(encodeList(kindDigest, "me", []stamped{{"a", stamp{1, 2}}}))
	f.Add([]byte{kindStates, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		for _, s := range m.states {
			if got := decodeState(t, encodeState(s)); !reflect.DeepEqual(got, s) {
				t.Errorf("got %+v, want %+v", got, s)
			}
			_, _ = record{}.merge(s)
		}
	})
}
