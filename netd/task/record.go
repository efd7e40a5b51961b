package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"netd/internal/durable"
)

// The files of a task's directory. Each has one writer: taskFile the daemon,
// initFile and exitFile the task's init process; the daemon writes those two
// only in the place of an init process that did not.
const (
	taskFile = "task.json"
	initFile = "init.json"
	exitFile = "exit.json"
	logFile  = "log"
	etcDir   = "etc"
	rootDir  = "root" // where init mounts the task's root before it moves there
)

// recordVersion is written to task.json; another one is not understood.
const recordVersion = 1

// record is task.json: what the daemon must still know after a restart.
type record struct {
	Version int       `json:"version"`
	Spec    Spec      `json:"spec"`
	Created time.Time `json:"created"`
	// Begun is set before the init process is made: from then on there may be one.
	Begun    bool     `json:"begun,omitempty"`
	Health   Health   `json:"health"`
	Warnings []string `json:"warnings,omitempty"`
}

// initRecord is init.json. It appears at most once, by link(2): whoever makes it
// first, the init process or a daemon that gave the task up, decides whether the
// command is run.
type initRecord struct {
	identity
	Started time.Time `json:"started"`
	// GivenUp is set by a daemon that found a begun task without an init process.
	GivenUp bool `json:"given_up,omitempty"`
}

// exitRecord is exit.json.
type exitRecord struct {
	Code int    `json:"code"`
	Err  string `json:"err,omitempty"`
	// Failed: the command never ran, or nobody saw how it ended.
	Failed   bool      `json:"failed,omitempty"`
	Finished time.Time `json:"finished"`
}

// load reads one of the files into v; false when it does not exist. The files
// are written whole, so one that cannot be read was damaged by somebody else:
// the error names it and nothing is changed.
func load(dir, name string, v any) (bool, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read task file: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return false, fmt.Errorf("read task file %q: %w (restore it, or stop the daemon and run 'netd cleanup' to give up the tasks of this node)", path, err)
	}
	return true, nil
}

// store writes one of the files.
func store(dir, name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("write task file %q: %w", name, err)
	}
	return durable.WriteFile(filepath.Join(dir, name), append(data, '\n'), 0o600)
}

// loadRecord reads and checks task.json.
func loadRecord(dir string) (record, error) {
	var rec record
	found, err := load(dir, taskFile, &rec)
	if err != nil {
		return rec, err
	}
	path := filepath.Join(dir, taskFile)
	switch {
	case !found:
		return rec, fmt.Errorf("read task file %q: it is missing (restore it, or stop the daemon and run 'netd cleanup' to give up the tasks of this node)", path)
	case rec.Version != recordVersion:
		return rec, fmt.Errorf("read task file %q: version %d is not known to this netd, which knows %d", path, rec.Version, recordVersion)
	case rec.Spec.ID != filepath.Base(dir):
		return rec, fmt.Errorf("read task file %q: it is of task %q, not of its directory's", path, rec.Spec.ID)
	}
	return rec, nil
}

// createDir makes a task's directory, whole or not at all.
func createDir(dir string, rec record) (err error) {
	staged := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir))
	if err := os.RemoveAll(staged); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(staged)
		}
	}()
	for _, name := range []string{etcDir, rootDir} {
		if err := os.MkdirAll(filepath.Join(staged, name), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(staged, 0o700); err != nil {
		return err
	}
	for name, text := range rec.Spec.etcFiles() {
		if err := os.WriteFile(filepath.Join(staged, etcDir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := store(staged, taskFile, rec); err != nil {
		return err
	}
	return os.Rename(staged, dir)
}

// removeDir removes a task's directory; a crash leaves it whole or under a name
// that Open clears.
func removeDir(dir string) error {
	staged := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir))
	if err := os.RemoveAll(staged); err != nil {
		return err
	}
	if err := os.Rename(dir, staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.RemoveAll(staged)
}

// giveUp claims a begun task that has no init process yet, so that one which is
// still on its way ends without running the command. False: it was there first.
func giveUp(dir string, now time.Time) (bool, error) {
	const claim = initFile + ".given-up"
	if err := store(dir, claim, initRecord{Started: now, GivenUp: true}); err != nil {
		return false, err
	}
	defer os.Remove(filepath.Join(dir, claim))
	err := os.Link(filepath.Join(dir, claim), filepath.Join(dir, initFile))
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}
