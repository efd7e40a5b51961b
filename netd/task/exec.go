package task

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how much of a check's output is kept, as in Docker.
const maxOutput = 4096

// run runs a program inside the running task, with the command's environment and
// no more capabilities than it, and returns its exit status and output. It is
// killed when ctx ends.
func (e *entry) run(ctx context.Context, argv []string, groups cgroups) (code int, output string, err error) {
	var out head
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Err = nil // that it is not in the host's PATH means nothing
	cmd.Env, cmd.Dir = e.spec.environ(), path.Join("/", e.spec.Dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(nil), &out, &out
	cmd.WaitDelay = time.Second // for a grandchild that keeps the output open
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Credential: &syscall.Credential{}}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	if group := groups.open(e.spec.ID); group != nil {
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	if err := e.process.enter(func() (err error) {
		if cmd.Path, err = lookPath(argv[0], cmd.Dir, cmd.Env); err != nil {
			return fmt.Errorf("start %q: %w", argv[0], err)
		}
		if err := restrict(); err != nil {
			return err
		}
		return cmd.Start()
	}); err != nil {
		return 0, "", err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, out.String(), err
	}
	return cmd.ProcessState.ExitCode(), out.String(), nil
}

// enter runs fn on a thread that has moved into all namespaces of the process.
// A child that fn starts is in them too. The thread can never be used for
// anything else: its goroutine ends locked, so that Go ends it (runtime.LockOSThread).
func (p *process) enter(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Go cannot end the main thread, and /proc/self shows its namespaces.
			// Held here, it cannot get the next goroutine.
			done <- p.enter(fn)
			runtime.UnlockOSThread()
			return
		}
		// A thread that shares its working directory may not change mount namespaces.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = p.join()
		}
		if err != nil {
			done <- fmt.Errorf("enter task: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// join moves the calling thread (and the pid namespace of its children) by the
// pidfd: all at once, and never into another task's (setns(2), Linux 5.8).
func (p *process) join() (err error) {
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC
	return errors.Join(p.control(func(fd int) { err = unix.Setns(fd, all) }), err)
}

// head keeps the beginning of what is written to it, one writer at a time.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), maxOutput-h.Len())])
	return len(p), nil
}

func (h *head) String() string { return strings.TrimSpace(h.Buffer.String()) }
