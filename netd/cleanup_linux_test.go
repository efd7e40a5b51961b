//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// A damaged task file keeps the daemon from starting, but not cleanup from taking
// the task out of the kernel; without it the daemon starts again, and the managers
// replace the tasks that it no longer has.
func TestRootCleanupDamagedTask(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.mustInit()
	h.createService("web", 2)
	pids := h.running(2, time.Minute)
	h.stop()
	records, err := filepath.Glob(filepath.Join(h.data, "tasks", "*", "task.json"))
	if err != nil || len(records) != 2 {
		t.Fatalf("task records: %v, %v", records, err)
	}
	if err := os.Truncate(records[0], 10); err != nil {
		t.Fatal(err)
	}
	h.refuses("netd cleanup", h.daemonArgs()...)
	if code, out := h.netd("cleanup", "--data-dir", h.data, "--run-dir", h.run); code != 0 {
		t.Fatalf("cleanup: %d %s", code, out)
	}
	if pins, err := netns.List(filepath.Join(h.run, "netns")); err != nil || len(pins) > 0 {
		t.Errorf("pins are left: %v, %v", pins, err)
	}
	h.start()
	nettest.Eventually(t, time.Minute, "other tasks take the place of the old ones", func() error {
		for id := range h.running(2, time.Minute) {
			if pids[id] > 0 {
				return fmt.Errorf("task %s is still listed, a task runs once", id)
			}
		}
		return nil
	})
}
