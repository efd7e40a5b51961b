//go:build linux

package task

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// A task whose files are damaged, or whose directory somebody removed, is ended by
// what the kernel shows: its init process, its cgroup, its pin. A task whose files
// are whole runs on, and so does a process that is merely in the namespace.
func TestRootRemoveForsaken(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"cut":      func(dir string) error { return os.Truncate(filepath.Join(dir, taskFile), 20) },
		"gone":     os.RemoveAll,
		"bad init": func(dir string) error { return os.WriteFile(filepath.Join(dir, initFile), []byte("{"), 0o600) },
		"empty":    func(dir string) error { return os.Truncate(filepath.Join(dir, taskFile), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			subreaper(t)
			lost, kept := Spec{ID: taskID(t, 0), Image: "netd/echo"}, Spec{ID: taskID(t, 1), Image: "netd/echo"}
			pid := n.killedDaemon(t, lost)
			if err := damage(filepath.Join(n.data, "tasks", lost.ID)); err != nil {
				t.Fatal(err)
			}
			dir, aside := filepath.Join(n.data, "tasks", lost.ID), filepath.Join(n.data, "aside")
			moved := os.Rename(dir, aside) == nil // else the next daemon would not start
			other := n.killedDaemon(t, kept)
			if moved {
				if err := os.Rename(aside, dir); err != nil {
					t.Fatal(err)
				}
			}
			if moved {
				if _, err := Open(Config{DataDir: n.data, RunDir: n.run}); err == nil || !strings.Contains(err.Error(), "netd cleanup") {
					t.Errorf("open: got %v, want advice", err)
				}
			}
			visitor := exec.Command("sleep", "1000")
			if err := netns.Do(filepath.Join(n.run, "netns", pinPrefix+lost.ID), visitor.Start); err != nil {
				t.Fatal(err)
			}
			defer visitor.Wait() //nolint:errcheck // it is killed
			defer func() {
				if err := visitor.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
					t.Error(err)
				}
			}()
			ids, err := RemoveForsaken(t.Context(), Config{DataDir: n.data, RunDir: n.run})
			if err != nil || fmt.Sprint(ids) != "["+lost.ID+"]" {
				t.Errorf("got %v, %v", ids, err)
			}
			if err := gone(pid); err != nil {
				t.Error(err)
			}
			if err := unix.Kill(visitor.Process.Pid, 0); err != nil {
				t.Errorf("the visitor: %v", err)
			}
			if c := findCgroups(); c != "" {
				if _, err := os.Stat(c.path(lost.ID)); err == nil {
					t.Error("its cgroup is left")
				}
			}
			r := n.open(t)
			if list := r.List(); len(list) != 1 || list[0].Pid != other {
				t.Errorf("left: %+v, want pid %d", list, other)
			}
			if pins, err := netns.List(filepath.Join(n.run, "netns")); err != nil || len(pins) != 1 || pins[0] != pinPrefix+kept.ID {
				t.Errorf("pins %v, %v", pins, err)
			}
		})
	}
}

// A process that merely calls itself the task's init process is not killed, nor is
// the task said to be removed.
func TestRootForsakenImpostor(t *testing.T) {
	n := newNode(t)
	id := taskID(t, 0)
	if err := netns.Create(filepath.Join(n.run, "netns", pinPrefix+id)); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(n.data, InitCommand) // cat waits for a writer
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	impostor := &exec.Cmd{
		Path: "/bin/cat", Args: []string{"netd", InitCommand, id}, Dir: n.data,
		SysProcAttr: &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID},
	}
	if err := impostor.Start(); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, 5*time.Second, "the impostor runs", func() error {
		if !isInit(strconv.Itoa(impostor.Process.Pid), id) {
			return errors.New("it does not yet")
		}
		return nil
	})
	c := Config{DataDir: n.data, RunDir: n.run}
	if ids, err := RemoveForsaken(t.Context(), c); err == nil || !strings.Contains(err.Error(), "kill it") || len(ids) > 0 {
		t.Errorf("got %v, %v", ids, err)
	}
	if err := impostor.Process.Kill(); err != nil {
		t.Errorf("the impostor: %v", err)
	}
	_ = impostor.Wait() // "signal: killed"
	if ids, err := RemoveForsaken(t.Context(), c); err != nil || len(ids) != 1 {
		t.Errorf("without it: got %v, %v", ids, err)
	}
}
