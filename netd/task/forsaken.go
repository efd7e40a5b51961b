package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// pinPrefix begins the name of each task's pinned network namespace.
const pinPrefix = "task-"

// RemoveForsaken removes the tasks that Open cannot take over, since their files
// are damaged or gone, by what the kernel shows of them, and returns their IDs.
// Nobody else may use the directories: no daemon may run.
func RemoveForsaken(ctx context.Context, c Config) (ids []string, err error) {
	r := &Runtime{config: c, cgroups: findCgroups()}
	forsaken, err := r.forsaken()
	var errs []error
	for _, id := range forsaken {
		if err := r.removeForsaken(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("remove task %q, whose files are damaged or gone: %w", id, err))
			continue
		}
		ids = append(ids, id)
	}
	return ids, errors.Join(append(errs, err)...)
}

// forsaken lists the tasks with files that cannot be read, and those of which
// nothing but the pin is left.
func (r *Runtime) forsaken() ([]string, error) {
	dirs, err := os.ReadDir(r.dir(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open task directory: %w", err)
	}
	var ids []string
	whole := map[string]bool{}
	for _, d := range dirs {
		id := d.Name()
		if strings.HasPrefix(id, ".") || !idPattern.MatchString(id) {
			continue
		}
		whole[id] = readable(r.dir(id))
		if !whole[id] {
			ids = append(ids, id)
		}
	}
	pins, err := netns.List(filepath.Dir(r.netns("")))
	for _, name := range pins {
		if id, ok := strings.CutPrefix(name, pinPrefix); ok && !whole[id] && idPattern.MatchString(id) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), err
}

func readable(dir string) bool {
	_, err := loadRecord(dir)
	_, initErr := load(dir, initFile, &initRecord{})
	_, exitErr := load(dir, exitFile, &exitRecord{})
	return errors.Join(err, initErr, exitErr) == nil
}

func (r *Runtime) removeForsaken(ctx context.Context, id string) error {
	inits, err := r.findForsaken(id)
	if err != nil {
		return err
	}
	for _, p := range inits {
		defer p.close()
		// Its own signal and grace period are lost with its files.
		err := p.signal(unix.SIGTERM)
		graceful, cancel := context.WithTimeout(ctx, Spec{}.stopGrace())
		ended := p.wait(graceful)
		cancel()
		if ended != nil && ctx.Err() == nil {
			err = errors.Join(err, p.signal(unix.SIGKILL), p.wait(ctx))
		}
		if err = errors.Join(err, context.Cause(ctx)); err != nil {
			return err
		}
		p.reap()
	}
	r.cgroups.kill(id)
	if err := errors.Join(r.cgroups.remove(id), netns.Delete(r.netns(id))); err != nil {
		return err
	}
	return removeDir(r.dir(id))
}

// findForsaken returns the init processes of the task. One that only says that it
// is the task's, and is neither in its namespace nor in its cgroup, is no proof:
// it is left alone and an error.
func (r *Runtime) findForsaken(id string) (found []*process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !isInit(e.Name(), id) {
			continue
		}
		who, err := identify(e.Name())
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has just ended
		}
		var p *process
		if err == nil {
			p, err = openProcess(who)
		}
		switch {
		case err != nil:
		case p == nil || !isInit(e.Name(), id): // the pid was given to another meanwhile
			if p != nil {
				p.close()
			}
			continue
		case r.holds(e.Name(), id):
			found = append(found, p)
			continue
		default:
			p.close()
			err = fmt.Errorf("process %d says that it is the task's but is not in its network namespace; if it is, kill it and try again", pid)
		}
		for _, p := range found {
			p.close()
		}
		return nil, err
	}
	return found, nil
}

// isInit says whether the process calls itself the task's init process and is the
// first process of a pid namespace of its own.
func isInit(pid, id string) bool {
	line, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil || string(line) != strings.Join([]string{"netd", InitCommand, id, ""}, "\x00") {
		return false
	}
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	for text := range strings.Lines(string(status)) {
		if pids, ok := strings.CutPrefix(text, "NSpid:"); ok {
			fields := strings.Fields(pids)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
}

// holds says whether the kernel shows the process as the task's: in its pinned
// network namespace or in its cgroup.
func (r *Runtime) holds(pid, id string) bool {
	var pinned, its unix.Stat_t
	if netns.Exists(r.netns(id)) && unix.Stat(r.netns(id), &pinned) == nil &&
		unix.Stat("/proc/"+pid+"/ns/net", &its) == nil && pinned.Dev == its.Dev && pinned.Ino == its.Ino {
		return true
	}
	group, _ := os.ReadFile("/proc/" + pid + "/cgroup")
	return r.cgroups != "" && strings.HasSuffix(strings.TrimSpace(string(group)), "/"+groupsName+"/"+id)
}
