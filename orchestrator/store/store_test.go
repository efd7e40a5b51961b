package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/internal/nettest"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func memory(t *testing.T) *Store {
	t.Helper()
	s, err := OpenMemory(quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func service(id, name string) *swarm.Service {
	return &swarm.Service{ID: id, Spec: swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}}}
}

func mustUpdate(t *testing.T, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// Each write of an object carries the raft index of its entry, which grows, and
// the stamps of its creation and of the write.
func TestVersionIsTheRaftIndex(t *testing.T) {
	s := memory(t)
	mustUpdate(t, s, func(tx *Tx) error { return tx.Put(service("a", "web")) })
	first := s.View().Service("a")
	if first.Version.Index == 0 || first.CreatedAt.IsZero() || !first.CreatedAt.Equal(first.UpdatedAt) {
		t.Fatalf("first write: %+v", first.Meta)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		next := *tx.Service("a")
		next.CreatedAt = time.Time{}
		if err := tx.Put(&next); err != nil {
			return err
		}
		return tx.Put(service("b", "db"))
	})
	tx := s.View()
	second, other := tx.Service("a"), tx.Service("b")
	if second.Version.Index <= first.Version.Index || other.Version != second.Version {
		t.Errorf("versions: %d, then %d and %d", first.Version.Index, second.Version.Index, other.Version.Index)
	}
	if !second.CreatedAt.Equal(first.CreatedAt) || second.UpdatedAt.Before(first.UpdatedAt) {
		t.Errorf("stamps: %+v, then %+v", first.Meta, second.Meta)
	}
	if s.View().ServiceByName("WEB") != second {
		t.Error("a name is found in any case")
	}
}

// A name of a service belongs to one service, also within one Update, and is
// free again when that one is renamed or deleted.
func TestUniqueNames(t *testing.T) {
	s := memory(t)
	mustUpdate(t, s, func(tx *Tx) error { return tx.Put(service("a", "web")) })
	err := s.Update(t.Context(), func(tx *Tx) error { return tx.Put(service("b", "Web")) })
	if !errors.Is(err, netd.ErrExists) {
		t.Errorf("second web: %v", err)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		if err := tx.Put(service("a", "old")); err != nil {
			return err
		}
		return tx.Put(service("b", "web"))
	})
	mustUpdate(t, s, func(tx *Tx) error {
		if err := tx.Delete(service("b", "")); err != nil {
			return err
		}
		return tx.Put(service("c", "web"))
	})
	if got := s.View().ServiceByName("web"); got == nil || got.ID != "c" {
		t.Errorf("web is %+v", got)
	}
}

// An Update that fails or writes nothing changes nothing and proposes nothing;
// what fn returns comes back as it is.
func TestUpdateProposesOnlyWrites(t *testing.T) {
	s := memory(t)
	before := s.raft.LastIndex()
	boom := errors.New("boom")
	for name, fn := range map[string]func(*Tx) error{
		"nothing": func(*Tx) error { return nil },
		"failed":  func(tx *Tx) error { return errors.Join(tx.Put(service("a", "web")), boom) },
	} {
		err := s.Update(t.Context(), fn)
		if name == "failed" && !errors.Is(err, boom) || name == "nothing" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.raft.LastIndex() != before || len(s.View().Services()) != 0 {
		t.Errorf("%d entries, services %v", s.raft.LastIndex()-before, s.View().Services())
	}
}

// A Tx sees its own writes through every index; those who hold an older view do
// not, and nobody can write to a view or change what is stored from outside.
func TestIsolation(t *testing.T) {
	s := memory(t)
	task := &swarm.Task{ID: "t1", ServiceID: "a", Slot: 2}
	mustUpdate(t, s, func(tx *Tx) error { return tx.Put(task) })
	task.Slot = 9
	old := s.View()
	mustUpdate(t, s, func(tx *Tx) error {
		next := *tx.Task("t1")
		next.NodeID = "n1"
		if err := errors.Join(tx.Put(&next), tx.Put(&swarm.Task{ID: "t0", ServiceID: "a", Slot: 2, NodeID: "n1"})); err != nil {
			return err
		}
		for name, got := range map[string][]*swarm.Task{
			"node": tx.TasksByNode("n1"), "service": tx.TasksByService("a"), "slot": tx.TasksBySlot("a", 2), "all": tx.Tasks(),
		} {
			if len(got) != 2 || got[0].ID != "t0" || got[1].ID != "t1" {
				t.Errorf("%s: %v", name, got)
			}
		}
		if got := tx.TasksByNode(""); len(got) != 0 {
			t.Errorf("tasks of no node: %v", got)
		}
		return nil
	})
	if got := old.TasksByNode(""); len(got) != 1 || len(old.Tasks()) != 1 {
		t.Errorf("the old view has %v", got)
	}
	if err := old.Put(service("x", "x")); !errors.Is(err, netd.ErrInvalid) {
		t.Errorf("write to a view: %v", err)
	}
	if err := old.Delete(old.Task("t1")); !errors.Is(err, netd.ErrInvalid) {
		t.Errorf("delete from a view: %v", err)
	}
	if s.View().Task("none") != nil || s.View().Cluster() != nil || s.View().NodeByName("none") != nil {
		t.Error("something absent is not nil")
	}
}

// What is no object of the store, or names nothing, is refused.
func TestBadObjects(t *testing.T) {
	s := memory(t)
	mustUpdate(t, s, func(tx *Tx) error { return tx.Put(&Cluster{ID: "c1"}) })
	for name, tc := range map[string]struct {
		do   func(*Tx) error
		kind error
	}{
		"value":          {func(tx *Tx) error { return tx.Put(swarm.Node{ID: "n"}) }, netd.ErrInvalid},
		"nil":            {func(tx *Tx) error { return tx.Put(nil) }, netd.ErrInvalid},
		"nil node":       {func(tx *Tx) error { return tx.Put((*swarm.Node)(nil)) }, netd.ErrInvalid},
		"no ID":          {func(tx *Tx) error { return tx.Put(&swarm.Node{}) }, netd.ErrInvalid},
		"ID of a line":   {func(tx *Tx) error { return tx.Put(&swarm.Node{ID: "a\nput node {}"}) }, netd.ErrInvalid},
		"second cluster": {func(tx *Tx) error { return tx.Put(&Cluster{ID: "c2"}) }, netd.ErrExists},
		"delete absent":  {func(tx *Tx) error { return tx.Delete(&swarm.Node{ID: "n"}) }, netd.ErrNotFound},
		"too large": {func(tx *Tx) error {
			return tx.Put(&swarm.Config{ID: "c", Spec: swarm.ConfigSpec{Data: make([]byte, maxEntry)}})
		}, netd.ErrInvalid},
	} {
		if err := s.Update(t.Context(), tc.do); !errors.Is(err, tc.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A watcher that sleeps hears once of any number of changes, and no more after
// its context has ended.
func TestWatch(t *testing.T) {
	s := memory(t)
	ctx, cancel := context.WithCancel(t.Context())
	bell := s.Watch(ctx)
	for i := range 3 {
		mustUpdate(t, s, func(tx *Tx) error { return tx.Put(service(fmt.Sprint(i), "")) })
	}
	<-bell
	select {
	case <-bell:
		t.Error("it rang twice")
	default:
	}
	cancel()
	nettest.Eventually(t, 5*time.Second, "forgotten", func() error {
		s.bells.mu.Lock()
		defer s.bells.mu.Unlock()
		if len(s.bells.all) > 0 {
			return errors.New("still there")
		}
		return nil
	})
}

// Updates from many goroutines are serialised: none is lost.
func TestConcurrentUpdates(t *testing.T) {
	s := memory(t)
	mustUpdate(t, s, func(tx *Tx) error { return tx.Put(&swarm.Task{ID: "t"}) })
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 25 {
				if err := s.Update(t.Context(), func(tx *Tx) error {
					next := *tx.Task("t")
					next.Slot++
					return tx.Put(&next)
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := s.View().Task("t").Slot; got != 200 {
		t.Errorf("counted to %d, want 200", got)
	}
}

// A store that does not lead, or a caller that gives up, gets an error that says
// whether something may have changed.
func TestUnavailable(t *testing.T) {
	s := memory(t)
	if err := errors.Join(s.Barrier(t.Context()), s.Verify(t.Context())); err != nil || !s.Leading() {
		t.Errorf("leader: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := s.Update(ctx, func(tx *Tx) error {
		cancel()
		return tx.Put(service("a", "web"))
	})
	if err != nil && (!errors.Is(err, netd.ErrUnavailable) || !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "may still take effect")) {
		t.Errorf("given up: %v", err)
	}
	mustUpdate(t, s, func(tx *Tx) error {
		// The outcome is known by now: had it been applied later, this would fail.
		if tx.Service("a") == nil {
			return tx.Put(service("a", "web"))
		}
		return nil
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"update":  s.Update(t.Context(), func(tx *Tx) error { return tx.Put(service("b", "b")) }),
		"barrier": s.Barrier(t.Context()),
		"verify":  s.Verify(t.Context()),
		"join":    s.AddMember(t.Context(), "n2", "127.0.0.1:1"),
	} {
		if !errors.Is(err, netd.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// tasks is an Update that writes n tasks of ordinary size.
func tasks(n int) func(*Tx) error {
	spec := swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{Image: "netd/echo", Env: []string{"A=1", "B=2"}, Labels: map[string]string{"app": "web"}},
		RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny},
		Networks:      []swarm.NetworkAttachmentConfig{{Target: "n3ur0ev5tvl84x9kbd5lcp4rs"}},
	}
	return func(tx *Tx) error {
		for i := range n {
			if err := tx.Put(&swarm.Task{
				ID: fmt.Sprintf("task%021d", i), ServiceID: "h0ev5tvl84x9kbd5lcp4rs5wk", Slot: i + 1, NodeID: fmt.Sprintf("node%021d", i%100),
				Spec: spec, Status: swarm.TaskStatus{State: swarm.TaskStateRunning, Timestamp: time.Now()},
				NetworksAttachments: []swarm.NetworkAttachment{{Network: swarm.Network{ID: "n3ur0ev5tvl84x9kbd5lcp4rs"}}},
			}); err != nil {
				return err
			}
		}
		return nil
	}
}

// BenchmarkUpdate measures one Update on disk, of one task and of 5,000.
func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{1, 100, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := open(b, b.TempDir())
			if err := r.Bootstrap(); err != nil {
				b.Fatal(err)
			}
			r.leads(b)
			write := tasks(n)
			b.ResetTimer()
			for b.Loop() {
				if err := r.Update(b.Context(), write); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
