package task

import (
	"time"

	"netd"
)

// Docker's defaults (moby daemon/health.go).
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
)

// minInterval is Docker's lower bound for each time in a check.
const minInterval = time.Millisecond

func (h *HealthCheck) check() error {
	if h == nil {
		return nil
	}
	for _, d := range []time.Duration{h.Interval, h.Timeout, h.StartPeriod, h.StartInterval} {
		if d != 0 && d < minInterval {
			return netd.Errorf(netd.ErrInvalid, "health check: a time must be zero or at least %s", minInterval)
		}
	}
	if h.Retries < 0 {
		return netd.Errorf(netd.ErrInvalid, "health check: retries must not be negative")
	}
	if len(h.Test) == 0 {
		return nil
	}
	switch kind := h.Test[0]; {
	case kind == "NONE" && len(h.Test) == 1:
	case kind == "CMD" && len(h.Test) > 1:
	case kind == "CMD-SHELL":
		return netd.Errorf(netd.ErrUnsupported, "health check: CMD-SHELL needs a shell, and the image netd/echo has none; "+
			"use [\"CMD\", program, argument...] or leave the image's own check")
	default:
		return netd.Errorf(netd.ErrInvalid, "health check: test %q: want [], [\"NONE\"] or [\"CMD\", program, argument...]", h.Test)
	}
	return nil
}

// checking is how a task is checked: by running test inside it, or, where test
// is empty, by asking its echo server on port.
type checking struct {
	test []string
	port uint16
	HealthCheck
}

// checking works out the check that applies; false when there is none. Pure.
//
// The image's own check applies only while the command is the image's own: no
// other program could pass it. It polls fast at first, because the time until a
// task is seen ready is time that a rolling update waits.
func (s Spec) checking() (checking, bool) {
	var h HealthCheck
	if s.Health != nil {
		h = *s.Health
	}
	if len(h.Test) > 0 {
		if h.Test[0] == "NONE" {
			return checking{}, false
		}
		fill(&h, HealthCheck{Interval: defaultInterval, Timeout: defaultTimeout, StartInterval: defaultStartInterval, Retries: defaultRetries})
		return checking{test: h.Test[1:], HealthCheck: h}, true
	}
	ports := s.builtin()
	if len(ports) == 0 {
		return checking{}, false
	}
	fill(&h, HealthCheck{
		Interval: time.Second, Timeout: time.Second, Retries: defaultRetries,
		StartPeriod: 10 * time.Second, StartInterval: 50 * time.Millisecond,
	})
	return checking{port: ports[0], HealthCheck: h}, true
}

// fill sets the zero times and retries of h.
func fill(h *HealthCheck, d HealthCheck) {
	h.Interval = nonzero(h.Interval, d.Interval)
	h.Timeout = nonzero(h.Timeout, d.Timeout)
	h.StartPeriod = nonzero(h.StartPeriod, d.StartPeriod)
	h.StartInterval = nonzero(h.StartInterval, d.StartInterval)
	h.Retries = nonzero(h.Retries, d.Retries)
}

func nonzero[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// monitor is the state machine of Docker's health checks. Pure.
type monitor struct {
	HealthCheck
	started time.Time
	state   Health
	streak  int // failures in a row that count
}

// starting says whether at now failures are still forgiven.
func (m *monitor) starting(now time.Time) bool {
	return m.state == HealthStarting && now.Sub(m.started) < m.StartPeriod
}

// wait is the time from now to the next check.
func (m *monitor) wait(now time.Time) time.Duration {
	if m.starting(now) {
		return m.StartInterval
	}
	return m.Interval
}

// observe takes in the result of a check that began at the given time.
func (m *monitor) observe(began time.Time, ok bool) Health {
	switch {
	case ok:
		m.streak, m.state = 0, HealthHealthy
	case m.starting(began):
	default:
		m.streak++
		if m.streak >= m.Retries {
			m.state = HealthUnhealthy
		}
	}
	return m.state
}
