package task

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"netd/internal/netns"
)

// checkHealth checks a running task until ctx ends.
func (r *Runtime) checkHealth(ctx context.Context, e *entry) {
	c, ok := e.spec.checking()
	if !ok {
		return
	}
	r.mu.Lock()
	m := monitor{HealthCheck: c.HealthCheck, started: e.status.Started, state: e.status.Health}
	r.mu.Unlock()
	timer := time.NewTimer(m.wait(time.Now()))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		err := e.probe(ctx, c, r.cgroups)
		if ctx.Err() != nil {
			return
		}
		if err := r.noteHealth(e, m.observe(began, err == nil), err); err != nil {
			r.config.Log.Error("write health", "task", e.spec.ID, "err", err)
		}
		timer.Reset(m.wait(time.Now()))
	}
}

// noteHealth publishes what a check found. A change is also written down: after
// a restart the daemon must not take a healthy task out of service for a moment.
func (r *Runtime) noteHealth(e *entry, state Health, why error) error {
	text := ""
	if why != nil {
		text = why.Error()
	}
	r.mu.Lock()
	if !e.stopping.IsZero() || e.killed != "" { // that it no longer answers is as it should be
		r.mu.Unlock()
		return nil
	}
	changed := e.status.Health != state
	e.status.Health, e.status.HealthErr = state, text
	e.began.Health = state
	rec := e.began
	r.mu.Unlock()
	if !changed {
		return nil
	}
	ring(r.changed)
	return store(e.dir, taskFile, rec)
}

// probe makes one check; nil means healthy.
func (e *entry) probe(ctx context.Context, c checking, groups cgroups) error {
	timeout := fmt.Errorf("health check exceeded timeout (%s)", c.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, timeout)
	defer cancel()
	err := error(nil)
	if c.port != 0 {
		err = askEcho(ctx, e.netns, c.port)
	} else {
		err = e.check(ctx, c.test, groups)
	}
	if err != nil && errors.Is(context.Cause(ctx), timeout) {
		return timeout
	}
	return err
}

// check runs a test inside the task; only the exit status 0 is good.
func (e *entry) check(ctx context.Context, test []string, groups cgroups) error {
	code, output, err := e.run(ctx, test, groups)
	switch {
	case err != nil:
		return fmt.Errorf("health check: %w", err)
	case code != 0:
		return fmt.Errorf("health check: exit status %d: %s", code, output)
	}
	return nil
}

// askEcho asks an echo server in a network namespace whether it is well. One
// socket instead of two processes for each check of each task. "" is the caller's
// own namespace.
func askEcho(ctx context.Context, ns string, port uint16) error {
	var conn net.Conn
	err := netns.Do(ns, func() (err error) {
		// A literal address: the dialer needs no other goroutine, so the socket is made here.
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", to.String())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", healthPath); err != nil {
		return err
	}
	line, err := bufio.NewReaderSize(conn, 512).ReadString('\n')
	if err != nil {
		return err
	}
	if fields := strings.Fields(line); len(fields) < 2 || fields[1] != fmt.Sprint(http.StatusNoContent) {
		return fmt.Errorf("answered %q", strings.TrimSpace(line))
	}
	return nil
}
