package task

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"netd"
	"netd/internal/netns"
)

// failedStart is the exit code of a task that the runtime could not start, as
// docker run has it.
const failedStart = 125

// acquire takes the task's turn; nil if there is no such task. Give it back with
// <-e.turn.
func (r *Runtime) acquire(ctx context.Context, id string) (*entry, error) {
	for {
		r.mu.Lock()
		e := r.tasks[id]
		r.mu.Unlock()
		if e == nil {
			return nil, nil
		}
		select {
		case e.turn <- struct{}{}: // also when ctx is done, so that a new entry is never left half made
		default:
			select {
			case e.turn <- struct{}{}:
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}
		r.mu.Lock()
		current := r.tasks[id] == e // it may have been removed while we waited
		r.mu.Unlock()
		if current {
			return e, nil
		}
		<-e.turn
	}
}

// Prepare makes the task's directory and its network namespace, and returns the
// namespace's path. The same spec again changes nothing.
func (r *Runtime) Prepare(ctx context.Context, s Spec) (string, error) {
	if err := s.check(); err != nil {
		return "", err
	}
	r.mu.Lock()
	if r.tasks[s.ID] == nil {
		e := r.newEntry(record{Version: recordVersion, Spec: s, Created: time.Now(), Health: HealthNone})
		e.status.Phase = "" // not to be seen yet
		r.tasks[s.ID] = e
	}
	r.mu.Unlock()
	e, err := r.acquire(ctx, s.ID)
	if err != nil {
		return "", err
	}
	if e == nil {
		return "", netd.Errorf(netd.ErrNotFound, "task %q was removed while it was prepared", s.ID)
	}
	defer func() { <-e.turn }()
	if !equal(e.spec, s) {
		return "", netd.Errorf(netd.ErrExists, "task %q exists with another spec", s.ID)
	}
	if err := r.prepare(e); err != nil {
		return "", fmt.Errorf("prepare task %q: %w", s.ID, err)
	}
	return e.netns, nil
}

func equal(a, b Spec) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// prepare does what is missing; the caller has the turn.
func (r *Runtime) prepare(e *entry) error {
	switch r.phase(e) {
	case "":
		if err := createDir(e.dir, e.began); err != nil {
			r.mu.Lock()
			delete(r.tasks, e.spec.ID)
			r.mu.Unlock()
			return err
		}
		r.update(e, func(s *Status) { s.Phase = Created })
	case Created:
	default:
		return nil
	}
	return netns.Create(e.netns)
}

func (r *Runtime) phase(e *entry) Phase {
	r.mu.Lock()
	defer r.mu.Unlock()
	return e.status.Phase
}

// Start starts a prepared task and returns once its command runs. A running task
// is left as it is; an ended one never runs again. When ctx ends first the task
// goes on starting.
func (r *Runtime) Start(ctx context.Context, id string) error {
	e, err := r.acquire(ctx, id)
	if err != nil {
		return err
	}
	if e == nil {
		return netd.Errorf(netd.ErrNotFound, "task %q is not prepared on this node", id)
	}
	defer func() { <-e.turn }()
	switch r.phase(e) {
	case Running:
		return nil
	case Created:
	default:
		return netd.Errorf(netd.ErrInvalid, "task %q has ended; a task runs once", id)
	}
	if err := r.start(ctx, e); err != nil {
		return fmt.Errorf("start task %q: %w", id, err)
	}
	return nil
}

func (r *Runtime) start(ctx context.Context, e *entry) error {
	if err := netns.Create(e.netns); err != nil {
		return err
	}
	e.began.Begun = true
	if _, ok := e.spec.checking(); ok {
		e.began.Health = HealthStarting
	}
	group, warnings := r.cgroups.create(e.spec)
	if group != nil {
		defer group.Close()
	}
	e.began.Warnings = warnings
	if err := store(e.dir, taskFile, e.began); err != nil {
		return err
	}
	p, reply, err := r.launch(e, group)
	if err != nil {
		return r.failStart(e, err)
	}
	defer reply.Close()
	r.mu.Lock()
	e.process = p
	e.status.Health, e.status.Warnings = e.began.Health, warnings
	r.mu.Unlock()
	return r.hear(ctx, e, reply)
}

// failStart notes that the task could not be started and returns why.
func (r *Runtime) failStart(e *entry, why error) error {
	err := store(e.dir, exitFile, exitRecord{Code: failedStart, Err: why.Error(), Failed: true, Finished: time.Now()})
	r.finish(e)
	return errors.Join(why, err)
}

// launch makes the init process, in its namespaces and in its cgroup if that is
// not nil. The reply ends when the command runs, or says why it does not.
func (r *Runtime) launch(e *entry, group *os.File) (p *process, reply *os.File, err error) {
	log, err := os.OpenFile(filepath.Join(e.dir, logFile), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	binary, err := cloneBinary(r.config.Binary, r.dir(""))
	if err != nil {
		return nil, nil, err
	}
	defer binary.Close()
	reply, tell, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer tell.Close()
	pidfd := -1
	cmd := &exec.Cmd{
		Path: r.config.Binary, Args: []string{"netd", InitCommand, e.spec.ID},
		Env: initEnv(), Dir: e.dir, Stdout: log, Stderr: log, ExtraFiles: []*os.File{tell, binary},
		SysProcAttr: &unix.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
			Setsid:     true, PidFD: &pidfd,
		},
	}
	if group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	closeOnExec() // a task must not hold open what whoever started the daemon left open in it
	if err := netns.Do(e.netns, cmd.Start); err != nil {
		reply.Close()
		return nil, nil, fmt.Errorf("make init process: %w", err)
	}
	pid := cmd.Process.Pid
	_ = cmd.Process.Release() // it is reaped by its pidfd
	if pidfd < 0 {
		_ = unix.Kill(pid, unix.SIGKILL)
		reply.Close()
		return nil, nil, netd.Errorf(netd.ErrUnsupported, "the kernel gave no pidfd (Linux 5.4 or newer is needed)")
	}
	p, err = newProcess(pid, pidfd)
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		reply.Close()
	}
	return p, reply, err
}

// hear waits for the init process to say that the command runs.
func (r *Runtime) hear(ctx context.Context, e *entry, reply *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = reply.SetReadDeadline(time.Unix(1, 0)) })()
	message, err := io.ReadAll(io.LimitReader(reply, 4096))
	if err == nil && string(message) != startedMessage {
		if err := e.process.wait(context.WithoutCancel(ctx)); err != nil { // it ends right after its word
			return err
		}
		r.finish(e)
		return errors.New(cmp.Or(string(message), "the task's init process was killed"))
	}
	var first initRecord
	found, loadErr := load(e.dir, initFile, &first)
	if !found {
		first.Started = time.Now()
	}
	r.update(e, func(s *Status) { s.Phase, s.Pid, s.Started = Running, e.process.pid, first.Started })
	ring(r.wake)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return errors.Join(err, loadErr)
}

// Stop ends a task and returns when it is gone: its stop signal, its grace
// period, then SIGKILL. A task that was never started never will be. Stopping
// what is gone, or was never there, is no error.
func (r *Runtime) Stop(ctx context.Context, id string) error {
	e, err := r.acquire(ctx, id)
	if e == nil || err != nil {
		return err
	}
	defer func() { <-e.turn }()
	switch r.phase(e) {
	case Created:
		err = store(e.dir, exitFile, exitRecord{Err: "stopped before it was started", Finished: time.Now()})
		r.finish(e)
	case Running:
		err = r.stop(ctx, e)
	}
	if err != nil {
		return fmt.Errorf("stop task %q: %w", id, err)
	}
	return nil
}

func (r *Runtime) stop(ctx context.Context, e *entry) error {
	sig, err := parseSignal(e.spec.StopSignal)
	if err != nil {
		return err
	}
	r.mu.Lock()
	again := !e.stopping.IsZero() // an earlier Stop was called off; its grace period goes on
	if !again {
		e.stopping = time.Now()
	}
	left := time.Until(e.stopping.Add(e.spec.stopGrace()))
	r.mu.Unlock()
	if sig == unix.SIGKILL {
		return r.kill(ctx, e, "killed by its stop signal")
	}
	if !again {
		if err := e.process.signal(sig); err != nil {
			return err
		}
	}
	graceful, cancel := context.WithTimeout(ctx, max(left, 0))
	defer cancel()
	if err := e.process.wait(graceful); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return r.kill(ctx, e, fmt.Sprintf("killed: still there %s after %s", e.spec.stopGrace(), signalName(sig)))
	}
	r.finish(e)
	return nil
}

// kill ends every process of the task. The kernel ends a pid namespace with its
// init; the cgroup is for what might have left the namespace.
func (r *Runtime) kill(ctx context.Context, e *entry, why string) error {
	r.mu.Lock()
	e.killed = why
	r.mu.Unlock()
	if err := e.process.signal(unix.SIGKILL); err != nil {
		return err
	}
	if err := e.process.wait(ctx); err != nil {
		return err
	}
	r.finish(e)
	return nil
}

// Remove deletes all that the task has on this node, and kills it before if it
// still runs. What is not there is no error.
func (r *Runtime) Remove(ctx context.Context, id string) error {
	e, err := r.acquire(ctx, id)
	if e == nil || err != nil {
		return err
	}
	defer func() { <-e.turn }()
	if err := r.remove(ctx, e); err != nil {
		return fmt.Errorf("remove task %q: %w", id, err)
	}
	return nil
}

func (r *Runtime) remove(ctx context.Context, e *entry) error {
	if r.phase(e) == Running {
		if err := r.kill(ctx, e, "killed: removed while it ran"); err != nil {
			return err
		}
	}
	r.mu.Lock()
	watcher := e.watcher
	r.mu.Unlock()
	if watcher != nil { // it may be writing to the directory
		select {
		case <-watcher:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if err := errors.Join(r.cgroups.remove(e.spec.ID), netns.Delete(e.netns)); err != nil {
		return err
	}
	if err := removeDir(e.dir); err != nil {
		return err
	}
	if e.process != nil {
		e.process.close()
	}
	r.mu.Lock()
	delete(r.tasks, e.spec.ID)
	r.mu.Unlock()
	ring(r.changed)
	return nil
}
