//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"netd/internal/nettest"
)

// A daemon whose state is damaged does not start: one line names the file and
// says what to do. No byte of the damaged file is changed, and put right it is
// taken up again.
func TestRootDamagedState(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.mustInit()
	h.createService("web", 1)
	pids := h.running(1, time.Minute)
	assignment := filepath.Join(h.data, "node", "assignment.json")
	nettest.Eventually(t, 10*time.Second, "the assignment of the task is kept", func() error {
		data, err := os.ReadFile(assignment)
		for id := range pids {
			if err == nil && !strings.Contains(string(data), id) {
				err = fmt.Errorf("%s does not mention %s", assignment, id)
			}
		}
		return err
	})
	h.healthy()
	h.stop()
	records, err := filepath.Glob(filepath.Join(h.data, "tasks", "*", "task.json"))
	if err != nil || len(records) != 1 {
		t.Fatalf("task records: %v, %v", records, err)
	}
	// Of a database, what is lost must not be free pages only.
	cut := func(b []byte) []byte { return b[:3*os.Getpagesize()+100] }
	half := func(b []byte) []byte { return b[:len(b)/2] }
	garbage := func(b []byte) []byte { return slices.Repeat([]byte("x"), len(b)) }
	empty := func([]byte) []byte { return nil }
	for _, c := range []struct {
		file   string
		damage map[string]func([]byte) []byte
	}{
		{filepath.Join(h.data, "node.json"), map[string]func([]byte) []byte{"half": half, "garbage": garbage, "empty": empty}},
		{filepath.Join(h.data, "node.key"), map[string]func([]byte) []byte{"half": half, "empty": empty}},
		{assignment, map[string]func([]byte) []byte{"half": half, "garbage": garbage, "empty": empty}},
		{filepath.Join(h.data, "raft", "raft.db"), map[string]func([]byte) []byte{"cut": cut, "garbage": garbage, "empty": empty}},
		{filepath.Join(h.data, "raft", "raft.key"), map[string]func([]byte) []byte{"half": half, "empty": empty}},
		{records[0], map[string]func([]byte) []byte{"half": half, "empty": empty}},
	} {
		whole, err := os.ReadFile(c.file)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range c.damage {
			if err := os.WriteFile(c.file, damage(whole), 0o600); err != nil {
				t.Fatal(err)
			}
			before := contents(t, h.data)
			h.refuses(filepath.Base(c.file), h.daemonArgs()...)
			after := contents(t, h.data)
			for _, m := range []map[string]string{before, after} {
				if c.file != filepath.Join(h.data, "node.json") {
					delete(m, filepath.Join(h.data, "node.json")) // it counts the starts
				}
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("%s, %s: files have changed: %.2000s", c.file, name, diff)
			}
		}
		if err := os.WriteFile(c.file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	h.healthy()
	if again := h.running(1, time.Minute); !cmp.Equal(again, pids) {
		t.Errorf("tasks %v, before %v", again, pids)
	}
}

// What belongs to another node is refused, although it is whole: a copied data
// directory must not make a second node of the same name.
func TestRootForeignState(t *testing.T) {
	hosts := newHosts(t, 2)
	for _, h := range hosts {
		h.start()
		h.mustInit()
		nettest.Eventually(t, 10*time.Second, "the assignment is kept", func() error {
			_, err := os.Stat(filepath.Join(h.data, "node", "assignment.json"))
			return err
		})
		h.stop()
	}
	h := hosts[0]
	for _, name := range []string{"node/assignment.json", "node.key", "node.json"} {
		own, err := os.ReadFile(filepath.Join(h.data, name))
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(filepath.Join(hosts[1].data, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(h.data, name), other, 0o600); err != nil {
			t.Fatal(err)
		}
		h.refuses(h.data, h.daemonArgs()...)
		if err := os.WriteFile(filepath.Join(h.data, name), own, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	h.healthy()
}
