package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InitCommand is the argument that makes the netd binary a task's init process.
const InitCommand = "task-init"

// startedMessage is what the init process tells the daemon once the command runs.
const startedMessage = "started"

// What the init process inherits beside its standard streams (exec.Cmd.ExtraFiles).
const (
	replyFD  = 3 // a pipe: how the start went
	binaryFD = 4 // the mount of /bin/netd
)

// initEnv keeps the Go runtime of an init process small: it does nothing but wait.
func initEnv() []string { return []string{"GOMAXPROCS=1", "GOGC=20"} }

// Init is the first process of a task (netd task-init), started by Runtime in new
// namespaces with the task's directory as its working directory. It builds the
// task's root, starts the command, forwards signals to it, reaps orphans, writes
// exit.json when the command ends and returns the command's exit status; with it,
// the kernel ends whatever is left in the task.
//
// It keeps all capabilities, and its open directory with them: what it starts has
// fewer, and so may neither trace it nor look at its files (kernel
// kernel/ptrace.c, __ptrace_may_access).
func Init([]string) int {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "netd task-init: it is the first process of a task and run by the daemon alone")
		return 64
	}
	// The capabilities of the command are taken from the thread that starts it.
	runtime.LockOSThread()
	reply := os.NewFile(replyFD, "reply")
	closeOnExec()
	unix.Umask(0o022)
	dir, err := os.OpenRoot(".")
	if err == nil {
		err = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	if err != nil {
		tell(reply, err.Error())
		return failedStart
	}
	// From here on no signal is lost: pid 1 gets none that it does not handle.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded()...)
	pid, err := begin(dir)
	if err != nil {
		exit := exitRecord{Code: startFailure(err), Err: err.Error(), Failed: true, Finished: time.Now()}
		if !errors.Is(err, errGivenUp) {
			err = errors.Join(err, putRecord(dir, exitFile, exit))
		}
		tell(reply, err.Error())
		return exit.Code
	}
	tell(reply, startedMessage)
	go func() { // as long as this process
		for sig := range signals {
			_ = unix.Kill(pid, sig.(syscall.Signal))
		}
	}()
	exit := reapUntil(pid)
	if err := putRecord(dir, exitFile, exit); err != nil {
		fmt.Fprintln(os.Stderr, "netd task-init: write exit status:", err)
	}
	return exit.Code
}

// tell answers the daemon, which may be dead by now: then nobody needs to know.
func tell(reply *os.File, message string) {
	_, _ = reply.WriteString(message)
	_ = reply.Close()
}

// closeOnExec keeps every open file but the standard streams from what this
// process starts, also those that it inherited itself. A kernel before 5.11
// refuses; there the Go runtime's own care has to do.
func closeOnExec() {
	_ = unix.CloseRange(replyFD, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
}

var errGivenUp = errors.New("the daemon gave this start up")

// begin does all that comes before the command's own life and returns its pid.
func begin(dir *os.Root) (int, error) {
	var rec record
	data, err := dir.ReadFile(taskFile)
	if err == nil {
		err = json.Unmarshal(data, &rec)
	}
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", taskFile, err)
	}
	if err := claim(dir); err != nil {
		return 0, err
	}
	if err := unix.Sethostname([]byte(rec.Spec.hostname())); err != nil {
		return 0, fmt.Errorf("set hostname: %w", err)
	}
	if err := enterRoot(); err != nil {
		return 0, err
	}
	return spawn(rec.Spec)
}

// claim writes init.json, unless the daemon did so to give this start up.
func claim(dir *os.Root) error {
	// /proc is still the daemon's, and names this process as the daemon sees it.
	id, err := identify("self")
	if err != nil {
		return fmt.Errorf("identify init process: %w", err)
	}
	const staged = initFile + ".new"
	if err := write(dir, staged, initRecord{identity: id, Started: time.Now()}); err != nil {
		return err
	}
	err = dir.Link(staged, initFile)
	if errors.Is(err, fs.ErrExist) {
		err = errGivenUp
	}
	return errors.Join(err, dir.Remove(staged))
}

// putRecord replaces one of the files of the task's directory, whole.
func putRecord(dir *os.Root, name string, v any) error {
	staged := name + ".new"
	if err := write(dir, staged, v); err != nil {
		return err
	}
	return dir.Rename(staged, name)
}

func write(dir *os.Root, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	file, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(append(data, '\n'))
	return errors.Join(err, file.Sync(), file.Close())
}

// forwarded lists the signals that are passed on to the command: all but those
// that nobody can catch, the news of children, and the one that the Go runtime
// sends to itself.
func forwarded() []os.Signal {
	var list []os.Signal
	for n := syscall.Signal(1); n <= sigRTMax; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGCHLD, unix.SIGURG:
		default:
			list = append(list, n)
		}
	}
	return list
}

// spawn starts the command in the task's root, with a session of its own and
// without the capabilities and groups that it should not have.
func spawn(s Spec) (int, error) {
	dir := path.Join("/", s.Dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, fmt.Errorf("make working directory: %w", err)
	}
	argv, env := s.argv(), s.environ()
	program, err := lookPath(argv[0], dir, env)
	if err != nil {
		return 0, &startError{argv[0], err}
	}
	if err := restrict(); err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(program, argv, &syscall.ProcAttr{
		Dir: dir, Env: env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{}},
	})
	if err != nil {
		return 0, &startError{argv[0], err}
	}
	return pid, nil
}

// startError is a command that cannot be run.
type startError struct {
	program string
	err     error
}

func (e *startError) Error() string { return fmt.Sprintf("start command %q: %v", e.program, e.err) }
func (e *startError) Unwrap() error { return e.err }

// startFailure is the exit status for a start that failed, as docker run has it:
// 127 no such command, 126 it cannot be run, 125 all else.
func startFailure(err error) int {
	var start *startError
	switch {
	case !errors.As(err, &start):
		return failedStart
	case errors.Is(err, fs.ErrNotExist):
		return 127
	default:
		return 126
	}
}

// lookPath finds a program as execvp(3) does, in the PATH of env.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	found := error(unix.ENOENT)
	for _, entry := range env {
		list, ok := strings.CutPrefix(entry, "PATH=")
		if !ok {
			continue
		}
		for _, folder := range strings.Split(list, ":") {
			file := path.Join(dir, folder, name)
			if strings.HasPrefix(folder, "/") {
				file = path.Join(folder, name)
			}
			info, err := os.Stat(file)
			switch {
			case err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0:
				return file, nil
			case err == nil:
				found = unix.EACCES
			}
		}
	}
	return "", found
}

// reapUntil waits for every child, ours by birth or by adoption, until the command
// with this pid ends.
func reapUntil(pid int) exitRecord {
	for {
		var status unix.WaitStatus
		ended, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // not as long as the command is our child
			return exitRecord{Code: unknownExit, Failed: true, Err: "wait for command: " + err.Error(), Finished: time.Now()}
		case ended == pid && status.Signaled():
			return exitRecord{
				Code: 128 + int(status.Signal()), Err: "killed by " + signalName(status.Signal()), Finished: time.Now(),
			}
		case ended == pid && status.Exited():
			return exitRecord{Code: status.ExitStatus(), Finished: time.Now()}
		}
	}
}
