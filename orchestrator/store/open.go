package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"netd"
	"netd/internal/durable"
)

// The files of a store. The key is put in place last: while it is newKeyFile the
// store was never open, and what there is may be thrown away.
const (
	logFile     = "raft.db"
	keyFile     = "raft.key"
	newKeyFile  = "raft.key.new"
	snapshotDir = "snapshots"

	lockTimeout = time.Second

	// peerTimeout is how long a follower waits for its leader, and a leader for a
	// majority. A single manager leads after once or twice this.
	peerTimeout = 450 * time.Millisecond
	// rpcTimeout bounds one exchange between managers.
	rpcTimeout = 10 * time.Second
)

// Open opens the store in c.Dir, or makes an empty one. Files that are damaged,
// incomplete or not this node's are an error that names the file; none of them
// is changed then.
func Open(c Config) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(c.Dir, snapshotDir), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	unlock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	s, err := openLocked(c)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	s.files = append(s.files, unlock)
	return s, nil
}

func openLocked(c Config) (*Store, error) {
	key, err := ensureFiles(c)
	if err != nil {
		return nil, err
	}
	aead, err := key.aead(nil, "log")
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	seal := sealer{aead}
	snapshots := &snapshotStore{dir: filepath.Join(c.Dir, snapshotDir), key: key}
	a, newest, err := checkFiles(c, seal, snapshots)
	if err != nil {
		return nil, err
	}
	if err := snapshots.clean(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	db, err := openLog(filepath.Join(c.Dir, logFile), seal, a)
	if err != nil {
		return nil, fmt.Errorf("open store: file %q: %w", filepath.Join(c.Dir, logFile), err)
	}
	if a.Last < newest {
		// A crash after a snapshot from another manager, before the log that it
		// replaces was emptied: what follows the snapshot could not be appended.
		if err := db.DeleteRange(a.First, a.Last); err != nil {
			return nil, errors.Join(fmt.Errorf("open store: %w", err), db.db.Close())
		}
	}
	transport := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: advertised{c.Layer, addr(c.Addr)}, MaxPool: 3, Timeout: rpcTimeout, Logger: raftLogger(c.Log),
	})
	s, err := start(c, parts{
		logs: db, stable: db, snapshots: snapshots, transport: transport, timeout: peerTimeout,
		files: []func() error{transport.Close, db.db.Close},
	})
	if err != nil {
		return nil, errors.Join(err, transport.Close(), db.db.Close())
	}
	return s, nil
}

// lockDir keeps a second daemon out. The lock is on the directory itself, so
// that taking it writes nothing; the kernel drops it when the process ends.
func lockDir(dir string) (unlock func() error, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = netd.Errorf(netd.ErrUnavailable, "open store: the directory %q is in use by another netd daemon: stop that one, or give this one a data directory of its own", dir)
	case err != nil:
		err = fmt.Errorf("open store: lock directory %q: %w", dir, err)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d.Close, nil
}

// ensureFiles returns the store's key, and makes an empty store where there is none.
func ensureFiles(c Config) (dataKey, error) {
	path := filepath.Join(c.Dir, keyFile)
	data, err := os.ReadFile(path)
	if err == nil {
		key, err := parseDataKey(data)
		if err != nil {
			return dataKey{}, corrupt(path, err)
		}
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return dataKey{}, fmt.Errorf("open store: %w", err)
	}
	if fresh, err := isFresh(c.Dir); err != nil {
		return dataKey{}, fmt.Errorf("open store: %w", err)
	} else if !fresh {
		return dataKey{}, corrupt(path, errors.New("it is missing, while other files of the store are there"))
	}
	key, err := create(c)
	if err != nil {
		return dataKey{}, fmt.Errorf("open store: make an empty one in %q: %w", c.Dir, err)
	}
	return key, nil
}

// isFresh tells whether dir holds no store, or one whose making was interrupted.
func isFresh(dir string) (bool, error) {
	if _, err := os.Lstat(filepath.Join(dir, newKeyFile)); err == nil {
		return true, nil
	}
	if _, err := os.Lstat(filepath.Join(dir, logFile)); err == nil {
		return false, nil
	}
	files, err := os.ReadDir(filepath.Join(dir, snapshotDir))
	return len(files) == 0, err
}

func create(c Config) (dataKey, error) {
	key := newDataKey()
	if err := durable.WriteFile(filepath.Join(c.Dir, newKeyFile), key.marshal(), 0o600); err != nil {
		return key, err
	}
	path := filepath.Join(c.Dir, logFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	aead, err := key.aead(nil, "log")
	if err != nil {
		return key, err
	}
	if err := createLog(path, sealer{aead}, c.NodeID); err != nil {
		return key, err
	}
	if err := os.Rename(filepath.Join(c.Dir, newKeyFile), filepath.Join(c.Dir, keyFile)); err != nil {
		return key, err
	}
	return key, syncDir(c.Dir)
}

// checkFiles reads all there is, and sees that it belongs together. It returns
// what the log says of itself and the index of the newest snapshot.
func checkFiles(c Config, seal sealer, snapshots *snapshotStore) (a about, newest uint64, err error) {
	path := filepath.Join(c.Dir, logFile)
	a, err = checkLog(path, seal)
	if err != nil {
		return about{}, 0, corrupt(path, err)
	}
	if a.Node != c.NodeID {
		return about{}, 0, netd.Errorf(netd.ErrInvalid, "open store: file %q belongs to node %s, this is node %s: give each node a data directory of its own", path, a.Node, c.NodeID)
	}
	names, err := snapshots.names()
	if err != nil {
		return about{}, 0, fmt.Errorf("open store: %w", err)
	}
	for _, name := range names {
		meta, err := snapshots.check(name[:len(name)-len(snapshotSuffix)])
		if err != nil {
			return about{}, 0, corrupt(filepath.Join(snapshots.dir, name), err)
		}
		newest = max(newest, meta.Index)
	}
	if a.First > newest+1 {
		return about{}, 0, corrupt(snapshots.dir, fmt.Errorf("the snapshot of the entries before %d is missing", a.First))
	}
	return a, newest, nil
}

func corrupt(path string, err error) error {
	return fmt.Errorf("open store: file %q is corrupt: %w; restore it from a backup or remove the node's data directory and join again", path, err)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
