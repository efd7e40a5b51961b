package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identity tells a process from every other that ever had its pid.
type identity struct {
	Pid int `json:"pid"`
	// Start is the kernel's start time in clock ticks since boot (proc(5), stat field 22).
	Start uint64 `json:"start"`
	// Boot is the kernel's boot ID: after a reboot, pid and ticks may repeat.
	Boot string `json:"boot"`
}

// identify reads the identity of a pid, or of the caller as /proc sees it ("self").
func identify(pid string) (identity, error) {
	data, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return identity{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return identity{}, err
	}
	// The command's name, in parentheses, may itself hold spaces and parentheses.
	text := string(data)
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	const startField = 22 - 3 // the fields after the name begin with the third
	if len(fields) <= startField {
		return identity{}, fmt.Errorf("read /proc/%s/stat: too short", pid)
	}
	id := identity{Boot: strings.TrimSpace(string(boot))}
	number, _, _ := strings.Cut(text, " ")
	if id.Pid, err = strconv.Atoi(number); err != nil {
		return identity{}, fmt.Errorf("read /proc/%s/stat: %w", pid, err)
	}
	if id.Start, err = strconv.ParseUint(fields[startField], 10, 64); err != nil {
		return identity{}, fmt.Errorf("read /proc/%s/stat: %w", pid, err)
	}
	return id, nil
}

// process is a handle on a task's init process that cannot come to mean another
// one: a pidfd, watched by the Go runtime's poller. It may or may not be a child.
type process struct {
	pid  int
	file *os.File
}

// newProcess takes over a pidfd.
func newProcess(pid, pidfd int) (*process, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return &process{pid: pid, file: os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// openProcess returns a handle on the process of that identity; nil if it is gone.
func openProcess(want identity) (*process, error) {
	pidfd, err := unix.PidfdOpen(want.Pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", want.Pid, err)
	}
	p, err := newProcess(want.Pid, pidfd)
	if err != nil {
		return nil, err
	}
	// Looked at after the open: now the pid cannot be given away unnoticed.
	have, err := identify(strconv.Itoa(want.Pid))
	if err != nil || have != want {
		p.close()
		return nil, nil
	}
	return p, nil
}

func (p *process) close() { p.file.Close() }

// signal sends sig; a process that is gone is no error.
func (p *process) signal(sig syscall.Signal) error {
	var sent error
	err := p.control(func(fd int) { sent = unix.PidfdSendSignal(fd, sig, nil, 0) })
	if err = errors.Join(err, sent); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	return nil
}

// wait returns nil once the process is dead. For a pid namespace's init that
// means the whole namespace is empty (kernel/pid_namespace.c, zap_pid_ns_processes).
func (p *process) wait(ctx context.Context) error {
	// A descriptor of its own for each waiter: one os.File lets one reader wait.
	dup := -1
	var dupErr error
	err := p.control(func(fd int) { dup, dupErr = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	file := os.NewFile(uintptr(dup), "pidfd")
	defer file.Close()
	defer context.AfterFunc(ctx, func() { _ = file.SetReadDeadline(time.Unix(1, 0)) })()
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	if err := raw.Read(exited); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	return nil
}

// exited polls a pidfd, which is readable once its process is dead.
func exited(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// reap frees the process's entry in the process table if it is a child of ours.
func (p *process) reap() {
	_ = p.control(func(fd int) {
		_ = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil)
	})
}

func (p *process) control(fn func(fd int)) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { fn(int(fd)) })
}
