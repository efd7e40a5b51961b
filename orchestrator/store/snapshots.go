package store

import (
	"bytes"
	"cmp"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// A snapshot's file: snapshotMagic, a salt, then chunks, each sealed under a key
// of the salt alone with its number and whether it is the last for a nonce (the
// STREAM construction), so that none can be moved, dropped or added. The plain
// text is the length of the metadata (4 bytes), the metadata in JSON, the state.
const (
	snapshotMagic  = "netd-sealed-snapshot-1\n"
	snapshotSalt   = 16
	snapshotChunk  = 64 << 10
	snapshotSuffix = ".snapshot"
	tempSuffix     = ".tmp"
	keepSnapshots  = 2
	maxMeta        = 1 << 20
)

// snapshotStore is raft's snapshot store: sealed files in one directory.
type snapshotStore struct {
	dir string
	key dataKey
}

// Create begins a snapshot, which is there when its sink is closed.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	meta := raft.SnapshotMeta{
		Version: version, Index: index, Term: term, Configuration: conf, ConfigurationIndex: confIndex,
		ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixNano()),
	}
	head, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	path := filepath.Join(s.dir, meta.ID+snapshotSuffix)
	f, err := os.OpenFile(path+tempSuffix, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create snapshot: %w", err)
	}
	w := &snapshotSink{store: s, id: meta.ID, path: path, f: f}
	salt := make([]byte, snapshotSalt)
	rand.Read(salt)
	if w.aead, err = s.key.aead(salt, "snapshot"); err == nil {
		_, err = f.Write(append([]byte(snapshotMagic), salt...))
	}
	if err == nil {
		_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(head))), head...))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create snapshot: %w", err), w.Cancel())
	}
	return w, nil
}

// List returns the snapshots, the newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var all []*raft.SnapshotMeta
	for _, name := range names {
		meta, r, err := s.Open(strings.TrimSuffix(name, snapshotSuffix))
		if err != nil {
			return nil, err
		}
		r.Close()
		all = append(all, meta)
	}
	slices.SortFunc(all, func(a, b *raft.SnapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Term, a.Term), cmp.Compare(b.Index, a.Index), strings.Compare(b.ID, a.ID))
	})
	return all, nil
}

func (s *snapshotStore) names() ([]string, error) {
	files, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var names []string
	for _, f := range files {
		if strings.HasSuffix(f.Name(), snapshotSuffix) {
			names = append(names, f.Name())
		}
	}
	return names, nil
}

// Open returns a snapshot's metadata and its state.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	path := filepath.Join(s.dir, id+snapshotSuffix)
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	r := &snapshotReader{f: f, name: path}
	meta, err := r.begin(s.key)
	if err == nil && meta.ID != id {
		err = fmt.Errorf("it is the snapshot %s", meta.ID)
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open snapshot %q: %w", path, err), f.Close())
	}
	return meta, r, nil
}

// check reads a snapshot to its end.
func (s *snapshotStore) check(id string) (*raft.SnapshotMeta, error) {
	meta, r, err := s.Open(id)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return nil, err
	}
	if n != meta.Size {
		return nil, fmt.Errorf("read snapshot %s: %d bytes of state instead of %d", id, n, meta.Size)
	}
	return meta, nil
}

// reap removes all but the newest snapshots.
func (s *snapshotStore) reap() error {
	all, err := s.List()
	if err != nil {
		return err
	}
	for i := keepSnapshots; i < len(all); i++ {
		if err := os.Remove(filepath.Join(s.dir, all[i].ID+snapshotSuffix)); err != nil {
			return fmt.Errorf("remove old snapshot: %w", err)
		}
	}
	return nil
}

// clean removes what a crash left of unfinished snapshots.
func (s *snapshotStore) clean() error {
	left, err := filepath.Glob(filepath.Join(s.dir, "*"+snapshotSuffix+tempSuffix))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove unfinished snapshot: %w", err)
		}
	}
	return nil
}

// snapshotSink writes one snapshot.
type snapshotSink struct {
	store *snapshotStore
	id    string
	path  string
	f     *os.File
	aead  cipher.AEAD
	buf   []byte
	n     uint64 // chunks written
	done  bool
}

// ID returns the snapshot's name.
func (w *snapshotSink) ID() string { return w.id }

// Write adds to the state.
func (w *snapshotSink) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		// A full chunk waits until more follows: the last one must be known as such.
		if len(w.buf) == snapshotChunk {
			if err := w.flush(w.buf, false); err != nil {
				return 0, err
			}
			w.buf = w.buf[:0]
		}
		n := min(snapshotChunk-len(w.buf), len(p))
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
	}
	return written, nil
}

func (w *snapshotSink) flush(chunk []byte, last bool) error {
	_, err := w.f.Write(w.aead.Seal(nil, chunkNonce(w.n, last), chunk, nil))
	w.n++
	return err
}

// Close makes the snapshot last and drops the oldest ones.
func (w *snapshotSink) Close() error {
	if w.done {
		return nil
	}
	w.done = true
	err := w.flush(w.buf, true)
	if err == nil {
		err = w.f.Sync()
	}
	err = errors.Join(err, w.f.Close())
	if err == nil {
		err = os.Rename(w.path+tempSuffix, w.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("finish snapshot: %w", err), os.Remove(w.path+tempSuffix))
	}
	if err := syncDir(w.store.dir); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	return w.store.reap()
}

// Cancel drops the snapshot.
func (w *snapshotSink) Cancel() error {
	if w.done {
		return nil
	}
	w.done = true
	return errors.Join(w.f.Close(), os.Remove(w.path+tempSuffix))
}

// snapshotReader reads one snapshot's plain text.
type snapshotReader struct {
	f    *os.File
	name string
	aead cipher.AEAD
	size int64 // of the chunks that are not read yet
	n    uint64
	buf  bytes.Reader
}

// begin reads up to the state.
func (r *snapshotReader) begin(key dataKey) (*raft.SnapshotMeta, error) {
	info, err := r.f.Stat()
	if err != nil {
		return nil, err
	}
	head := make([]byte, len(snapshotMagic)+snapshotSalt)
	if _, err := io.ReadFull(r.f, head); err != nil || string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, errors.New("it is not a sealed snapshot")
	}
	if r.aead, err = key.aead(head[len(snapshotMagic):], "snapshot"); err != nil {
		return nil, err
	}
	r.size = info.Size() - int64(len(head))
	sealedChunk := int64(snapshotChunk + r.aead.Overhead())
	chunks := (r.size + sealedChunk - 1) / sealedChunk
	plain := r.size - chunks*int64(r.aead.Overhead())
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, noEOF(err)
	}
	n := int64(binary.BigEndian.Uint32(length[:]))
	if n > maxMeta || n+4 > plain {
		return nil, errSeal
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, noEOF(err)
	}
	meta := new(raft.SnapshotMeta)
	if err := json.Unmarshal(data, meta); err != nil {
		return nil, err
	}
	meta.Size = plain - 4 - n
	return meta, nil
}

// Read returns the plain text of whole, verified chunks.
func (r *snapshotReader) Read(p []byte) (int, error) {
	for r.buf.Len() == 0 {
		if r.size == 0 {
			if r.n == 0 {
				return 0, io.ErrUnexpectedEOF
			}
			return 0, io.EOF
		}
		chunk := make([]byte, min(r.size, int64(snapshotChunk+r.aead.Overhead())))
		if _, err := io.ReadFull(r.f, chunk); err != nil {
			return 0, fmt.Errorf("read snapshot %q: %w", r.name, noEOF(err))
		}
		r.size -= int64(len(chunk))
		plain, err := r.aead.Open(chunk[:0], chunkNonce(r.n, r.size == 0), chunk, nil)
		if err != nil {
			return 0, fmt.Errorf("read snapshot %q: %w", r.name, errSeal)
		}
		r.n++
		r.buf.Reset(plain)
	}
	return r.buf.Read(p)
}

// Close closes the file.
func (r *snapshotReader) Close() error { return r.f.Close() }

func chunkNonce(n uint64, last bool) []byte {
	nonce := make([]byte, 12)
	binary.BigEndian.PutUint64(nonce[3:], n)
	if last {
		nonce[11] = 1
	}
	return nonce
}
