package store

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"
	"pgregory.net/rapid"
)

// addrs compares addresses by ==.
func addrs() cmp.Option { return cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}) }

func replica(t interface{ Fatal(...any) }) *fsm {
	f, err := newFSM(func() {})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fsm) dump() map[kind][]any {
	return dump(&Store{fsm: f})
}

// drawObject makes an object of any kind, with a few names and IDs that collide.
func drawObject(t *rapid.T) any {
	id := rapid.StringMatching(`[a-c][0-9]`).Draw(t, "id")
	name := rapid.StringMatching(`[a-dA-D]{0,2}`).Draw(t, "name")
	labels := rapid.MapOfN(rapid.String(), rapid.String(), -1, 3).Draw(t, "labels")
	if len(labels) == 0 {
		labels = nil
	}
	ann := swarm.Annotations{Name: name, Labels: labels}
	switch rapid.SampledFrom(kinds()).Draw(t, "kind") {
	case kindNode:
		return &swarm.Node{ID: id, Description: swarm.NodeDescription{Hostname: name}, Spec: swarm.NodeSpec{Annotations: ann}}
	case kindService:
		replicas := rapid.Uint64().Draw(t, "replicas")
		return &swarm.Service{ID: id, Spec: swarm.ServiceSpec{Annotations: ann,
			Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}}}}
	case kindTask:
		addr := netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "addr")))
		return &swarm.Task{ID: id, ServiceID: name, Slot: rapid.IntRange(0, 3).Draw(t, "slot"), NodeID: rapid.StringMatching("[n-p]?").Draw(t, "node"),
			NetworksAttachments: []swarm.NetworkAttachment{{Addresses: []netip.Prefix{netip.PrefixFrom(addr, 24)}}},
			Status:              swarm.TaskStatus{Timestamp: time.Unix(int64(rapid.Int32().Draw(t, "at")), 5).UTC(), Err: rapid.String().Draw(t, "err")}}
	case kindNetwork:
		return &swarm.Network{ID: id, Spec: swarm.NetworkSpec{Annotations: ann}}
	case kindSecret:
		return &swarm.Secret{ID: id, Spec: swarm.SecretSpec{Annotations: ann, Data: rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(t, "data")}}
	case kindConfig:
		return &swarm.Config{ID: id, Spec: swarm.ConfigSpec{Annotations: ann, Data: rapid.SliceOfN(rapid.Byte(), 1, 9).Draw(t, "data")}}
	}
	return &Cluster{ID: id, CAKey: []byte(name + "x"), DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
}

// Whatever was written, the same entries give every replica the same state, and
// a replica restored from a snapshot is that of the snapshot.
func TestReplicasAreEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one, two := replica(t), replica(t)
		entries := rapid.IntRange(0, 8).Draw(t, "entries")
		for i := range entries {
			tx := newWriteTx(one.db.Load(), time.Unix(int64(i), 0).UTC())
			for range rapid.IntRange(1, 6).Draw(t, "writes") {
				obj := drawObject(t)
				if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
					_ = tx.Delete(obj) // may well not exist
				} else {
					_ = tx.Put(obj) // may well be a name that exists
				}
			}
			data, err := encodeEntry(3, tx.changes)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range []*fsm{one, two} {
				if got := f.Apply(&raft.Log{Index: uint64(i + 1), Term: 3, Data: data}); got != nil {
					t.Fatalf("apply: %v", got)
				}
			}
		}
		var text bytes.Buffer
		if err := writeSnapshot(&text, &Tx{txn: one.db.Load().Txn(false)}); err != nil {
			t.Fatal(err)
		}
		three := replica(t)
		if err := three.Restore(io.NopCloser(bytes.NewReader(text.Bytes()))); err != nil {
			t.Fatal(err)
		}
		for _, f := range []*fsm{two, three} {
			if diff := cmp.Diff(one.dump(), f.dump(), addrs()); diff != "" {
				t.Fatal(diff)
			}
		}
		if cut := text.Len() - rapid.IntRange(1, text.Len()).Draw(t, "cut"); three.Restore(io.NopCloser(bytes.NewReader(text.Bytes()[:cut]))) == nil {
			t.Fatalf("a snapshot of %d bytes cut to %d was restored", text.Len(), cut)
		}
		if diff := cmp.Diff(one.dump(), three.dump(), addrs()); diff != "" {
			t.Fatalf("a refused snapshot changed the state:\n%s", diff)
		}
	})
}

// An entry that this netd does not understand changes nothing and stops the
// replica, which would otherwise differ from the others.
func TestUnknownEntriesStopTheReplica(t *testing.T) {
	for name, text := range map[string]string{
		"format":    "netd-entry 2 1\n",
		"empty":     "",
		"kind":      "netd-entry 1 1\nput node {\"ID\":\"a\"}\nput pod {\"ID\":\"a\"}\n",
		"deleted":   "netd-entry 1 1\ndelete pod a\n",
		"operation": "netd-entry 1 1\nmerge node {\"ID\":\"a\"}\n",
		"json":      "netd-entry 1 1\nput node {\"ID\":\n",
		"no ID":     "netd-entry 1 1\nput node {}\n",
		"damage":    "netd-entry 1 1\nput\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := replica(t)
			if err, _ := f.Apply(&raft.Log{Index: 1, Term: 1, Data: []byte(text)}).(error); err == nil || !strings.Contains(err.Error(), "apply entry 1") {
				t.Errorf("apply: %v", err)
			}
			good := "netd-entry 1 1\nput node {\"ID\":\"a\"}\n"
			if err, _ := f.Apply(&raft.Log{Index: 2, Term: 1, Data: []byte(good)}).(error); err == nil {
				t.Error("the replica went on")
			}
			if len(f.dump()) != 0 {
				t.Errorf("state: %v", f.dump())
			}
			if _, err := f.Snapshot(); err == nil {
				t.Error("the replica made a snapshot")
			}
		})
	}
}

// An entry made by a leader of another term was made over another state: every
// replica leaves it out, and goes on.
func TestStaleEntries(t *testing.T) {
	f := replica(t)
	put := []byte("netd-entry 1 4\nput node {\"ID\":\"a\"}\n")
	if err, _ := f.Apply(&raft.Log{Index: 1, Term: 5, Data: put}).(error); !errors.Is(err, errStale) {
		t.Errorf("stale entry: %v", err)
	}
	if got := f.Apply(&raft.Log{Index: 2, Term: 4, Data: put}); got != nil || len(f.dump()) != 1 {
		t.Errorf("good entry: %v", got)
	}
}
