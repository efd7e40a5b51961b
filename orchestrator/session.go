package orchestrator

import (
	"context"
	"reflect"
	"sync"
	"time"

	"netd"
	"netd/dispatch"
)

// sessions are the nodes that listen to this manager.
type sessions struct {
	mu  sync.Mutex
	all map[netd.NodeID]*session
}

// session is one node's. A node that does not read gets only the newest
// assignment when it does.
type session struct {
	ch   chan dispatch.Assignment // holds at most the newest
	last dispatch.Assignment      // what was sent last
}

// open begins a session with its first assignment; it is nil when assign does not
// know the node. A session that the node had before ends: the node has come back
// before its old connection was given up. The lock is held while assign looks at
// the store, so that no change falls between that and the first update.
func (ss *sessions) open(ctx context.Context, node netd.NodeID, assign func(netd.NodeID) (dispatch.Assignment, bool)) <-chan dispatch.Assignment {
	s := &session{ch: make(chan dispatch.Assignment, 1)}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	first, ok := assign(node)
	if !ok {
		return nil
	}
	if ss.all == nil {
		ss.all = map[netd.NodeID]*session{}
	}
	if old := ss.all[node]; old != nil {
		close(old.ch)
	}
	ss.all[node] = s
	s.sendLocked(first)
	context.AfterFunc(ctx, func() {
		ss.mu.Lock()
		defer ss.mu.Unlock()
		if ss.all[node] == s {
			ss.endLocked(node)
		}
	})
	return s.ch
}

// update tells every node what changed for it, and ends the session of a node
// that assign does not know.
func (ss *sessions) update(assign func(netd.NodeID) (dispatch.Assignment, bool)) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for node, s := range ss.all {
		a, ok := assign(node)
		if !ok {
			ss.endLocked(node)
			continue
		}
		a.Generation = s.last.Generation
		if !reflect.DeepEqual(a, s.last) {
			s.sendLocked(a)
		}
	}
}

// end ends all sessions.
func (ss *sessions) end() {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for node := range ss.all {
		ss.endLocked(node)
	}
}

func (ss *sessions) len() int {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return len(ss.all)
}

func (ss *sessions) endLocked(node netd.NodeID) {
	close(ss.all[node].ch)
	delete(ss.all, node)
}

// sendLocked replaces what the node has not read yet. sessions.mu makes it the
// only sender, so that the second send cannot block.
func (s *session) sendLocked(a dispatch.Assignment) {
	a.Generation = s.last.Generation + 1
	s.last = a
	select {
	case <-s.ch:
	default:
	}
	s.ch <- a
}

// tell pushes what changes to the nodes while this manager leads, and lets them
// go when it does not.
func (o *Orchestrator) tell(ctx context.Context) error {
	defer o.sessions.end()
	bell := o.store.Watch(ctx)
	var took time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-bell:
		}
		if !sleep(ctx, min(max(pushPause, 2*took), maxPause)) {
			return nil
		}
		began := time.Now()
		if !o.store.Leading() {
			o.sessions.end()
			continue
		}
		if o.sessions.len() > 0 {
			o.sessions.update(newProjection(o.store.View()).assignment)
		}
		took = time.Since(began)
	}
}
