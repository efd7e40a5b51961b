package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"netd/dispatch"
)

// What is kept is what was assigned, for root alone.
func TestKeepAssignment(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node")
	if kept, err := Kept(dir); kept != nil || err != nil {
		t.Fatalf("kept before anything was assigned: %v, %v", kept, err)
	}
	want := &dispatch.Assignment{
		Generation: 7, Node: swarm.Node{ID: "n1"}, Tasks: []swarm.Task{{ID: "w1"}}, Snapshot: shop().Snapshot,
		GossipKeys: [][]byte{{1, 2}}, Managers: []string{"192.0.2.1:2377"}, DataPathPort: 4789,
	}
	if err := save(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := Kept(dir)
	if diff := cmp.Diff(want, got, netips); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	info, err := os.Stat(filepath.Join(dir, assignmentFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info.Mode(), err)
	}
}

// A damaged file is refused by name, with what to do, and stays as it is.
func TestDamagedAssignmentIsRefused(t *testing.T) {
	whole := `{"Generation":7,"Node":{"ID":"n1"},"GossipKeys":["AQI="]}`
	for name, data := range map[string]string{
		"empty": "", "cut off": whole[:30], "zeroes": strings.Repeat("\x00", 50), "another kind": `[1]`,
		"null": "null", "of nothing": "{}", "two in one": whole + whole, "no keys": `{"Node":{"ID":"n1"}}`,
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, assignmentFile)
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Kept(dir); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("%s: got %v", name, err)
		}
		if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, []byte(data)) {
			t.Errorf("%s: the file has changed: %q, %v", name, after, err)
		}
	}
}

// The kernel is made as assigned before the disk is waited for, and what the node
// itself has said of its tasks is not written back to it.
func TestKeptAfterTheKernel(t *testing.T) {
	inRig(t, func(r *rig) {
		file := filepath.Join(r.node.DataDir, assignmentFile)
		r.kernel.set = func() {
			if len(r.kernel.wanted) > 1 {
				return
			}
			if _, err := os.Stat(file); err == nil {
				t.Error("the kernel waited for the disk")
			}
		}
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.until("it is kept", func() bool { _, err := os.Stat(file); return err == nil })
		before, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		r.runs("shop", "w1") // which is several assignments, each with another status
		r.assign(func() { r.tasks[0].Version.Index, r.tasks[0].UpdatedAt = 99, time.Now() })
		r.pass(10 * time.Second)
		if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) {
			t.Errorf("the statuses of the tasks were written, %v", err)
		}
		r.want("w1", swarm.TaskStateShutdown)
		r.until("an order is kept", func() bool {
			data, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(data), `"DesiredState":"shutdown"`)
		})
	})
}

// Each new assignment is on disk before a task of it begins, and one that
// cannot be written does not keep the node from its work.
func TestAssignmentIsKeptFirst(t *testing.T) {
	inRig(t, func(r *rig) {
		file := filepath.Join(r.node.DataDir, assignmentFile)
		r.runtime.log = func(string, ...any) {
			if data, err := os.ReadFile(file); err != nil || !strings.Contains(string(data), `"w1"`) {
				t.Errorf("when the first task was begun the file held %q, %v", data, err)
			}
		}
		r.assign(func() { r.addNetwork("shop", 9); r.addTask("w1", "shop", 5) })
		r.runs("shop", "w1")
		// A folder in the place of the file: the file cannot be replaced any more.
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(file, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		r.runtime.log = r.event
		r.assign(func() { r.addTask("w2", "shop", 6) })
		r.runs("shop", "w2")
		if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		r.until("it is kept after all", func() bool {
			data, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(data), `"w2"`)
		})
		r.pass(time.Second)
	})
}
