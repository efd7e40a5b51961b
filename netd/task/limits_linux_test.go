//go:build linux

package task

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netd/internal/nettest"
)

// A task is in its cgroup from its first instruction on, and each of its limits is
// either in force or named in a warning.
func TestRootLimits(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := helperSpec(t, "signals")
	s.MemoryLimit, s.NanoCPUs, s.PidsLimit = 64<<20, 5e8, 50
	st := begins(t, r, s)
	if r.cgroups == "" {
		if len(st.Warnings) != 3 || !strings.Contains(st.Warnings[0], "no usable cgroup2 hierarchy") {
			t.Errorf("warnings: %q", st.Warnings)
		}
		return
	}
	member, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", st.Pid))
	if err != nil || !strings.Contains(string(member), "0::/netd/"+s.ID+"\n") {
		t.Errorf("cgroup: %q, %v", member, err)
	}
	for _, l := range s.limits() {
		got, err := os.ReadFile(filepath.Join(r.cgroups.path(s.ID), l.file))
		applied := err == nil && strings.TrimSpace(string(got)) == l.value
		warned := slices.ContainsFunc(st.Warnings, func(w string) bool { return strings.HasPrefix(w, l.what+" is not applied: ") })
		if applied == warned {
			t.Errorf("%s: applied %t (%q, %v), warnings %q", l.what, applied, got, err, st.Warnings)
		}
	}
	t.Logf("warnings: %q", st.Warnings)
}

// A task that exceeds its memory is ended, and the status says for what.
func TestRootOutOfMemory(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := helperSpec(t, "hog")
	s.MemoryLimit = 32 << 20
	st := begins(t, r, s)
	got := until(t, r, s.ID, ended)
	if len(st.Warnings) > 0 { // no memory controller: it is let be
		if got.Phase != Exited || got.ExitCode != 0 {
			t.Errorf("got %+v", got)
		}
		return
	}
	if got.ExitCode != 137 || got.Err != "killed: out of memory (the limit is 33554432 bytes)" {
		t.Errorf("got %+v", got)
	}
}

// Where there is no cgroup2 hierarchy tasks run all the same.
func TestRootNoCgroups(t *testing.T) {
	r, _ := newNode(t).runs(t)
	r.cgroups = ""
	s := helperSpec(t, "signals")
	s.PidsLimit = 50
	st := begins(t, r, s)
	if want := "process limit is not applied: this node has no usable cgroup2 hierarchy"; len(st.Warnings) != 1 || st.Warnings[0] != want {
		t.Errorf("warnings: %q", st.Warnings)
	}
	if err := r.Remove(t.Context(), s.ID); err != nil {
		t.Error(err)
	}
	if err := gone(st.Pid); err != nil {
		t.Error(err)
	}
}

// A daemon whose binary was replaced while it ran, as an upgrade does, and one in
// a mount namespace of its own still start tasks.
func TestRootBinary(t *testing.T) {
	for name, flags := range map[string]uintptr{"replaced": 0, "other mount namespace": unix.CLONE_NEWNS} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			binary := filepath.Join(nettest.Dir(t), "netd")
			data, err := os.ReadFile(n.binary)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(binary, data, 0o700); err != nil {
				t.Fatal(err)
			}
			remove := binary
			if flags != 0 {
				remove = ""
			}
			cmd := exec.Command(binary, "helper", "once", n.data, n.run, remove)
			cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: flags}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
