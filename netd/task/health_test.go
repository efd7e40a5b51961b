package task

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The check that applies follows from the spec, the image and the command.
func TestChecking(t *testing.T) {
	for name, c := range map[string]struct {
		spec     Spec
		port     uint16
		test     int // arguments of the test
		interval time.Duration
	}{
		"image's own":       {Spec{}, 80, 0, time.Second},
		"its port":          {Spec{Args: []string{"echo", "--port", "9000", "--port=90"}}, 9000, 0, time.Second},
		"its interval":      {Spec{Health: &HealthCheck{Interval: time.Minute}}, 80, 0, time.Minute},
		"none":              {Spec{Health: &HealthCheck{Test: []string{"NONE"}}}, 0, 0, 0},
		"not the echo":      {Spec{Command: []string{"/bin/x"}}, 0, 0, 0},
		"another verb":      {Spec{Args: []string{"version"}}, 0, 0, 0},
		"flags that fail":   {Spec{Args: []string{"echo", "--nonsense"}}, 0, 0, 0},
		"own test":          {Spec{Health: &HealthCheck{Test: []string{"CMD", "a", "b"}}}, 0, 2, 30 * time.Second},
		"own test, no echo": {Spec{Command: []string{"/bin/x"}, Health: &HealthCheck{Test: []string{"CMD", "a"}}}, 0, 1, 30 * time.Second},
	} {
		got, ok := c.spec.checking()
		if want := c.port != 0 || c.test != 0; ok != want || got.port != c.port || len(got.test) != c.test || got.Interval != c.interval {
			t.Errorf("%s: got %+v, %t", name, got, ok)
		}
	}
}

// Docker's rules: failures in the start period do not count while the task is
// starting, the third in a row after it does, and one success makes it healthy.
func TestMonitor(t *testing.T) {
	start := time.Unix(1000, 0)
	type step struct {
		at       time.Duration
		ok       bool
		want     Health
		wantWait time.Duration
	}
	config := HealthCheck{Interval: 30 * time.Second, StartPeriod: 10 * time.Second, StartInterval: 5 * time.Second, Retries: 3}
	for name, steps := range map[string][]step{
		"forgiven, then unhealthy": {
			{1 * time.Second, false, HealthStarting, 5 * time.Second},
			{6 * time.Second, false, HealthStarting, 5 * time.Second},
			{9 * time.Second, false, HealthStarting, 5 * time.Second},
			{10 * time.Second, false, HealthStarting, 30 * time.Second},
			{40 * time.Second, false, HealthStarting, 30 * time.Second},
			{70 * time.Second, false, HealthUnhealthy, 30 * time.Second},
			{100 * time.Second, true, HealthHealthy, 30 * time.Second},
		},
		"a success ends the start period": {
			{1 * time.Second, true, HealthHealthy, 30 * time.Second},
			{2 * time.Second, false, HealthHealthy, 30 * time.Second},
			{3 * time.Second, false, HealthHealthy, 30 * time.Second},
			{4 * time.Second, true, HealthHealthy, 30 * time.Second},
			{5 * time.Second, false, HealthHealthy, 30 * time.Second},
			{6 * time.Second, false, HealthHealthy, 30 * time.Second},
			{7 * time.Second, false, HealthUnhealthy, 30 * time.Second},
		},
	} {
		m := monitor{HealthCheck: config, started: start, state: HealthStarting}
		if got := m.wait(start); got != config.StartInterval {
			t.Errorf("%s: first wait %s", name, got)
		}
		for i, s := range steps {
			at := start.Add(s.at)
			if got := m.observe(at, s.ok); got != s.want {
				t.Errorf("%s, step %d: got %s, want %s", name, i, got, s.want)
			}
			if got := m.wait(at); got != s.wantWait {
				t.Errorf("%s, step %d: wait %s, want %s", name, i, got, s.wantWait)
			}
		}
	}
}

// Whatever happened before: a success makes a task healthy, as many failures as
// there are retries after the start period make it unhealthy, and it never
// starts again.
func TestMonitorAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		retries := rapid.IntRange(1, 5).Draw(t, "retries")
		period := time.Duration(rapid.IntRange(0, 100).Draw(t, "period")) * time.Second
		m := monitor{HealthCheck: HealthCheck{StartPeriod: period, Retries: retries}, state: HealthStarting}
		now, left := m.started, false
		for _, ok := range rapid.SliceOf(rapid.Bool()).Draw(t, "results") {
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "later")) * time.Second)
			got := m.observe(now, ok)
			left = left || got != HealthStarting
			if ok && got != HealthHealthy || left && got == HealthStarting {
				t.Fatalf("after %t: %s", ok, got)
			}
		}
		now = now.Add(period)
		for range retries {
			m.observe(now, false)
		}
		if m.state != HealthUnhealthy {
			t.Fatalf("after %d failures: %s", retries, m.state)
		}
	})
}
