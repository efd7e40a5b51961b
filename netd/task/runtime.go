package task

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"netd/internal/netns"
)

// Config says where a Runtime keeps its things.
type Config struct {
	DataDir string // tasks live in DataDir/tasks
	RunDir  string // network namespaces are pinned in RunDir/netns
	// Binary is the netd executable; "" means the running one.
	Binary string
	// Log gets what cannot be returned to anyone; nil discards it.
	Log *slog.Logger
}

// Runtime holds this node's tasks.
type Runtime struct {
	config  Config
	cgroups cgroups
	changed chan struct{} // capacity 1
	wake    chan struct{} // capacity 1: a task began to run

	mu    sync.Mutex
	tasks map[string]*entry
}

// entry is one task.
type entry struct {
	spec       Spec
	dir, netns string
	// turn holds one token: whoever takes it may change the task.
	turn     chan struct{}
	finished sync.Once

	// Guarded by Runtime.mu from here on.
	status  Status
	began   record        // as in task.json
	process *process      // from the start on
	watcher chan struct{} // closed when the watching goroutine has ended
	// stopping is when the stop signal was sent; killed says why SIGKILL was.
	stopping time.Time
	killed   string
}

// Open returns a Runtime that knows all tasks in DataDir, those that still run
// and those that ended meanwhile. It refuses damaged files, and changes none.
func Open(c Config) (*Runtime, error) {
	c.Binary = cmp.Or(c.Binary, "/proc/self/exe")
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r := &Runtime{
		config: c, cgroups: findCgroups(),
		changed: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		tasks: map[string]*entry{},
	}
	if err := os.MkdirAll(r.dir(""), 0o700); err != nil {
		return nil, fmt.Errorf("open task directory: %w", err)
	}
	found, err := os.ReadDir(r.dir(""))
	if err != nil {
		return nil, fmt.Errorf("open task directory: %w", err)
	}
	for _, item := range found {
		if strings.HasPrefix(item.Name(), ".") { // half made or half removed
			if err := os.RemoveAll(r.dir(item.Name())); err != nil {
				r.Close()
				return nil, fmt.Errorf("clear task directory: %w", err)
			}
			continue
		}
		e, err := r.adopt(item.Name())
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("adopt task %q: %w", item.Name(), err)
		}
		r.tasks[e.spec.ID] = e
	}
	return r, nil
}

func (r *Runtime) dir(id string) string { return filepath.Join(r.config.DataDir, "tasks", id) }

func (r *Runtime) netns(id string) string {
	return filepath.Join(r.config.RunDir, "netns", pinPrefix+id)
}

func (r *Runtime) newEntry(rec record) *entry {
	id := rec.Spec.ID
	e := &entry{
		spec: rec.Spec, dir: r.dir(id), netns: r.netns(id),
		turn: make(chan struct{}, 1), began: rec,
	}
	e.status = Status{
		ID: id, Name: rec.Spec.Name, Phase: Created, Warnings: rec.Warnings, Health: rec.Health,
		NetNS: e.netns, Log: filepath.Join(e.dir, logFile),
	}
	return e
}

// adopt finds out how far the task of a directory is.
func (r *Runtime) adopt(id string) (*entry, error) {
	rec, err := loadRecord(r.dir(id))
	if err != nil {
		return nil, err
	}
	e := r.newEntry(rec)
	ended, err := load(e.dir, exitFile, &exitRecord{})
	if err != nil {
		return nil, err
	}
	if rec.Begun {
		if err := r.findInit(e, ended); err != nil {
			return nil, err
		}
	}
	switch {
	case e.process != nil: // if it has just ended, the watcher will see that at once
		e.status.Phase, e.status.Pid = Running, e.process.pid
	case rec.Begun || ended:
		r.finish(e)
	default:
		return e, netns.Create(e.netns)
	}
	return e, nil
}

// findInit looks for the init process of a task that was begun.
func (r *Runtime) findInit(e *entry, ended bool) error {
	var first initRecord
	found, err := load(e.dir, initFile, &first)
	if err == nil && !found && !ended {
		// The daemon was killed in the middle of a start; the init process may be on its way.
		if _, err = giveUp(e.dir, time.Now()); err == nil {
			_, err = load(e.dir, initFile, &first)
		}
	}
	if err != nil || first.GivenUp || first.Pid == 0 {
		return err
	}
	e.status.Started = first.Started
	e.process, err = openProcess(first.identity)
	return err
}

// Close lets go of all tasks and leaves them running. Run must have returned.
func (r *Runtime) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.tasks {
		if e.process != nil {
			e.process.close()
		}
	}
	r.tasks = map[string]*entry{}
	return nil
}

// Changed rings after every change of a status. One reader.
func (r *Runtime) Changed() <-chan struct{} { return r.changed }

func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

// Check returns why the runtime cannot run s; the text is for the user.
func (r *Runtime) Check(s Spec) error { return s.check() }

// List returns the status of every task, sorted by ID.
func (r *Runtime) List() []Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Status, 0, len(r.tasks))
	for _, e := range r.tasks {
		if e.status.Phase != "" {
			list = append(list, e.status)
		}
	}
	slices.SortFunc(list, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
	return list
}

// Run watches the tasks until ctx ends: it notices their ends and checks their
// health. It leaves them running.
func (r *Runtime) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	for {
		for _, e := range r.unwatched() {
			watching.Go(func() { r.watch(ctx, e) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
	}
}

// unwatched claims the running tasks that have no watcher.
func (r *Runtime) unwatched() []*entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*entry
	for _, e := range r.tasks {
		if e.status.Phase == Running && e.watcher == nil {
			e.watcher = make(chan struct{})
			list = append(list, e)
		}
	}
	return list
}

func (r *Runtime) watch(ctx context.Context, e *entry) {
	ctx, cancel := context.WithCancel(ctx)
	var checking sync.WaitGroup
	checking.Go(func() { r.checkHealth(ctx, e) })
	err := e.process.wait(ctx)
	if err != nil && ctx.Err() == nil {
		r.config.Log.Error("watch task", "task", e.spec.ID, "err", err)
	}
	cancel()
	if err == nil {
		r.finish(e)
	}
	checking.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	close(e.watcher)
	e.watcher = nil
}

// update changes a task's status and rings.
func (r *Runtime) update(e *entry, change func(*Status)) {
	r.mu.Lock()
	change(&e.status)
	r.mu.Unlock()
	ring(r.changed)
}

// finish takes note of the end of a task whose init process is dead, or never
// was. The first call does it, others wait for that.
func (r *Runtime) finish(e *entry) {
	e.finished.Do(func() {
		r.mu.Lock()
		process, killed := e.process, e.killed
		r.mu.Unlock()
		if process != nil {
			process.reap()
		}
		var exit exitRecord
		found, err := load(e.dir, exitFile, &exit)
		if err != nil {
			exit = exitRecord{Code: unknownExit, Err: err.Error(), Failed: true, Finished: time.Now()}
		}
		if !found && err == nil {
			exit = unwitnessed(killed, time.Now())
			err = store(e.dir, exitFile, exit)
		}
		if exit.Code == unknownExit && r.cgroups.outOfMemory(e.spec.ID) {
			exit.Err = fmt.Sprintf("killed: out of memory (the limit is %d bytes)", e.spec.MemoryLimit)
		}
		r.cgroups.kill(e.spec.ID)
		if err = errors.Join(err, r.cgroups.remove(e.spec.ID)); err != nil {
			r.config.Log.Error("finish task", "task", e.spec.ID, "err", err)
		}
		r.update(e, func(s *Status) {
			s.Phase, s.Pid, s.ExitCode, s.Err, s.Finished = Exited, 0, exit.Code, exit.Err, exit.Finished
			if exit.Failed {
				s.Phase = Failed
			}
		})
	})
}

// unknownExit is the status of a process that SIGKILL ended, and of one that
// nobody saw end.
const unknownExit = 128 + 9

// unwitnessed words the end of an init process that left no exit.json. Pure.
func unwitnessed(killed string, now time.Time) exitRecord {
	if killed != "" {
		return exitRecord{Code: unknownExit, Err: killed, Finished: now}
	}
	return exitRecord{
		Code: unknownExit, Failed: true, Finished: now,
		Err: "the task's init process is gone and did not say how the command ended: it was killed, or the node was restarted",
	}
}
