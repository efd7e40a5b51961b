package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cenkalti/backoff/v5"

	"netd"
)

// A membership that ended is taken up again after a wait that grows from the first
// to the second.
const againFirstWait, againLongestWait = time.Second, 30 * time.Second

// begin runs the membership under the daemon's group. A member that ends by
// itself leaves its reason behind; the daemon goes on answering.
func (d *Daemon) begin(ctx context.Context, id *identity, key []byte, found func(context.Context, *member) error) error {
	m, err := newMember(d, id, key)
	if err != nil {
		return err
	}
	mctx, cancel := context.WithCancelCause(d.ctx)
	m.cancel = cancel
	d.set(m, nil)
	d.group.Go(func() error {
		defer close(m.done)
		defer cancel(nil)
		d.attend(mctx, m)
		return nil
	})
	if found != nil {
		fctx, stop := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no leader after %s", startTimeout))
		defer stop()
		if err := found(fctx, m); err != nil {
			return err
		}
	}
	close(m.founded)
	return nil
}

func (d *Daemon) set(m *member, failed error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.member, d.failed = m, failed
}

// attend runs the member until ctx ends. What ends it before may pass, such as an
// address that the host does not have yet: another member takes its place, again
// and again. Only the managers can end a membership for good.
func (d *Daemon) attend(ctx context.Context, m *member) {
	wait := backoff.ExponentialBackOff{InitialInterval: againFirstWait, MaxInterval: againLongestWait, Multiplier: 2, RandomizationFactor: 0.2}
	wait.Reset()
	for {
		begun := time.Now()
		err := m.Run(ctx)
		if ctx.Err() != nil {
			return
		}
		d.log.Error("the membership has ended", "err", err)
		d.set(m, err)
		select {
		case <-ctx.Done(): // init undoes it all
			return
		case <-m.founded:
		}
		if errors.Is(err, errRemoved) {
			d.dismiss(ctx, m, &wait)
			return
		}
		if time.Since(begun) > againLongestWait {
			wait.Reset()
		}
		if m = d.again(ctx, m, &wait); m == nil {
			return
		}
	}
}

// dismiss stops what this node did for the swarm that has removed it. The user is
// to see why, so the error stays until the node leaves.
func (d *Daemon) dismiss(ctx context.Context, m *member, wait *backoff.ExponentialBackOff) {
	removed := netd.Errorf(netd.ErrForbidden, "this node was removed from the swarm, and its tasks are stopped: run 'docker swarm leave --force' here, then join again")
	for {
		d.set(m, removed)
		// Without the assignment the next start of the daemon begins no task of it.
		err := errors.Join(os.RemoveAll(m.files.node()), clearHost(ctx, d.options, d.log))
		if err == nil || ctx.Err() != nil {
			return
		}
		d.log.Error("the removed node's tasks and networks are not gone yet", "err", err)
		d.set(m, fmt.Errorf("%w; not all is gone yet: %w", removed, err))
		if !sleepUntil(ctx, time.Now().Add(wait.NextBackOff())) {
			return
		}
	}
}

// again opens the member that follows m, once that is possible; nil when ctx ends
// before. What failed is shown until the new member is at work.
func (d *Daemon) again(ctx context.Context, m *member, wait *backoff.ExponentialBackOff) *member {
	for {
		if !sleepUntil(ctx, time.Now().Add(wait.NextBackOff())) {
			return nil
		}
		next, err := m.next(d)
		if err == nil {
			d.mu.Lock()
			d.member = next
			d.mu.Unlock()
			return next
		}
		d.log.Error("the membership cannot be taken up again yet", "err", err)
		d.set(m, err)
	}
}

// next opens a member that goes on with the membership of m, which has ended.
func (m *member) next(d *Daemon) (*member, error) {
	id := *m.id
	id.Boot++ // the gossip of the new member begins anew
	if err := m.files.save(&id); err != nil {
		return nil, err
	}
	m.id.Boot = id.Boot
	next, err := newMember(d, &id, m.key)
	if err != nil {
		return nil, err
	}
	next.cancel, next.done, next.founded = m.cancel, m.done, m.founded
	return next, nil
}
