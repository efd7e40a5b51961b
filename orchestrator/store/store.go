// Package store keeps the swarm's objects: the Docker API's own types, the same
// on every manager, on disk and in memory. It owns raft, the sealed files under
// its directory, the tables with their indexes, and the rule that an object's
// Version.Index is the raft index of its last write.
//
// It does NOT know what the objects mean: it validates nothing but identity and
// unique names, decides nothing, and reaches other managers only through the
// stream layer that it is given.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"netd"
)

// Config says where a store lives and who it is.
type Config struct {
	// Dir holds the store's files; it is made when it is missing.
	Dir string
	// NodeID is this manager's ID, its name in raft.
	NodeID string
	// Addr is the host:port under which the other managers reach Layer.
	Addr string
	// Layer carries raft between managers. The store closes it.
	Layer raft.StreamLayer
	Log   *slog.Logger
	// Now is the clock for CreatedAt and UpdatedAt; nil means time.Now.
	Now func() time.Time
}

// Store is one manager's replica. All methods may be called from any goroutine.
type Store struct {
	log   *slog.Logger
	now   func() time.Time
	id    raft.ServerID
	addr  raft.ServerAddress
	raft  *raft.Raft
	fsm   *fsm
	bells bells

	// writing is held by the one Update that runs: a channel, so that a waiter
	// can give up with its context.
	writing chan struct{}
	// ready is the raft term of which this node is the leader and whose
	// predecessors' entries are all in the tables.
	ready atomic.Uint64
	// unsure is set when the outcome of an entry is unknown: the next Update
	// must wait until it is applied or gone.
	unsure atomic.Bool

	closing sync.Once
	files   []func() error
	err     error
}

// Bootstrap makes this node the only voter of a new swarm. Only once in the life
// of a swarm, on its first manager, with an empty store.
func (s *Store) Bootstrap() error {
	f := s.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{ID: s.id, Address: s.addr}}})
	if err := f.Error(); err != nil {
		return fmt.Errorf("bootstrap store: %w", err)
	}
	return nil
}

// Run keeps the store until ctx ends, then stops raft and closes the files. It
// returns early when this replica cannot go on, such as with an entry that a
// newer netd wrote.
func (s *Store) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.followLeadership(ctx) })
	group.Go(func() error { return s.shortenLog(ctx) })
	return errors.Join(group.Wait(), s.Close())
}

func (s *Store) followLeadership(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.fsm.broken:
			return fmt.Errorf("run store: %w", s.fsm.failure())
		case leader := <-s.raft.LeaderCh():
			if leader {
				s.takeOver(ctx)
			}
			s.bells.ring()
		}
	}
}

// shortenLog takes a snapshot whenever the log has become large; raft itself
// counts entries only.
func (s *Store) shortenLog(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.fsm.full:
			err := await(ctx, func() error { return s.raft.Snapshot().Error() })
			if err != nil && ctx.Err() == nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
				s.log.Warn("no snapshot of the swarm's store", "err", err)
			}
		}
	}
}

// takeOver waits until this new leader's tables hold all that former leaders
// wrote. An error means that leadership is lost again, of which LeaderCh tells.
func (s *Store) takeOver(ctx context.Context) {
	if err := s.lock(ctx); err != nil {
		return
	}
	defer s.unlock()
	if _, err := s.lead(ctx); err != nil {
		s.log.Debug("leadership lost before it began", "err", err)
	}
}

// Close stops raft and closes the files. Run does it at its end; only a store
// that never ran needs it.
func (s *Store) Close() error {
	s.closing.Do(func() {
		s.err = s.raft.Shutdown().Error()
		for _, closeFile := range s.files {
			if err := closeFile(); err != nil && s.err == nil {
				s.err = err
			}
		}
	})
	return s.err
}

// View returns a consistent, read-only view of this node's replica, which on a
// node that is not the leader may lag behind; see Verify and Barrier.
func (s *Store) View() *Tx {
	return &Tx{txn: s.fsm.db.Load().Txn(false)}
}

// Update runs fn over the current state and makes its writes one raft entry; it
// returns when that entry is applied here. Updates run one after the other; fn
// must not call Update. What fn returns as an error is returned as it is, and
// nothing is written; fn that writes nothing proposes nothing.
//
// On a node that does not lead it is a netd.ErrUnavailable. When ctx ends or
// leadership is lost while the entry is on its way, the outcome is unknown: the
// error says so, and the caller must read before it tries again.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	term, err := s.lead(ctx)
	if err != nil {
		return err
	}
	tx := newWriteTx(s.fsm.db.Load(), s.now().UTC())
	if err := fn(tx); err != nil {
		return err
	}
	if len(tx.changes) == 0 {
		return nil
	}
	data, err := encodeEntry(term, tx.changes)
	if err != nil {
		return err
	}
	return s.propose(ctx, data)
}

// propose appends one entry to the log and waits until it is applied here.
func (s *Store) propose(ctx context.Context, data []byte) error {
	err := await(ctx, func() error {
		f := s.raft.Apply(data, 0)
		if err := f.Error(); err != nil {
			return err
		}
		if err, ok := f.Response().(error); ok {
			return err
		}
		return nil
	})
	if err != nil {
		s.unsure.Store(true)
		return s.unavailable("the change may still take effect", err)
	}
	return nil
}

// lead returns the term in which this node may write. The caller holds the lock.
func (s *Store) lead(ctx context.Context) (uint64, error) {
	if s.raft.State() != raft.Leader {
		return 0, s.notLeader()
	}
	term := s.raft.CurrentTerm()
	if s.ready.Load() == term && !s.unsure.Load() {
		return term, nil
	}
	if err := await(ctx, func() error { return s.raft.Barrier(0).Error() }); err != nil {
		return 0, s.unavailable("nothing was changed", err)
	}
	if s.raft.CurrentTerm() != term {
		return 0, s.notLeader()
	}
	s.unsure.Store(false)
	s.ready.Store(term)
	return term, nil
}

// Barrier waits until all that was written before is in this node's tables. Only
// on the leader.
func (s *Store) Barrier(ctx context.Context) error {
	if err := await(ctx, func() error { return s.raft.Barrier(0).Error() }); err != nil {
		return s.unavailable("the state is not known to be current", err)
	}
	return nil
}

// Verify asks a majority whether this node still leads: a View taken afterwards
// is at least as new as every Update that returned before the call.
func (s *Store) Verify(ctx context.Context) error {
	if !s.Leading() {
		return s.notLeader()
	}
	if err := await(ctx, func() error { return s.raft.VerifyLeader().Error() }); err != nil {
		return s.unavailable("the state is not known to be current", err)
	}
	return nil
}

// Leading tells whether this node leads and holds all that former leaders wrote.
func (s *Store) Leading() bool {
	return s.raft.State() == raft.Leader && s.ready.Load() == s.raft.CurrentTerm()
}

// LeaderAddr returns the leader's host:port, empty while there is none.
func (s *Store) LeaderAddr() string {
	addr, _ := s.raft.LeaderWithID()
	return string(addr)
}

// Watch returns a doorbell: it holds one token after anything has changed since
// it was last read, be it the tables or who leads. It is never closed; it is
// forgotten when ctx ends.
func (s *Store) Watch(ctx context.Context) <-chan struct{} {
	return s.bells.add(ctx)
}

func (s *Store) lock(ctx context.Context) error {
	select {
	case s.writing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return netd.Errorf(netd.ErrUnavailable, "wait for the store: %w; nothing was changed", ctx.Err())
	}
}

func (s *Store) unlock() { <-s.writing }

func (s *Store) notLeader() error {
	if addr := s.LeaderAddr(); addr != "" && addr != string(s.addr) {
		return netd.Errorf(netd.ErrUnavailable, "this node is not the leader of the swarm: ask the manager at %s", addr)
	}
	return netd.Errorf(netd.ErrUnavailable, "The swarm does not have a leader. It's possible that too few managers are online. "+
		"Make sure more than half of the managers are online.")
}

func (s *Store) unavailable(outcome string, err error) error {
	return netd.Errorf(netd.ErrUnavailable, "write to the swarm's store: %w; %s", err, outcome)
}

// await runs do, which cannot be cancelled, and gives up waiting when ctx ends.
// do then ends by itself: raft answers every future when it shuts down at the
// latest.
func await(ctx context.Context, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
