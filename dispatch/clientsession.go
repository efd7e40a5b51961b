package dispatch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"netd"
)

var errSilent = errors.New("the manager is silent")

// session keeps one session with the manager until either side ends it. worked
// tells whether the manager accepted it.
func (c *Client) session(ctx context.Context, manager string, onAssignment func(Assignment)) (worked bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	conf := c.tls
	c.restart = func() { cancel(errors.New("the node's certificate was renewed")) }
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.restart = nil
	}()
	// The manager acknowledges heartbeats, so that silence means that it is gone,
	// or that what it sends does not arrive.
	silence := time.AfterFunc(missed*c.c.Heartbeat, func() { cancel(errSilent) })
	defer silence.Stop()

	up, pipe := io.Pipe()
	// The request's context does not end a read of its body that blocks.
	defer context.AfterFunc(ctx, func() { pipe.CloseWithError(context.Cause(ctx)) })()
	defer pipe.Close()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url(manager, pathSession), up)
	if err != nil {
		return false, netd.Errorf(netd.ErrInvalid, "call manager: %w", err)
	}
	t, closeConns := transport(conf, c.c.Heartbeat)
	defer closeConns()
	resp, err := t.RoundTrip(r)
	if err != nil {
		return false, unreachable(manager, cause(ctx, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, errorOf(resp)
	}
	c.c.Log.Info("session with manager open", "manager", manager)
	c.connected.Store(true)
	defer c.connected.Store(false)
	acks := make(chan uint64, 1)
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		cancel(c.writeReports(ctx, pipe, acks))
	}()
	down := &watched{resp.Body, silence, missed * c.c.Heartbeat}
	err = cause(ctx, c.readAssignments(ctx, down, acks, onAssignment))
	cancel(err)
	pipe.CloseWithError(io.ErrClosedPipe)
	<-writing
	return true, err
}

// cause prefers the reason that ctx ended for over what came of it.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// watched runs a timer while it waits for something to read, and not while what
// was read is worked on.
type watched struct {
	io.Reader
	timer *time.Timer
	limit time.Duration
}

// Read reads on.
func (w *watched) Read(p []byte) (int, error) {
	w.timer.Reset(w.limit)
	defer w.timer.Stop()
	return w.Reader.Read(p)
}

func (c *Client) readAssignments(ctx context.Context, down io.Reader, acks chan uint64, onAssignment func(Assignment)) error {
	lines := bufio.NewReader(down)
	for {
		text, err := readLine(lines, maxAssignment)
		if err != nil {
			return err
		}
		var m downMessage
		if err := json.Unmarshal(text, &m); err != nil {
			return fmt.Errorf("read assignment: %w", err)
		}
		if m.Ack != nil {
			c.outbox.stored(*m.Ack)
			select {
			case acks <- *m.Ack:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if m.Assignment != nil {
			if len(m.Assignment.Managers) > 0 {
				c.mu.Lock()
				c.managers = m.Assignment.Managers
				c.mu.Unlock()
			}
			onAssignment(*m.Assignment)
		}
	}
}

// writeReports sends what is in the outbox, one message at a time: what happens
// until it is acknowledged goes into the next one. A heartbeat goes out in between.
func (c *Client) writeReports(ctx context.Context, up io.Writer, acks <-chan uint64) error {
	enc := json.NewEncoder(up)
	beat := time.NewTicker(c.c.Heartbeat)
	defer beat.Stop()
	var sent, acked uint64
	for {
		if sent == acked {
			if m, any := c.outbox.after(sent); any {
				if err := enc.Encode(m); err != nil {
					return fmt.Errorf("send report: %w", err)
				}
				sent = m.Seq
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case seq := <-acks:
			acked = max(acked, seq)
		case <-c.outbox.bell:
		case <-beat.C:
			if err := enc.Encode(c.outbox.beat(sent)); err != nil {
				return fmt.Errorf("send heartbeat: %w", err)
			}
		}
	}
}
