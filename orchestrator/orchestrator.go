// Package orchestrator decides what the swarm does: the control loops that run
// on the leader, the operations of the Docker API on the swarm's objects, and
// what each node is told. It owns every decision about services, tasks,
// networks, addresses and nodes; all of it is in functions of the stored state
// and the time.
//
// It does NOT run tasks, touch a kernel, serve a connection or speak HTTP: it
// reads and writes the store, answers the dispatch protocol, and the API calls it.
package orchestrator

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"netd"
	"netd/orchestrator/store"
	"netd/pki"
)

// Config says what an orchestrator works on.
type Config struct {
	Store *store.Store
	Log   *slog.Logger
	// Now is the clock; nil means time.Now. It must be the store's.
	Now func() time.Time
}

// Orchestrator is one manager's. All methods may be called from any goroutine.
type Orchestrator struct {
	store *store.Store
	log   *slog.Logger
	now   func() time.Time
	newID func() string

	sessions sessions

	mu    sync.Mutex
	beats map[string]time.Time // see pass.beats
	// cursors is used only inside store.Update, which serialises.
	cursors map[string]netip.Addr
}

// New returns an orchestrator that Run puts to work. It answers reads before.
func New(c Config) *Orchestrator {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Orchestrator{
		store:   c.Store,
		log:     c.Log,
		now:     c.Now,
		newID:   pki.NewID,
		beats:   map[string]time.Time{},
		cursors: map[string]netip.Addr{},
	}
}

const (
	// passPause is the least time between two passes, so that a burst of reports
	// costs few of them; it is also at least twice what the last one took, so that
	// a large swarm leaves the machine most of its time, but not above maxPause.
	passPause = 5 * time.Millisecond
	maxPause  = 250 * time.Millisecond
	// retryPause is how long a pass that failed waits for the next.
	retryPause = time.Second
	// maxStall is how late a pass may be before this manager is taken to have
	// stood still, as a suspended machine does.
	maxStall = 3 * time.Second
	// pushPause collects changes before the nodes are told.
	pushPause = 10 * time.Millisecond
)

// Run decides and tells the nodes while this manager leads, until ctx ends.
func (o *Orchestrator) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.decide(ctx) })
	g.Go(func() error { return o.tell(ctx) })
	return g.Wait()
}

// decide runs a pass after every change of the store and whenever time alone
// asks for one.
func (o *Orchestrator) decide(ctx context.Context) error {
	bell := o.store.Watch(ctx)
	leading := false
	var next time.Time
	for {
		if late := o.now().Sub(next); !next.IsZero() && late > maxStall {
			o.log.Warn("this manager stood still: the nodes get time to be heard of", "late", late)
			o.forgetBeats()
		}
		began := time.Now()
		switch now := o.store.Leading(); {
		case now && !leading:
			leading = true
			next = o.takeOver(ctx)
		case now:
			next = o.pass(ctx)
		default:
			leading = false
			next = time.Time{}
		}
		if !sleep(ctx, min(max(passPause, 2*time.Since(began)), maxPause)) {
			return nil
		}
		if !o.wait(ctx, bell, next) {
			return nil
		}
	}
}

// takeOver begins a leadership: everything is checked once, and every node gets
// time to find this manager.
func (o *Orchestrator) takeOver(ctx context.Context) time.Time {
	o.forgetBeats()
	var found []string
	now := o.now()
	err := o.store.Update(ctx, func(tx *store.Tx) error {
		clear(o.cursors)
		found = nil
		p := o.newPass(tx, now)
		found = p.audit()
		return p.err
	})
	if err != nil {
		o.log.Error("the state could not be checked", "err", err)
		return now.Add(retryPause)
	}
	for _, f := range found {
		o.log.Error("the stored state was inconsistent", "finding", f)
	}
	return o.pass(ctx)
}

// pass decides once, and returns when to decide again if nothing else changes.
func (o *Orchestrator) pass(ctx context.Context) time.Time {
	var p *pass
	now := o.now()
	err := o.store.Update(ctx, func(tx *store.Tx) error {
		p = o.newPass(tx, now)
		o.mu.Lock()
		defer o.mu.Unlock()
		return p.run()
	})
	switch {
	case ctx.Err() != nil:
		return time.Time{}
	case err != nil:
		o.log.Error("the state could not be decided on", "err", err)
		return now.Add(retryPause)
	case p.unsettled:
		o.log.Error("the decisions did not come to rest", "writes", p.writes)
		return now.Add(retryPause)
	}
	return p.next
}

// newPass returns a pass over tx. One that looks at heartbeats needs o.mu.
func (o *Orchestrator) newPass(tx *store.Tx, now time.Time) *pass {
	return &pass{tx: tx, now: now, newID: o.newID, beats: o.beats, cursors: o.cursors}
}

// checkIn notes that the node was heard of.
func (o *Orchestrator) checkIn(node netd.NodeID, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.beats[string(node)] = now.Add(nodeTimeout)
}

// forgetBeats gives every node the time that a new leader gives it. Who did not
// listen cannot say who was silent.
func (o *Orchestrator) forgetBeats() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.beats)
}

// sleep waits for d, or less when ctx ends: then it returns false.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// wait waits for the bell or for the time, if it is not zero. It returns false
// when ctx ends.
func (o *Orchestrator) wait(ctx context.Context, bell <-chan struct{}, until time.Time) bool {
	var timer <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(until.Sub(o.now()))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-bell:
	case <-timer:
	}
	return true
}
