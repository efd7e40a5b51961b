package dispatch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"netd"
	"netd/pki"
)

// session is one node's open session on this manager.
type session struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// enter makes this the node's session. An older one, of a connection that the
// node has given up, is ended first, so that the manager sees one at a time.
func (s *Server) enter(node netd.NodeID, cancel context.CancelFunc) (leave func()) {
	mine := &session{cancel, make(chan struct{})}
	s.mu.Lock()
	old := s.sessions[node]
	s.sessions[node] = mine
	s.mu.Unlock()
	if old != nil {
		old.cancel()
		<-old.done
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.sessions[node] == mine {
			delete(s.sessions, node)
		}
		close(mine.done)
	}
}

// session serves one session: it returns when either side has had enough, when
// the node is silent for too long, or when its certificate expires.
func (s *Server) session(w http.ResponseWriter, r *http.Request, m Manager, who pki.Subject) {
	ctx, cancel := context.WithDeadline(r.Context(), r.TLS.PeerCertificates[0].NotAfter)
	defer cancel()
	defer s.enter(who.Node, cancel)()
	assignments, err := m.Attach(ctx, who.Node)
	if err != nil {
		s.fail(w, err)
		return
	}
	control := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if err := control.Flush(); err != nil {
		return
	}
	acks := make(chan uint64)
	reading := make(chan error, 1)
	patience := &patience{control: control}
	go func() {
		reading <- s.readReports(ctx, r, patience, func(report upMessage) error {
			if err := m.Report(ctx, who.Node, report.Report); err != nil {
				return fmt.Errorf("store report: %w", err)
			}
			select {
			case acks <- report.Seq:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		cancel()
	}()
	err = write(ctx, w, assignments, acks)
	cancel()
	err = errors.Join(err, patience.end(), <-reading)
	s.c.Log.Debug("session ended", "node", who.Node, "err", err)
}

// patience is how long to wait for the node. Nothing but its end wakes a reader.
type patience struct {
	control *http.ResponseController

	mu    sync.Mutex
	ended bool
}

// until waits until then, or without a limit if that is zero.
func (p *patience) until(then time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return context.Canceled
	}
	return p.control.SetReadDeadline(then)
}

func (p *patience) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	return p.control.SetReadDeadline(time.Unix(1, 0))
}

func (s *Server) readReports(ctx context.Context, r *http.Request, p *patience, store func(upMessage) error) error {
	body := bufio.NewReader(r.Body)
	for ctx.Err() == nil {
		if err := p.until(time.Now().Add(missed * s.c.Heartbeat)); err != nil {
			return err
		}
		text, err := readLine(body, maxReport)
		if err != nil {
			return fmt.Errorf("read report: %w", err)
		}
		var m upMessage
		if err := json.Unmarshal(text, &m); err != nil {
			return fmt.Errorf("read report: %w", err)
		}
		// The manager's own time does not count as the node's silence.
		if err := p.until(time.Time{}); err != nil {
			return err
		}
		if err := store(m); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// write sends assignments and acknowledgements until one of both sides ends.
func write(ctx context.Context, w http.ResponseWriter, assignments <-chan Assignment, acks <-chan uint64) error {
	control := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		var m downMessage
		select {
		case <-ctx.Done():
			return nil
		case a, ok := <-assignments:
			if !ok {
				return nil
			}
			m.Assignment = &a
		case seq := <-acks:
			m.Ack = &seq
		}
		if err := control.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if err := enc.Encode(m); err != nil {
			return fmt.Errorf("send to node: %w", err)
		}
		if err := control.Flush(); err != nil {
			return fmt.Errorf("send to node: %w", err)
		}
	}
}
