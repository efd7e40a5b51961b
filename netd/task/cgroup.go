package task

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const (
	// groupsName is the parent of every task's cgroup. Daemons that share a machine
	// share it: task IDs are unique.
	groupsName = "netd"
	// cpuPeriod is the kernel's default period of cpu.max, in microseconds.
	cpuPeriod = 100_000
	// cpuMinQuota is the least quota that the kernel takes, in microseconds.
	cpuMinQuota = 1000
	// initThreads is allowed on top of a task's pids limit: the limit is for the
	// command, but the kernel counts the threads of its init process too.
	initThreads = 12
)

// cgroups is the cgroup2 hierarchy of this machine; "" where there is none.
type cgroups string

// findCgroups returns the first cgroup2 mount in which a cgroup can be made.
func findCgroups() cgroups {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return ""
	}
	for _, m := range mounts {
		var st unix.Statfs_t // another mount may lie on top of this one
		if unix.Statfs(m.Mountpoint, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		parent := filepath.Join(m.Mountpoint, groupsName)
		if err := os.Mkdir(parent, 0o755); err == nil || errors.Is(err, fs.ErrExist) {
			_ = unix.Rmdir(parent) // busy while there are tasks
			return cgroups(m.Mountpoint)
		}
	}
	return ""
}

func (c cgroups) path(id string) string { return filepath.Join(string(c), groupsName, id) }

// create makes the task's cgroup with its limits and says what could not be
// done: a task runs without. The file is the cgroup's directory, for clone3; nil
// where there is none.
func (c cgroups) create(s Spec) (dir *os.File, warnings []string) {
	dir, missing := c.makeDir(s.ID)
	for _, l := range s.limits() {
		err := missing
		if err == nil {
			err = c.limit(s.ID, l)
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%s is not applied: %v", l.what, err))
		}
	}
	return dir, warnings
}

func (c cgroups) makeDir(id string) (*os.File, error) {
	if c == "" {
		return nil, errors.New("this node has no usable cgroup2 hierarchy")
	}
	var err error
	for range 5 { // the parent goes with its last task, which may be just now
		if err = os.MkdirAll(c.path(id), 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return os.Open(c.path(id))
}

// limit is one value in one file of a cgroup controller.
type limit struct{ what, controller, file, value string }

// limits words the spec's limits for the kernel
// (Documentation/admin-guide/cgroup-v2.rst). Pure.
func (s Spec) limits() []limit {
	var out []limit
	if s.MemoryLimit > 0 {
		out = append(out, limit{"memory limit", "memory", "memory.max", strconv.FormatInt(s.MemoryLimit, 10)})
	}
	if s.NanoCPUs > 0 {
		quota := max(s.NanoCPUs/(1e9/cpuPeriod), cpuMinQuota)
		out = append(out, limit{"CPU limit", "cpu", "cpu.max", fmt.Sprintf("%d %d", quota, cpuPeriod)})
	}
	if s.PidsLimit > 0 {
		out = append(out, limit{"process limit", "pids", "pids.max", strconv.FormatInt(s.PidsLimit+initThreads, 10)})
	}
	return out
}

// limit writes one limit, after passing its controller down from the root.
func (c cgroups) limit(id string, l limit) error {
	for _, dir := range []string{string(c), filepath.Join(string(c), groupsName)} {
		have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return err
		}
		if !slices.Contains(strings.Fields(string(have)), l.controller) {
			return fmt.Errorf("the cgroup2 hierarchy has no %s controller", l.controller)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+l.controller), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(c.path(id), l.file), []byte(l.value), 0o644)
}

// open returns the task's cgroup; nil where it has none.
func (c cgroups) open(id string) *os.File {
	if c == "" {
		return nil
	}
	dir, err := os.Open(c.path(id))
	if err != nil {
		return nil
	}
	return dir
}

// kill ends every process of the task's cgroup at once (kernel 5.14; on an older
// one the pid namespace's end does the same).
func (c cgroups) kill(id string) {
	if c == "" {
		return
	}
	// Where it does not work, removing the cgroup says so.
	_ = os.WriteFile(filepath.Join(c.path(id), "cgroup.kill"), []byte("1"), 0)
}

// outOfMemory says whether the kernel killed a process of the task for its limit.
func (c cgroups) outOfMemory(id string) bool {
	if c == "" {
		return false
	}
	data, _ := os.ReadFile(filepath.Join(c.path(id), "memory.events"))
	for line := range strings.Lines(string(data)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(count) != "0"
		}
	}
	return false
}

// remove deletes the task's cgroup, and the common parent with the last one. A
// process that was just killed keeps its cgroup busy for a moment.
func (c cgroups) remove(id string) error {
	if c == "" {
		return nil
	}
	const patience = 2 * time.Second
	retry := time.NewTicker(2 * time.Millisecond)
	defer retry.Stop()
	for begin := time.Now(); ; <-retry.C {
		err := unix.Rmdir(c.path(id))
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			_ = unix.Rmdir(filepath.Join(string(c), groupsName)) // busy while others use it
			return nil
		case !errors.Is(err, unix.EBUSY) || time.Since(begin) > patience:
			return fmt.Errorf("remove cgroup %q: %w", c.path(id), err)
		}
		c.kill(id)
	}
}
