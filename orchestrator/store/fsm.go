package store

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"netd"
)

// The text of an entry and of a snapshot is lines: a header, then one line per
// object: "put KIND JSON" or "delete KIND ID". JSON holds no raw line feed.
const (
	entryHeader    = "netd-entry 1 %d\n" // the term of the leader that proposed it
	snapshotHeader = "netd-snapshot 1\n"
	snapshotEnd    = "end %d\n" // how many objects came before
)

// maxEntry bounds one raft entry, in bytes: about 30,000 tasks.
const maxEntry = 64 << 20

// errStale: the entry was made over a state that was not the newest.
var errStale = errors.New("another manager became the leader meanwhile")

// fsm holds the tables and applies the log to them.
type fsm struct {
	db   atomic.Pointer[memdb.MemDB]
	ring func()

	// since counts the bytes applied since the last snapshot; full gets a token
	// when they reach limit.
	since atomic.Int64
	limit int64
	full  chan struct{}

	// broken is closed when this replica met an entry that it cannot apply.
	broken chan struct{}
	fail   sync.Once
	err    error
}

func newFSM(ring func()) (*fsm, error) {
	db, err := newTables()
	if err != nil {
		return nil, err
	}
	f := &fsm{ring: ring, limit: snapshotBytes, full: make(chan struct{}, 1), broken: make(chan struct{})}
	f.db.Store(db)
	return f, nil
}

// failure returns why the replica is broken, nil when it is not.
func (f *fsm) failure() error {
	select {
	case <-f.broken:
		return f.err
	default:
		return nil
	}
}

// Apply applies one entry, all of it or nothing. Its outcome depends on nothing
// but the entry and those before it. An entry that cannot be decoded stops the
// replica for good: to leave it out would make this node's state differ from the
// others' without a word.
func (f *fsm) Apply(l *raft.Log) any {
	if err := f.failure(); err != nil {
		return err
	}
	term, changes, err := decodeEntry(l.Data)
	if err != nil {
		f.fail.Do(func() {
			f.err = fmt.Errorf("apply entry %d: %w", l.Index, err)
			close(f.broken)
		})
		return f.err
	}
	if term != l.Term {
		return errStale
	}
	txn := f.db.Load().Txn(true)
	defer txn.Abort()
	for _, c := range changes {
		if c.rec == nil {
			err = remove(txn, c.key)
		} else {
			c.rec.meta.Version.Index = l.Index
			err = txn.Insert(string(c.kind), c.rec)
		}
		if err != nil {
			return fmt.Errorf("apply entry %d to %s %s: %w", l.Index, c.kind, c.id, err)
		}
	}
	txn.Commit()
	f.ring()
	if f.since.Add(int64(len(l.Data))) >= f.limit {
		select {
		case f.full <- struct{}{}:
		default:
		}
	}
	return nil
}

func remove(txn *memdb.Txn, k key) error {
	raw, err := txn.First(string(k.kind), indexID, k.id)
	if err != nil || raw == nil {
		return err
	}
	return txn.Delete(string(k.kind), raw)
}

// Snapshot returns the state as it is now.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.failure(); err != nil {
		return nil, err
	}
	f.since.Store(0)
	return &snapshot{tx: &Tx{txn: f.db.Load().Txn(false)}}, nil
}

// Restore replaces the state by a snapshot's, all of it or nothing.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	db, err := newTables()
	if err != nil {
		return err
	}
	if err := readSnapshot(r, db); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	f.db.Store(db)
	f.ring()
	return nil
}

type snapshot struct{ tx *Tx }

// Persist writes the snapshot to sink.
func (s *snapshot) Persist(sink raft.SnapshotSink) error {
	if err := writeSnapshot(sink, s.tx); err != nil {
		return errors.Join(fmt.Errorf("write snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Release does nothing: the view is collected as garbage.
func (s *snapshot) Release() {}

func writeSnapshot(w io.Writer, tx *Tx) error {
	b := bufio.NewWriter(w)
	b.WriteString(snapshotHeader)
	n := 0
	for _, k := range kinds() {
		for _, r := range tx.records(k, indexID) {
			line, err := encodeChange(change{key{k, r.id}, r})
			if err != nil {
				return err
			}
			b.Write(line)
			n++
		}
	}
	fmt.Fprintf(b, snapshotEnd, n)
	return b.Flush() // also returns the error of an earlier write
}

func readSnapshot(r io.Reader, db *memdb.MemDB) error {
	b := bufio.NewReader(r)
	header, err := b.ReadString('\n')
	if err != nil || header != snapshotHeader {
		return fmt.Errorf("read header: not a snapshot of this netd's format")
	}
	txn := db.Txn(true)
	defer txn.Abort()
	for n := 0; ; n++ {
		line, err := b.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("read object %d: %w", n, noEOF(err))
		}
		if string(line) == fmt.Sprintf(snapshotEnd, n) {
			txn.Commit()
			return nil
		}
		c, err := decodeChange(line)
		if err != nil {
			return fmt.Errorf("read object %d: %w", n, err)
		}
		if err := txn.Insert(string(c.kind), c.rec); err != nil {
			return fmt.Errorf("read object %d: %w", n, err)
		}
	}
}

func encodeEntry(term uint64, changes []change) ([]byte, error) {
	lines := make([][]byte, len(changes))
	if err := inParallel(len(changes), func(i int) (err error) {
		lines[i], err = encodeChange(changes[i])
		return err
	}); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, entryHeader, term)
	for _, line := range lines {
		b.Write(line)
	}
	if b.Len() > maxEntry {
		return nil, netd.Errorf(netd.ErrInvalid, "write to the swarm's store: %d objects in one change are %d MiB, the limit is %d MiB: nothing was changed",
			len(changes), b.Len()>>20, maxEntry>>20)
	}
	return b.Bytes(), nil
}

func decodeEntry(data []byte) (term uint64, changes []change, err error) {
	header, rest, _ := bytes.Cut(data, []byte{'\n'})
	if n, err := fmt.Sscanf(string(header)+"\n", entryHeader, &term); n != 1 || err != nil {
		return 0, nil, fmt.Errorf("decode entry: unknown format: it was written by a newer netd; upgrade this node")
	}
	lines := slices.Collect(bytes.Lines(rest))
	changes = make([]change, len(lines))
	return term, changes, inParallel(len(lines), func(i int) (err error) {
		changes[i], err = decodeChange(lines[i])
		return err
	})
}

// inParallel calls do for each number below n, on every processor when there are
// many: JSON is most of the work of a large entry.
func inParallel(n int, do func(int) error) error {
	part := max(500, n/runtime.GOMAXPROCS(0)+1)
	var group errgroup.Group
	for from := 0; from < n; from += part {
		group.Go(func() error {
			for i := from; i < min(from+part, n); i++ {
				if err := do(i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func encodeChange(c change) ([]byte, error) {
	if c.rec == nil {
		return fmt.Appendf(nil, "delete %s %s\n", c.kind, c.id), nil
	}
	data, err := json.Marshal(c.rec.obj)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", c.kind, c.id, err)
	}
	line := fmt.Appendf(make([]byte, 0, len(data)+16), "put %s ", c.kind)
	return append(append(line, data...), '\n'), nil
}

func decodeChange(line []byte) (change, error) {
	verb, rest, _ := bytes.Cut(bytes.TrimSuffix(line, []byte{'\n'}), []byte{' '})
	name, body, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return change{}, fmt.Errorf("decode object: a line is damaged")
	}
	k := kind(name)
	switch string(verb) {
	case "put":
		rec, err := decodeRecord(k, body)
		if err != nil {
			return change{}, err
		}
		return change{key{k, rec.id}, rec}, nil
	case "delete":
		for _, known := range kinds() {
			if k == known {
				return change{key{k, string(body)}, nil}, nil
			}
		}
		return change{}, fmt.Errorf("decode object: unknown kind %q: it was written by a newer netd; upgrade this node", k)
	}
	return change{}, fmt.Errorf("decode object: unknown operation %q: it was written by a newer netd; upgrade this node", verb)
}

// noEOF makes an end of file in the middle of something an error of its own.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
