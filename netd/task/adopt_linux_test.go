//go:build linux

package task

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netd/internal/durable"
	"netd/internal/nettest"
)

// killedDaemon starts the task in a daemon of its own, which is then killed with
// SIGKILL, and returns the pid of the task's init process.
func (n node) killedDaemon(t *testing.T, s Spec) int {
	t.Helper()
	spec, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(n.binary, "helper", "daemon", n.data, n.run, string(spec))
	cmd.Stderr = os.Stderr
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	killErr := cmd.Process.Kill()
	_ = cmd.Wait() // "signal: killed"
	pid, atoiErr := strconv.Atoi(strings.TrimSpace(line))
	if err := errors.Join(err, atoiErr, killErr); err != nil {
		t.Fatalf("the daemon said %q: %v", line, err)
	}
	return pid
}

// subreaper makes this process the parent of orphans, as the machine's init is
// for a daemon that was killed.
func subreaper(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
}

// A task survives the SIGKILL of its daemon, with the connections to it; the next
// daemon finds it as it was, stops it and learns how it ended.
func TestRootDaemonKilled(t *testing.T) {
	n := newNode(t)
	subreaper(t)
	s := Spec{ID: taskID(t, 0), Name: "web.1.x", Image: "netd/echo"}
	pid := n.killedDaemon(t, s)
	var conn net.Conn
	nettest.Eventually(t, 10*time.Second, "connect", func() (err error) {
		conn, err = nettest.Dial(filepath.Join(n.run, "netns", "task-"+s.ID), "tcp", "", "127.0.0.1:7")
		return err
	})
	defer conn.Close()
	r, _ := n.runs(t)
	if got := status(t, r, s.ID); got.Phase != Running || got.Pid != pid || got.Started.IsZero() || got.Name != s.Name {
		t.Fatalf("adopted %+v", got)
	}
	if _, err := nettest.AskConn(conn); err != nil {
		t.Errorf("the connection did not survive: %v", err)
	}
	until(t, r, s.ID, func(s Status) bool { return s.Health == HealthHealthy })
	if err := r.Start(t.Context(), s.ID); err != nil {
		t.Errorf("start of what runs: %v", err)
	}
	if err := r.Stop(t.Context(), s.ID); err != nil {
		t.Fatal(err)
	}
	if got := status(t, r, s.ID); got.Phase != Exited || got.ExitCode != 0 {
		t.Errorf("stopped %+v", got)
	}
	if err := gone(pid); err != nil {
		t.Error(err)
	}
}

// A runtime that is closed leaves its tasks running; the next one knows all that
// it knew, and what happened in between.
func TestRootAdopt(t *testing.T) {
	n := newNode(t)
	a, stop := n.runs(t)
	healthy := Spec{ID: taskID(t, 1), Image: "netd/echo", PidsLimit: 100}
	exits, lost, created := helperSpec(t, "signals"), helperSpec(t, "signals"), helperSpec(t, "signals")
	prepare(t, a, created)
	begins(t, a, healthy)
	stExits, stLost := begins(t, a, exits), begins(t, a, lost)
	untilOutput(t, stExits, "ready")
	before := until(t, a, healthy.ID, func(s Status) bool { return s.Health == HealthHealthy })
	stop()
	if err := errors.Join(unix.Kill(stExits.Pid, unix.SIGUSR1), unix.Kill(stLost.Pid, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, 10*time.Second, "exit status", func() error {
		_, err := os.Stat(filepath.Join(n.data, "tasks", exits.ID, exitFile))
		return err
	})

	b := n.open(t) // not run: nothing but what Open itself finds
	after := status(t, b, healthy.ID)
	if before.HealthErr, after.HealthErr = "", ""; fmt.Sprintf("%+v", before) != fmt.Sprintf("%+v", after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if got := status(t, b, created.ID); got.Phase != Created {
		t.Errorf("created: %+v", got)
	}
	b.Close()
	c, _ := n.runs(t)
	if got := until(t, c, exits.ID, ended); got.Phase != Exited || got.ExitCode != int(unix.SIGUSR1) {
		t.Errorf("ended meanwhile: %+v", got)
	}
	got := until(t, c, lost.ID, ended)
	if got.Phase != Failed || got.ExitCode != 137 || !strings.Contains(got.Err, "did not say how") {
		t.Errorf("init killed meanwhile: %+v", got)
	}
	for _, pid := range []int{stExits.Pid, stLost.Pid} {
		if err := gone(pid); err != nil {
			t.Error(err)
		}
	}
	// A later daemon says the same of it.
	if again := status(t, n.open(t), lost.ID); again.Phase != Failed || again.ExitCode != 137 || again.Err != got.Err {
		t.Errorf("third daemon: %+v", again)
	}
}

// The init process killed while the daemon watches is a failure too.
func TestRootInitKilled(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := helperSpec(t, "signals")
	st := begins(t, r, s)
	if err := unix.Kill(st.Pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := until(t, r, s.ID, ended); got.Phase != Failed || got.ExitCode != 137 || got.Err == "" {
		t.Errorf("got %+v", got)
	}
}

// A pid that belongs to another process by now is not taken for the task's.
func TestRootAdoptReusedPid(t *testing.T) {
	n := newNode(t)
	r, stop := n.runs(t)
	s := helperSpec(t, "signals")
	st := begins(t, r, s)
	untilOutput(t, st, "ready")
	stop()
	self, err := identify("self")
	if err != nil {
		t.Fatal(err)
	}
	for name, id := range map[string]identity{
		"other start time": {Pid: self.Pid, Start: self.Start + 1, Boot: self.Boot},
		"other boot":       {Pid: self.Pid, Start: self.Start, Boot: "x"},
		"no process":       {Pid: 1 << 30, Start: 1, Boot: self.Boot},
	} {
		if p, err := openProcess(id); p != nil || err != nil {
			t.Errorf("%s: got %v, %v", name, p, err)
		}
	}
	p, err := openProcess(self)
	if err != nil || p == nil {
		t.Fatalf("own identity: %v, %v", p, err)
	}
	p.close()
}

// A daemon that was killed between two steps of a start leaves a task that has
// failed; an init process that comes late does not run the command.
func TestRootStartGivenUp(t *testing.T) {
	n := newNode(t)
	r, stop := n.runs(t)
	s := helperSpec(t, "look")
	prepare(t, r, s)
	stop()
	dir := filepath.Join(n.data, "tasks", s.ID)
	rec, err := loadRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec.Begun = true
	if err := store(dir, taskFile, rec); err != nil {
		t.Fatal(err)
	}
	b := n.open(t)
	if got := status(t, b, s.ID); got.Phase != Failed || got.ExitCode != 137 {
		t.Errorf("got %+v", got)
	}
	_, reply, err := b.launch(b.tasks[s.ID], nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Close()
	message, _ := bufio.NewReader(reply).ReadString(0)
	if message != errGivenUp.Error() {
		t.Errorf("the late init process said %q", message)
	}
}

// Damaged files are refused by name and stay as they are; the remains of a crash
// are cleared.
func TestRootOpenRefuses(t *testing.T) {
	n := newNode(t)
	r, stop := n.runs(t)
	s := helperSpec(t, "exit", "3")
	begins(t, r, s)
	until(t, r, s.ID, ended)
	stop()
	dir := filepath.Join(n.data, "tasks", s.ID)
	if err := os.MkdirAll(filepath.Join(n.data, "tasks", ".half"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ file, text, want string }{
		"cut off":       {taskFile, `{"version": 1, "spe`, "unexpected end"},
		"empty":         {taskFile, "", "unexpected end"},
		"other version": {taskFile, `{"version": 2}`, "version 2"},
		"other task":    {taskFile, `{"version": 1, "spec": {"ID": "other"}}`, `of task "other"`},
		"exit status":   {exitFile, "?", "invalid character"},
		"init":          {initFile, "[]", "cannot unmarshal"},
	} {
		path := filepath.Join(dir, c.file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Open(Config{DataDir: n.data, RunDir: n.run})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if now, _ := os.ReadFile(path); string(now) != c.text {
			t.Errorf("%s: the file was changed to %q", name, now)
		}
		if err := durable.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := status(t, n.open(t), s.ID); got.ExitCode != 3 {
		t.Errorf("restored: %+v", got)
	}
	if _, err := os.Stat(filepath.Join(n.data, "tasks", ".half")); err == nil {
		t.Error("the remains of a crash were not cleared")
	}
}
