//go:build linux

package task

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netd"
	"netd/internal/netns"
	"netd/internal/nettest"
)

// node is a place where runtimes find the same tasks.
type node struct {
	data, run, binary string
}

// newNode makes one; at the test's end nothing of its tasks may be left.
func newNode(t *testing.T) node {
	t.Helper()
	nettest.Root(t)
	n := node{data: nettest.Dir(t), run: nettest.Dir(t), binary: staticBinary(t)}
	t.Cleanup(func() {
		r := n.open(t)
		for _, s := range r.List() {
			if err := r.Remove(context.Background(), s.ID); err != nil {
				t.Error(err)
			}
		}
		n.checkEmpty(t)
	})
	return n
}

// open opens a runtime without running it.
func (n node) open(t *testing.T) *Runtime {
	t.Helper()
	r, err := Open(Config{DataDir: n.data, RunDir: n.run, Binary: n.binary, Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// runs opens a runtime and runs it; stop ends it as a daemon's end does.
func (n node) runs(t *testing.T) (r *Runtime, stop func()) {
	t.Helper()
	r = n.open(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait(); r.Close() })
	t.Cleanup(stop)
	return r, stop
}

// checkEmpty looks for what removed tasks may have left behind.
func (n node) checkEmpty(t *testing.T) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{n.data, n.run} {
		if bytes.Contains(mounts, []byte(dir)) {
			t.Errorf("a mount in %s is left", dir)
		}
	}
	for _, dir := range []string{filepath.Join(n.data, "tasks"), filepath.Join(n.run, "netns")} {
		left, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
			t.Errorf("left in %s: %v, %v", dir, left, err)
		}
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Errorf("logged: %s", p)
	return len(p), nil
}

// taskID makes task IDs that no other test of this run has.
func taskID(t *testing.T, n int) string {
	return fmt.Sprintf("test%d-%d-%d", os.Getpid(), time.Now().UnixNano(), n)
}

func helperSpec(t *testing.T, args ...string) Spec {
	return Spec{ID: taskID(t, 0), Name: "web.1.x", Image: "netd/echo", Args: append([]string{"helper"}, args...)}
}

func prepare(t *testing.T, r *Runtime, s Spec) string {
	t.Helper()
	ns, err := r.Prepare(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func begins(t *testing.T, r *Runtime, s Spec) Status {
	t.Helper()
	prepare(t, r, s)
	if err := r.Start(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	return status(t, r, s.ID)
}

func status(t *testing.T, r *Runtime, id string) Status {
	t.Helper()
	list := r.List()
	i := slices.IndexFunc(list, func(s Status) bool { return s.ID == id })
	if i < 0 {
		t.Fatalf("task %q is not listed", id)
	}
	return list[i]
}

// until waits for a status.
func until(t *testing.T, r *Runtime, id string, cond func(Status) bool) (s Status) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, "status", func() error {
		if s = status(t, r, id); !cond(s) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	return s
}

func ended(s Status) bool { return s.Phase == Exited || s.Phase == Failed }

func output(t *testing.T, s Status) string {
	t.Helper()
	data, err := os.ReadFile(s.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// untilOutput waits for a text in the task's log.
func untilOutput(t *testing.T, s Status, text string) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, "output", func() error {
		if got := output(t, s); !strings.Contains(got, text) {
			return fmt.Errorf("got %q, want %q", got, text)
		}
		return nil
	})
}

func gone(pid int) error {
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
		return fmt.Errorf("process %d is still in the process table", pid)
	}
	return nil
}

// A command finds the arguments, environment, names, files, rights and network of
// its own task, and nothing of the host's.
func TestRootSight(t *testing.T) {
	r, _ := newNode(t).runs(t)
	leak, err := unix.Open("/dev/null", unix.O_RDONLY, 0) // not close-on-exec
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	s := helperSpec(t, "look", "one", "two words")
	s.Env, s.Dir, s.Hostname = []string{"A=b c", "NETD_NODE=n1"}, "/srv/new", "web-1"
	s.Hosts, s.DNSOptions = []string{"10.0.0.5 db"}, []string{"ndots:0"}
	begins(t, r, s)
	st := until(t, r, s.ID, ended)
	if st.Phase != Exited || st.ExitCode != 0 || st.Err != "" || st.Started.IsZero() || st.Finished.Before(st.Started) {
		t.Errorf("status %+v", st)
	}
	var got sight
	if err := json.Unmarshal([]byte(output(t, st)), &got); err != nil {
		t.Fatalf("%v: %s", err, output(t, st))
	}
	want := map[string][2]any{
		"args":        {fmt.Sprint(got.Args), "[one two words]"},
		"env":         {fmt.Sprint(got.Env), "[" + defaultPath + " HOSTNAME=web-1 HOME=/root NETD_TASK=web.1.x A=b c NETD_NODE=n1]"},
		"dir":         {got.Dir, "/srv/new"},
		"hostname":    {got.Hostname + got.Name, "web-1web-1\n"},
		"uid":         {got.Uid, 0},
		"root":        {fmt.Sprint(got.Root), "[bin dev etc proc root srv tmp]"},
		"resolv.conf": {got.ResolvConf, s.resolvConf()},
		"hosts":       {got.Hosts, s.hosts()},
		"links":       {fmt.Sprint(got.Links), "[lo]"},
		"stdin":       {got.Files[0], "0 /dev/null"},
	}
	for what, pair := range want {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %q, want %q", what, pair[0], pair[1])
		}
	}
	for _, line := range []string{"CapEff:\t00000000a00425fb\n", "CapBnd:\t00000000a00425fb\n", "CapInh:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Groups:\t \n"} {
		if !strings.Contains(got.Status, line) {
			t.Errorf("no %q in %s", line, got.Status)
		}
	}
	if got.Pid > 20 || strings.Contains(got.SysRq, "nil") || !strings.Contains(got.SysWrite, "read-only") {
		t.Errorf("pid %d, sysrq %s, sys %s", got.Pid, got.SysRq, got.SysWrite)
	}
	// Beside the standard streams only what the Go runtime opens, and the listing itself.
	for _, file := range got.Files {
		number, target, _ := strings.Cut(file, " ")
		switch {
		case number == "0" || number == "1" || number == "2":
		case target != "" && !strings.HasPrefix(target, "anon_inode:"):
			t.Errorf("the command inherited %s", file)
		}
	}
}

// How a command ends is reported: its exit code, a signal, or why it never ran.
func TestRootEnds(t *testing.T) {
	r, _ := newNode(t).runs(t)
	for name, c := range map[string]struct {
		change func(*Spec)
		phase  Phase
		code   int
		err    string
	}{
		"zero":       {func(s *Spec) { s.Args = []string{"helper", "exit", "0"} }, Exited, 0, ""},
		"code":       {func(s *Spec) { s.Args = []string{"helper", "exit", "42"} }, Exited, 42, ""},
		"SIGTERM":    {func(s *Spec) { s.Args = []string{"helper", "die", "15"} }, Exited, 143, "killed by SIGTERM"},
		"SIGKILL":    {func(s *Spec) { s.Args = []string{"helper", "die", "9"} }, Exited, 137, "killed by SIGKILL"},
		"no command": {func(s *Spec) { s.Command = []string{"nothere"} }, Failed, 127, `start command "nothere": no such file or directory`},
		"no file":    {func(s *Spec) { s.Command = []string{"/bin/nothere"} }, Failed, 127, `start command "/bin/nothere": no such file or directory`},
		"directory":  {func(s *Spec) { s.Command = []string{"/tmp"} }, Failed, 126, `start command "/tmp": permission denied`},
		"orphans":    {func(s *Spec) { s.Args = []string{"helper", "orphans"} }, Exited, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := helperSpec(t)
			c.change(&s)
			prepare(t, r, s)
			err := r.Start(t.Context(), s.ID)
			if c.phase == Failed && (err == nil || !strings.Contains(err.Error(), c.err)) || c.phase != Failed && err != nil {
				t.Errorf("start: got %v, want %q", err, c.err)
			}
			st := until(t, r, s.ID, ended)
			if st.Phase != c.phase || st.ExitCode != c.code || c.err != "" && st.Err != c.err || st.Pid != 0 {
				t.Errorf("got %+v\n%s", st, output(t, st))
			}
			if err := r.Start(t.Context(), s.ID); !errors.Is(err, netd.ErrInvalid) {
				t.Errorf("second start: %v", err)
			}
		})
	}
}

// A stop sends the stop signal, returns when the task is gone, and is harmless
// before, after and without a start.
func TestRootStop(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := helperSpec(t, "signals")
	s.StopSignal = "RTMIN+3"
	st := begins(t, r, s)
	untilOutput(t, st, "ready")
	for range 2 {
		if err := r.Stop(t.Context(), s.ID); err != nil {
			t.Fatal(err)
		}
		if got := status(t, r, s.ID); got.Phase != Exited || got.ExitCode != 37 {
			t.Errorf("got %+v", got)
		}
	}
	if err := gone(st.Pid); err != nil {
		t.Error(err)
	}
	never := helperSpec(t, "signals")
	prepare(t, r, never)
	if err := errors.Join(r.Stop(t.Context(), never.ID), r.Stop(t.Context(), "unknown"), r.Remove(t.Context(), "unknown")); err != nil {
		t.Fatal(err)
	}
	if got := status(t, r, never.ID); got.Phase != Exited || got.ExitCode != 0 {
		t.Errorf("never started: %+v", got)
	}
	if err := r.Start(t.Context(), never.ID); !errors.Is(err, netd.ErrInvalid) {
		t.Errorf("start after stop: %v", err)
	}
}

// A task that ignores its stop signal is killed after the grace period, and a
// stop that was called off does not make that longer.
func TestRootStopKills(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := helperSpec(t, "signals")
	s.StopGrace = 600 * time.Millisecond
	st := begins(t, r, s)
	untilOutput(t, st, "ready")
	began := time.Now()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := r.Stop(short, s.ID); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("called off: %v", err)
	}
	if got := status(t, r, s.ID); got.Phase != Running {
		t.Errorf("called off: %+v", got)
	}
	if err := r.Stop(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if got := status(t, r, s.ID); got.Phase != Exited || got.ExitCode != 137 || got.Err != "killed: still there 600ms after SIGTERM" {
		t.Errorf("got %+v", got)
	}
	if took < s.StopGrace || took > s.StopGrace+5*time.Second {
		t.Errorf("took %s", took)
	}
	if err := gone(st.Pid); err != nil {
		t.Error(err)
	}
}

// Prepare is repeatable with the same spec and refuses another, and Remove kills
// what runs and takes everything away.
func TestRootPrepareRemove(t *testing.T) {
	n := newNode(t)
	r, _ := n.runs(t)
	s := helperSpec(t, "signals")
	ns := prepare(t, r, s)
	if again := prepare(t, r, s); again != ns || ns != filepath.Join(n.run, "netns", "task-"+s.ID) || !netns.Exists(ns) {
		t.Errorf("namespace %s, again %s", ns, again)
	}
	other := s
	other.Args = nil
	if _, err := r.Prepare(t.Context(), other); !errors.Is(err, netd.ErrExists) {
		t.Errorf("other spec: %v", err)
	}
	other.Image = "nginx"
	if _, err := r.Prepare(t.Context(), other); !errors.Is(err, netd.ErrUnsupported) || !errors.Is(r.Check(other), netd.ErrUnsupported) {
		t.Errorf("other image: %v", err)
	}
	st := begins(t, r, s)
	if err := r.Remove(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if len(r.List()) != 0 {
		t.Errorf("listed: %v", r.List())
	}
	if err := gone(st.Pid); err != nil {
		t.Error(err)
	}
	if c := r.cgroups; c != "" {
		var stat unix.Stat_t
		if err := unix.Stat(c.path(s.ID), &stat); err != unix.ENOENT {
			t.Errorf("cgroup: %v", err)
		}
	}
	n.checkEmpty(t)
}
