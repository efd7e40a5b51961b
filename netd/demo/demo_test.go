package demo

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTestDemo(t *testing.T) (*demo, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	d, err := Config{Binary: "/bin/netd", Dir: filepath.Join(t.TempDir(), "demo"), Out: &out}.newDemo()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range d.nodes {
			_ = n.docker.Close()
		}
	})
	return d, &out
}

// Each check has one line; a failed one is counted with its name and does not end
// the demo.
func TestCheck(t *testing.T) {
	d, out := newTestDemo(t)
	d.check("it works", func() (string, error) { return "as said", nil })
	d.check("it does not", func() (string, error) { return "", errors.New("no route") })
	d.check("the next one", func() (string, error) { return "too", nil })
	if d.passed != 2 || !slices.Equal(d.failed, []string{"it does not: no route"}) {
		t.Errorf("passed %d, failed %q", d.passed, d.failed)
	}
	lines := strings.Split(out.String(), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "ok   it works: as said (") || !strings.HasPrefix(lines[1], "FAIL it does not: no route (") {
		t.Errorf("got %q", lines)
	}
}

// The last error says what was missing when the time was over.
func TestEventually(t *testing.T) {
	tries := 0
	if err := eventually(t.Context(), 10*time.Second, func() error {
		if tries++; tries < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || tries != 3 {
		t.Errorf("got %v after %d tries", err, tries)
	}
	if err := eventually(t.Context(), time.Millisecond, func() error { return errors.New("2 of 3") }); err == nil || err.Error() != "after 1ms: 2 of 3" {
		t.Errorf("got %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := eventually(ended, time.Hour, func() error { return errors.New("2 of 3") }); err == nil {
		t.Error("it does not end with its context")
	}
}

// Tasks are told by node, address and complaint.
func TestTasksInWords(t *testing.T) {
	d, _ := newTestDemo(t)
	d.nodes[0].id, d.nodes[1].id = "id1", "id2"
	attached := func(ingress bool, addr string) swarm.NetworkAttachment {
		at := swarm.NetworkAttachment{Addresses: []netip.Prefix{netip.MustParsePrefix(addr)}}
		at.Network.Spec.Ingress = ingress
		return at
	}
	tasks := []swarm.Task{
		{NodeID: "id2", Status: swarm.TaskStatus{Err: "no such image"}, NetworksAttachments: []swarm.NetworkAttachment{attached(true, "10.0.0.4/24"), attached(false, "10.0.9.4/24")}},
		{NodeID: "id1", Status: swarm.TaskStatus{Err: "no such image"}},
		{NodeID: "id1"}, {NodeID: "nobody"},
	}
	if got := d.placed(tasks); !slices.Equal(got, []string{"n1", "n2"}) {
		t.Errorf("placed on %q", got)
	}
	if got := complaints(tasks); got != ": no such image" || complaints(tasks[2:]) != "" {
		t.Errorf("complaints %q", got)
	}
	if got := addressOf(tasks[0]); got != netip.MustParseAddr("10.0.9.4") || addressOf(tasks[1]).IsValid() {
		t.Errorf("address %s", got)
	}
	task := swarm.Task{ID: "t1", Slot: 2, NodeID: "id1"}
	if in := d.inside("web", task); in.name != "web.2.t1" || in.netns != filepath.Join(d.Dir, "n1", "run", "netns", "task-t1") {
		t.Errorf("inside %+v", in)
	}
}

// Whoever keeps the swarm is told its sockets and how to end it.
func TestHints(t *testing.T) {
	d, out := newTestDemo(t)
	d.hints()
	for _, n := range d.nodes {
		if !strings.Contains(out.String(), "unix://"+n.socket()) {
			t.Errorf("the socket of %s is missing", n.name)
		}
	}
	if !strings.Contains(out.String(), "/bin/netd demo rm --dir "+d.Dir) {
		t.Errorf("how to end it is missing:\n%s", out)
	}
}

// Removing a demo that was never there is no error, and touches nothing.
func TestRemoveNothing(t *testing.T) {
	d, _ := newTestDemo(t)
	if err := Remove(t.Context(), d.Config); err != nil {
		t.Error(err)
	}
	if err := d.leftovers(); err != nil {
		t.Error(err)
	}
}
