package dispatch

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd/internal/nettest"
)

// farewells returns the first report that says that a node leaves, and all that
// came after it.
func (h *hub) farewells() (all []Report) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.IndexFunc(h.reports, func(r Report) bool { return r.Leaving })
	if i < 0 {
		return nil
	}
	return slices.Clone(h.reports[i:])
}

// A node that leaves knows when a manager has stored it; nothing that it says
// afterwards, heartbeats least of all, makes it a member again.
func TestLeave(t *testing.T) {
	h := newHub(t)
	w := h.worker(t, "n1", h.serve(t, "127.0.0.1:0").addr)
	w.wait(t, true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := w.Leave(ctx); err != nil {
		t.Fatal(err)
	}
	if len(h.farewells()) == 0 {
		t.Fatal("Leave returned before the manager had the report")
	}
	w.Send(Report{Statuses: []TaskStatus{{ID: "t1", Status: swarm.TaskStatus{State: swarm.TaskStateShutdown}}}})
	nettest.Eventually(t, 10*time.Second, "a status and two heartbeats follow", func() error {
		all, statuses := h.farewells(), 0
		for _, r := range all {
			statuses += len(r.Statuses)
		}
		if len(all) < 4 || statuses != 1 {
			return errors.New("not yet")
		}
		return nil
	})
	for i, r := range h.farewells() {
		if !r.Leaving {
			t.Errorf("report %d after the farewell does not say that the node leaves: %+v", i, r)
		}
	}
	if err := w.Leave(ctx); err != nil {
		t.Errorf("a second Leave: %v", err)
	}
}

// Where no manager answers, or none stores it, Leave ends with its context.
func TestLeaveIsBounded(t *testing.T) {
	h := newHub(t)
	alone := h.worker(t, "n1", "127.0.0.1:1")
	refused := h.worker(t, "n2", h.serve(t, "127.0.0.1:0").addr)
	refused.wait(t, true)
	h.mu.Lock()
	h.reject = errors.New("the store is closed")
	h.mu.Unlock()
	for name, w := range map[string]*worker{"alone": alone, "refused": refused} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		if err := w.Leave(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: got %v", name, err)
		}
		cancel()
	}
}
