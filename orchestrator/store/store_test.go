package store

import (
	"errors"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
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
