// Package task runs the tasks of this node as plain processes: the embedded
// runtime for hosts without a Docker Engine.
//
// It owns, for each task: one directory (<data>/tasks/<id>), one pinned network
// namespace (<run>/netns/task-<id>), one cgroup where there is a cgroup2
// hierarchy (netd/<id>), and one init process (netd task-init) in mount, pid, uts
// and ipc namespaces of its own, which starts the command and writes down how it
// ended. A task runs once. It outlives the daemon, which holds no pipe to it and
// finds it again by pid and start time.
//
// It does NOT connect the network namespace to anything (package vxlan does),
// decide what runs or when to restart (package node and the managers do), pull
// images (the only one is netd/echo, the netd binary itself), or rotate logs. The
// task's root user is the host's: capabilities are cut to Docker's default set
// without MKNOD and no_new_privs is set, but there is no seccomp filter and no
// user namespace yet.
package task

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"netd"
)

// Spec is what to run. Only ID and Image are required.
type Spec struct {
	ID string
	// Name is what the task is called in the swarm, such as web.1.<id>; the
	// command sees it as NETD_TASK.
	Name  string
	Image string
	// Command replaces the image's entrypoint, Args its arguments, as in Docker.
	Command, Args []string
	// Env holds KEY=VALUE; a KEY alone takes a default variable away.
	Env []string
	// Dir is the working directory, made when it is missing; "" means /.
	Dir string
	// Hostname is the first 12 characters of the ID when empty.
	Hostname string
	Labels   map[string]string
	// StopSignal is a name or number as in Docker; "" means SIGTERM.
	StopSignal string
	// StopGrace is how long Stop waits before it kills: zero means 10 s, less than
	// zero not at all.
	StopGrace time.Duration
	// Health overrides the image's own check; nil keeps it.
	Health *HealthCheck
	// DNS, DNSSearch and DNSOptions become /etc/resolv.conf.
	DNS                   []netip.Addr
	DNSSearch, DNSOptions []string
	// Hosts are further lines of /etc/hosts: "10.0.0.5 name alias".
	Hosts []string
	// Limits; zero means none.
	MemoryLimit int64 // bytes
	NanoCPUs    int64 // 1e9 is one CPU
	PidsLimit   int64 // processes and threads
}

// HealthCheck says how to find out that a task works. Zero fields mean Docker's
// defaults, or the image's where Test is empty.
type HealthCheck struct {
	// Test is empty (the image's own), ["NONE"] or ["CMD", argument...].
	Test              []string
	Interval, Timeout time.Duration
	// StartPeriod is how long failures do not count, as long as no check succeeded;
	// StartInterval is the interval in that time.
	StartPeriod, StartInterval time.Duration
	// Retries is how many failures in a row make a task unhealthy.
	Retries int
}

// Phase is how far a task is; it only moves forward.
type Phase string

const (
	// Created: the directory and the network namespace exist, nothing runs.
	Created Phase = "created"
	// Running: the command was started.
	Running Phase = "running"
	// Exited: the command ended or was stopped; ExitCode says how.
	Exited Phase = "exited"
	// Failed: the command could not be started, or ended without a witness.
	Failed Phase = "failed"
)

// Health is what the checks say of a task. An ended task keeps its last one.
type Health string

const (
	HealthNone      Health = "none" // there is no check
	HealthStarting  Health = "starting"
	HealthHealthy   Health = "healthy"
	HealthUnhealthy Health = "unhealthy"
)

// Status is what is known of a task.
type Status struct {
	ID, Name string
	Phase    Phase
	// Pid is the init process, while it runs.
	Pid int
	// ExitCode is the command's, or 128 + the signal that ended it.
	ExitCode int
	// Err says why a task failed, was killed, or ended by a signal.
	Err string
	// Warnings name limits that this node could not apply.
	Warnings []string
	Health   Health
	// HealthErr is the output of the last check when that failed.
	HealthErr string
	// NetNS is the path of the task's network namespace.
	NetNS string
	// Log is the path of the file that the command's output goes to.
	Log               string
	Started, Finished time.Time
}

const defaultStopGrace = 10 * time.Second

var (
	idPattern   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$`)
	hostPattern = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?$`)
)

// check returns why s cannot run here. Pure.
func (s Spec) check() error {
	if !idPattern.MatchString(s.ID) {
		return netd.Errorf(netd.ErrInvalid, "task id %q: want letters, digits, _ . - and at most 64 of them", s.ID)
	}
	if err := checkImage(s.Image); err != nil {
		return err
	}
	if s.Hostname != "" && !hostPattern.MatchString(s.Hostname) {
		return netd.Errorf(netd.ErrInvalid, "hostname %q: want letters, digits, - . and at most 63 of them", s.Hostname)
	}
	if s.Dir != "" && !strings.HasPrefix(s.Dir, "/") {
		return netd.Errorf(netd.ErrInvalid, "working directory %q: want an absolute path", s.Dir)
	}
	if _, err := parseSignal(s.StopSignal); err != nil {
		return err
	}
	if s.MemoryLimit < 0 || s.NanoCPUs < 0 || s.PidsLimit < 0 {
		return netd.Errorf(netd.ErrInvalid, "limits must not be negative")
	}
	if i := slices.IndexFunc(slices.Concat(s.Env, s.Command, s.Args), hasZero); i >= 0 {
		return netd.Errorf(netd.ErrInvalid, "a variable or argument contains a zero byte")
	}
	for _, line := range s.Hosts {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.ContainsAny(line, "\n\r") {
			return netd.Errorf(netd.ErrInvalid, "host entry %q: want \"ADDRESS NAME...\"", line)
		}
		if _, err := netip.ParseAddr(fields[0]); err != nil {
			return netd.Errorf(netd.ErrInvalid, "host entry %q: %q is not an address", line, fields[0])
		}
	}
	for _, word := range slices.Concat(s.DNSSearch, s.DNSOptions) {
		if word == "" || strings.ContainsAny(word, " \t\r\n") {
			return netd.Errorf(netd.ErrInvalid, "DNS search domain or option %q: want one word", word)
		}
	}
	return s.Health.check()
}

func hasZero(s string) bool { return strings.IndexByte(s, 0) >= 0 }

func (s Spec) hostname() string {
	if s.Hostname != "" {
		return s.Hostname
	}
	return s.ID[:min(len(s.ID), 12)]
}

func (s Spec) stopGrace() time.Duration {
	if s.StopGrace == 0 {
		return defaultStopGrace
	}
	return max(s.StopGrace, 0)
}
