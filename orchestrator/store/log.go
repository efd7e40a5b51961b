package store

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

// The buckets of raft.db. Every value is sealed to its bucket and key.
const (
	bucketLog   = "log"   // raft index, 8 bytes big-endian → entry
	bucketAbout = "about" // one key, keyAbout → about
	keyAbout    = "about"
)

const logFormat = 1

// about is written in the same transaction as every change of the log. It proves
// that no entry is missing at either end, and holds raft's few stable values.
type about struct {
	Format int
	Node   string
	// First and Last are the indexes of the oldest and the newest entry, 0 if none.
	First, Last uint64
	Stable      map[string][]byte
}

// logStore is raft's log and stable store, in a bbolt file.
type logStore struct {
	db   *bbolt.DB
	seal sealer

	mu    sync.Mutex // held while about is changed
	about about
}

// createLog makes an empty log in the new file at path.
func createLog(path string, seal sealer, node string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return err
	}
	s := &logStore{db: db, seal: seal}
	err = s.change(func(tx *bbolt.Tx, a *about) error {
		*a = about{Format: logFormat, Node: node, Stable: make(map[string][]byte)}
		_, err := tx.CreateBucketIfNotExists([]byte(bucketLog))
		return err
	})
	return errors.Join(err, db.Close())
}

// openLog opens a log that checkLog has found whole, and which said a.
func openLog(path string, seal sealer, a about) (*logStore, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout})
	if err != nil {
		return nil, err
	}
	return &logStore{db: db, seal: seal, about: a}, nil
}

// change runs do in a transaction and writes the about that it leaves.
func (s *logStore) change(do func(*bbolt.Tx, *about) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.about
	err := s.db.Update(func(tx *bbolt.Tx) error {
		if err := do(tx, &next); err != nil {
			return err
		}
		data, err := json.Marshal(next)
		if err != nil {
			return err
		}
		b, err := tx.CreateBucketIfNotExists([]byte(bucketAbout))
		if err != nil {
			return err
		}
		return b.Put([]byte(keyAbout), s.seal.seal(data, aboutPlace()))
	})
	if err != nil {
		return fmt.Errorf("write raft log: %w", err)
	}
	s.about = next
	return nil
}

// FirstIndex returns the index of the oldest entry.
func (s *logStore) FirstIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.about.First, nil
}

// LastIndex returns the index of the newest entry.
func (s *logStore) LastIndex() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.about.Last, nil
}

// GetLog reads the entry at index into l.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	return s.db.View(func(tx *bbolt.Tx) error {
		sealed := tx.Bucket([]byte(bucketLog)).Get(indexKey(index))
		if sealed == nil {
			return raft.ErrLogNotFound
		}
		plain, err := s.seal.open(sealed, logPlace(index))
		if err != nil {
			return fmt.Errorf("read raft log entry %d: %w", index, err)
		}
		return decodeLog(plain, l)
	})
}

// StoreLog appends one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs writes entries; they are on disk when it returns.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	return s.change(func(tx *bbolt.Tx, a *about) error {
		b := tx.Bucket([]byte(bucketLog))
		for _, l := range logs {
			if a.Last != 0 && (l.Index > a.Last+1 || l.Index < a.First) {
				return fmt.Errorf("entry %d does not follow %d to %d", l.Index, a.First, a.Last)
			}
			if err := b.Put(indexKey(l.Index), s.seal.seal(encodeLog(l), logPlace(l.Index))); err != nil {
				return err
			}
			if a.First == 0 {
				a.First = l.Index
			}
			a.Last = max(a.Last, l.Index)
		}
		return nil
	})
}

// IsMonotonic tells raft that the log must have no gaps: after a snapshot from
// another manager it empties the log instead.
func (s *logStore) IsMonotonic() bool { return true }

// DeleteRange removes the entries from lo to hi, both included: raft does so at
// one end of the log only.
func (s *logStore) DeleteRange(lo, hi uint64) error {
	return s.change(func(tx *bbolt.Tx, a *about) error {
		if a.Last == 0 || hi < a.First || lo > a.Last {
			return nil
		}
		lo, hi = max(lo, a.First), min(hi, a.Last)
		b := tx.Bucket([]byte(bucketLog))
		for i := lo; i <= hi; i++ {
			if err := b.Delete(indexKey(i)); err != nil {
				return err
			}
		}
		switch {
		case lo == a.First && hi == a.Last:
			a.First, a.Last = 0, 0
		case lo == a.First:
			a.First = hi + 1
		case hi == a.Last:
			a.Last = lo - 1
		default:
			return fmt.Errorf("removing entries %d to %d would leave a gap in %d to %d", lo, hi, a.First, a.Last)
		}
		return nil
	})
}

// Set writes one of raft's stable values.
func (s *logStore) Set(key, val []byte) error {
	return s.change(func(_ *bbolt.Tx, a *about) error {
		stable := map[string][]byte{string(key): val}
		for k, v := range a.Stable {
			if k != string(key) {
				stable[k] = v
			}
		}
		a.Stable = stable
		return nil
	})
}

// Get returns one of raft's stable values, empty when there is none.
func (s *logStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.about.Stable[string(key)], nil
}

// SetUint64 is Set of a number.
func (s *logStore) SetUint64(key []byte, val uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// GetUint64 is Get of a number, 0 when there is none.
func (s *logStore) GetUint64(key []byte) (uint64, error) {
	val, err := s.Get(key)
	if err != nil || len(val) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(val), nil
}

func indexKey(index uint64) []byte { return binary.BigEndian.AppendUint64(nil, index) }

func logPlace(index uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(bucketLog+" "), index)
}

func aboutPlace() []byte { return []byte(bucketAbout) }

// An entry at rest: index and term (8 bytes each), time (unix nanoseconds, 8,
// 0 for none), type (1), length of the extensions (4), extensions, data.
const logHead = 8 + 8 + 8 + 1 + 4

func encodeLog(l *raft.Log) []byte {
	b := make([]byte, 0, logHead+len(l.Extensions)+len(l.Data))
	b = binary.BigEndian.AppendUint64(b, l.Index)
	b = binary.BigEndian.AppendUint64(b, l.Term)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = append(b, byte(l.Type))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	return append(b, l.Data...)
}

func decodeLog(b []byte, l *raft.Log) error {
	if len(b) < logHead || uint64(len(b)-logHead) < uint64(binary.BigEndian.Uint32(b[25:])) {
		return errors.New("read raft log entry: it is too short")
	}
	*l = raft.Log{Index: binary.BigEndian.Uint64(b), Term: binary.BigEndian.Uint64(b[8:]), Type: raft.LogType(b[24])}
	if at := int64(binary.BigEndian.Uint64(b[16:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	n := logHead + int(binary.BigEndian.Uint32(b[25:]))
	if n > logHead {
		l.Extensions = b[logHead:n]
	}
	if len(b) > n {
		l.Data = b[n:]
	}
	return nil
}
