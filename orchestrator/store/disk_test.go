package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/internal/nettest"
)

// loopback is a stream layer without TLS.
type loopback struct{ net.Listener }

func (loopback) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(to), timeout)
}

func config(t testing.TB, dir string) Config {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return Config{Dir: dir, NodeID: "n1", Addr: "127.0.0.1:1", Layer: loopback{l}, Log: quiet()}
}

// running is a store whose Run has been started.
type running struct {
	*Store
	stop context.CancelFunc
	done chan error
}

func run(t testing.TB, s *Store) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	r := &running{s, cancel, done}
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() { r.end(t) })
	return r
}

// end stops the store and returns when its files are closed.
func (r *running) end(t testing.TB) {
	t.Helper()
	if r.done == nil {
		return
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Errorf("run: %v", err)
	}
	r.done = nil
}

func (r *running) leads(t testing.TB) {
	t.Helper()
	nettest.Eventually(t, 10*time.Second, "leadership", func() error {
		if !r.Leading() {
			return errors.New("it does not lead")
		}
		return nil
	})
}

func open(t testing.TB, dir string) *running {
	t.Helper()
	s, err := Open(config(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return run(t, s)
}

// fill makes a store with a few objects and a snapshot in the midst of them.
func fill(t *testing.T, dir string) {
	t.Helper()
	r := open(t, dir)
	if err := r.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	r.leads(t)
	for i := range 10 {
		mustUpdate(t, r.Store, func(tx *Tx) error {
			return tx.Put(&swarm.Task{ID: fmt.Sprintf("task%02d", i), ServiceID: "a", Slot: i + 1, NodeID: "n1"})
		})
		if i == 5 {
			if err := r.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustUpdate(t, r.Store, func(tx *Tx) error {
		return errors.Join(
			tx.Put(&swarm.Secret{ID: "s", Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: "canary-name"}, Data: []byte("canary-data")}}),
			tx.Put(&Cluster{ID: "c", CAKey: []byte("canary-key"), GossipKeys: [][]byte{[]byte("canary-gossip")}}),
			tx.Put(service("a", "canary-service")))
	})
	r.end(t)
}

// dump is everything in the store, as one value.
func dump(s *Store) map[kind][]any {
	all := make(map[kind][]any)
	for _, k := range kinds() {
		for _, r := range s.View().records(k, indexID) {
			all[k] = append(all[k], r.obj)
		}
	}
	return all
}

func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// contents reads all files under dir.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		all[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A restart finds every object with its version and stamps, from snapshot and
// log, leads within a second or so, and goes on counting.
func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir)
	r := open(t, dir)
	start := time.Now()
	r.leads(t)
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("a single manager led after %v", took)
	}
	before := dump(r.Store)
	if n := len(r.View().Tasks()); n != 10 {
		t.Errorf("%d tasks, want 10", n)
	}
	if got := r.View().Cluster(); got == nil || string(got.CAKey) != "canary-key" {
		t.Errorf("cluster: %+v", got)
	}
	newest := r.View().Service("a").Version.Index
	mustUpdate(t, r.Store, func(tx *Tx) error { return tx.Put(service("b", "new")) })
	if got := r.View().Service("b").Version.Index; got <= newest {
		t.Errorf("version %d after %d", got, newest)
	}
	mustUpdate(t, r.Store, func(tx *Tx) error { return tx.Delete(service("b", "")) })
	r.end(t)
	again := open(t, dir)
	again.leads(t)
	if diff := cmp.Diff(before, dump(again.Store), addrs()); diff != "" {
		t.Errorf("after one more restart:\n%s", diff)
	}
	if err := again.Bootstrap(); err == nil {
		t.Error("a store with a state was bootstrapped again")
	}
}

// Nothing that the objects say can be read in the store's files, and nobody but
// root can read them.
func TestSealedAtRest(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir)
	for path, data := range contents(t, dir) {
		for _, secret := range []string{"canary", "task0", "Y2FuYXJ5"} {
			if strings.Contains(data, secret) {
				t.Errorf("%s holds %q in plain text", path, secret)
			}
		}
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}

// A second daemon on the directory gets an error that says so, and the first one
// does not notice.
func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	_, err := Open(config(t, dir))
	if !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), "in use by another netd") {
		t.Errorf("second store: %v", err)
	}
	r.end(t)
	open(t, dir)
}

// Files that are damaged, missing or another node's are refused with an error
// that names the file and says what to do, and no byte is changed.
func TestDamagedFilesAreRefused(t *testing.T) {
	one := func(pattern string) func(t *testing.T, dir string) string {
		return func(t *testing.T, dir string) string {
			found, _ := filepath.Glob(filepath.Join(dir, pattern))
			if len(found) != 1 {
				t.Fatalf("%s: %v", pattern, found)
			}
			return found[0]
		}
	}
	log, key, snap := one(logFile), one(keyFile), one("snapshots/*.snapshot")
	flip := func(at int) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			data, _ := os.ReadFile(path)
			if at < 0 {
				at += len(data)
			}
			data[at] ^= 1
			replace(t, path, data)
		}
	}
	cut := func(to int64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, to); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, path string) { os.Remove(path) }
	filled := t.TempDir()
	fill(t, filled)
	for name, tc := range map[string]struct {
		file   func(*testing.T, string) string
		damage func(*testing.T, string)
		names  string
	}{
		"log head":         {log, flip(20), logFile},
		"log second head":  {log, flip(4096 + 40), logFile},
		"log cut":          {log, cut(3*4096 + 5), logFile},
		"log empty":        {log, cut(0), logFile},
		"log missing":      {log, remove, logFile},
		"log foreign":      {log, func(t *testing.T, p string) { replace(t, p, bytes.Repeat([]byte("hello"), 9999)) }, logFile},
		"key changed":      {key, flip(30), keyFile},
		"key empty":        {key, cut(0), keyFile},
		"key missing":      {key, remove, keyFile},
		"snapshot changed": {snap, flip(-20), snapshotDir},
		"snapshot cut":     {snap, cut(60), snapshotDir},
		"snapshot empty":   {snap, cut(0), snapshotDir},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(filled)); err != nil {
				t.Fatal(err)
			}
			tc.damage(t, tc.file(t, dir))
			before := contents(t, dir)
			_, err := Open(config(t, dir))
			if err == nil {
				t.Fatal("it was opened")
			}
			for _, want := range []string{"open store: file ", tc.names, "is corrupt", "restore it from a backup or remove the node's data directory and join again"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
			if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
				t.Errorf("files changed:\n%.500s", diff)
			}
		})
	}
}

// A flipped bit anywhere in the log is either found or changes nothing.
func TestFlippedBits(t *testing.T) {
	dir := t.TempDir()
	fill(t, dir)
	r := open(t, dir)
	r.leads(t)
	want := dump(r.Store)
	r.end(t)
	path := filepath.Join(dir, logFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := os.ReadFile(filepath.Join(dir, keyFile))
	k, err := parseDataKey(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, _ := k.aead(nil, "log")
	a, err := checkLog(path, sealer{aead})
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	found, opened := 0, 0
	for i := range 1000 {
		data := bytes.Clone(whole)
		at := rnd.IntN(len(data))
		data[at] ^= 1 << rnd.IntN(8)
		replace(t, path, data)
		b, err := checkLog(path, sealer{aead})
		if err != nil {
			found++
			continue
		}
		if !cmp.Equal(a, b) {
			t.Errorf("byte %d: %+v became %+v", at, a, b)
		}
		if opened*300 > i { // leading takes most of a second
			continue
		}
		opened++
		r := open(t, dir)
		r.leads(t)
		if diff := cmp.Diff(want, dump(r.Store), addrs()); diff != "" {
			t.Errorf("byte %d:\n%s", at, diff)
		}
		r.end(t)
	}
	if found < 20 {
		t.Errorf("only %d flips found", found)
	}
}

// A store of another node is refused by name.
func TestOtherNodesStore(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).end(t)
	c := config(t, dir)
	c.NodeID = "n2"
	if _, err := Open(c); !errors.Is(err, netd.ErrInvalid) || !strings.Contains(err.Error(), "belongs to node n1") {
		t.Errorf("error %v", err)
	}
}

// A crash while an empty store was made leaves nothing in the way of the next start.
func TestInterruptedCreation(t *testing.T) {
	dir := t.TempDir()
	open(t, dir).end(t)
	if err := os.Rename(filepath.Join(dir, keyFile), filepath.Join(dir, newKeyFile)); err != nil {
		t.Fatal(err)
	}
	replace(t, filepath.Join(dir, logFile), []byte("the beginning"))
	r := open(t, dir)
	if err := r.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	r.leads(t)
}

// Large entries lead to a snapshot long before raft would take one, and only the
// newest two are kept.
func TestLargeLogIsShortened(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir)
	r.fsm.limit = 1 << 20
	if err := r.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	r.leads(t)
	seen := map[string]bool{}
	for round := 1; round <= 3; round++ {
		for range 2 {
			mustUpdate(t, r.Store, func(tx *Tx) error {
				return tx.Put(&swarm.Config{ID: "c", Spec: swarm.ConfigSpec{Data: make([]byte, 1<<19)}})
			})
		}
		nettest.Eventually(t, 20*time.Second, "a snapshot", func() error {
			found, err := filepath.Glob(filepath.Join(dir, snapshotDir, "*"+snapshotSuffix))
			for _, path := range found {
				seen[path] = true
			}
			if err == nil && (len(seen) < round || len(found) > keepSnapshots) {
				err = errors.New("wait for more")
			}
			if err != nil {
				return fmt.Errorf("seen %d, now %v: %w", len(seen), found, err)
			}
			return nil
		})
	}
	r.end(t)
	again := open(t, dir)
	again.leads(t)
	if c := again.View().Config("c"); c == nil || len(c.Spec.Data) != 1<<19 {
		t.Error("the object is lost")
	}
}
