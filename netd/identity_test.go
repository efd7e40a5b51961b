package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"netd/pki"
)

// newIdentity makes a node's identity with real certificates, and its key.
func newIdentity(t *testing.T) (*identity, []byte) {
	t.Helper()
	ca, _, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	id := &identity{
		NodeID: "node1", ClusterID: "cluster1", Role: pki.Worker, Advertise: netip.MustParseAddr("192.0.2.1"), DataPath: netip.MustParseAddr("192.0.2.2"),
		Listen: "0.0.0.0:2377", Port: 2377, Managers: []string{"192.0.2.9:2377"}, Boot: 3, CA: ca.CertPEM,
	}
	id.Certificate, err = ca.Sign(csr, pki.Subject{Node: "node1", Role: pki.Worker, Cluster: "cluster1"}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return id, key
}

func savedFiles(t *testing.T) files {
	t.Helper()
	f := files{t.TempDir()}
	id, key := newIdentity(t)
	if err := f.saveKey(key); err != nil {
		t.Fatal(err)
	}
	if err := f.save(id); err != nil {
		t.Fatal(err)
	}
	return f
}

// What was saved is loaded, is for root alone, and is gone after a removal.
func TestIdentityIsKept(t *testing.T) {
	f := files{filepath.Join(t.TempDir(), "data")}
	if id, key, err := f.load(); id != nil || key != nil || err != nil {
		t.Fatalf("before a swarm: got %v, %d bytes, %v", id, len(key), err)
	}
	want, key := newIdentity(t)
	for _, err := range []error{f.saveKey(key), f.save(want)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, gotKey, err := f.load()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || err != nil || !bytes.Equal(key, gotKey) {
		t.Errorf("%v %s", err, diff)
	}
	for _, path := range []string{f.identity(), f.key()} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	if err := os.MkdirAll(f.raft(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	if id, _, err := f.load(); id != nil || err != nil {
		t.Errorf("after a removal: %v, %v", id, err)
	}
	if left, err := os.ReadDir(f.dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// Wherever a removal is cut off, what is left is a whole membership, which can be
// removed again, or none; and nothing is removed after what could not be.
func TestRemovalCutOff(t *testing.T) {
	for stop := range 4 {
		f := savedFiles(t)
		gone := 0
		err := f.removeBy(func(path string) error {
			if gone == stop {
				return errors.New("cut off")
			}
			gone++
			return os.RemoveAll(path)
		})
		if err == nil || gone != stop {
			t.Errorf("cut off after %d: %d removed, %v", stop, gone, err)
		}
		if _, _, err := f.load(); err != nil {
			t.Errorf("cut off after %d: %v", stop, err)
		}
		if err := f.remove(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(f.dir); err != nil || len(left) > 0 {
			t.Errorf("cut off after %d, left in the end: %v, %v", stop, left, err)
		}
	}
}

// A damaged file is refused: the error names it and says what to do, and both
// files stay as they are, byte for byte.
func TestDamagedIdentityIsRefused(t *testing.T) {
	edit := func(change func(*identity)) func([]byte) []byte {
		return func(data []byte) []byte {
			id := &identity{}
			if err := json.Unmarshal(data, id); err != nil {
				t.Fatal(err)
			}
			change(id)
			data, err := json.Marshal(id)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	other, otherKey := newIdentity(t)
	for name, c := range map[string]struct {
		file   func(files) string
		damage func([]byte) []byte
	}{
		"empty":              {files.identity, func([]byte) []byte { return nil }},
		"cut off":            {files.identity, func(b []byte) []byte { return b[:len(b)/2] }},
		"zeroes":             {files.identity, func(b []byte) []byte { return make([]byte, len(b)) }},
		"null":               {files.identity, func([]byte) []byte { return []byte("null") }},
		"doubled":            {files.identity, func(b []byte) []byte { return append(b, b...) }},
		"of nobody":          {files.identity, edit(func(id *identity) { id.NodeID = "" })},
		"of another node":    {files.identity, edit(func(id *identity) { id.NodeID = "node2" })},
		"promoted by hand":   {files.identity, edit(func(id *identity) { id.Role = pki.Manager })},
		"no role":            {files.identity, edit(func(id *identity) { id.Role = "" })},
		"another swarm":      {files.identity, edit(func(id *identity) { id.ClusterID = "cluster2" })},
		"another root":       {files.identity, edit(func(id *identity) { id.CA = other.CA })},
		"another's papers":   {files.identity, edit(func(id *identity) { id.CA, id.Certificate = other.CA, other.Certificate })},
		"no certificate":     {files.identity, edit(func(id *identity) { id.Certificate = nil })},
		"no address":         {files.identity, edit(func(id *identity) { id.Advertise = netip.Addr{} })},
		"no data path":       {files.identity, edit(func(id *identity) { id.DataPath = netip.Addr{} })},
		"no port":            {files.identity, edit(func(id *identity) { id.Port = 0 })},
		"no listen address":  {files.identity, edit(func(id *identity) { id.Listen = "" })},
		"key empty":          {files.key, func([]byte) []byte { return nil }},
		"key cut off":        {files.key, func(b []byte) []byte { return b[:len(b)/2] }},
		"key of another one": {files.key, func([]byte) []byte { return otherKey }},
	} {
		f := savedFiles(t)
		data, err := os.ReadFile(c.file(f))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.file(f), c.damage(data), 0o600); err != nil {
			t.Fatal(err)
		}
		before := contents(t, f.dir)
		_, _, err = f.load()
		if err == nil || !strings.Contains(err.Error(), c.file(f)) || !strings.Contains(err.Error(), "restore") {
			t.Errorf("%s: got %v", name, err)
		}
		if secret := strings.Split(string(otherKey), "\n")[1]; err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error tells the key", name)
		}
		if diff := cmp.Diff(before, contents(t, f.dir)); diff != "" {
			t.Errorf("%s: the files have changed: %s", name, diff)
		}
	}
}

// Whichever bit of the files is flipped, the identity is refused or is the same:
// no node takes part under a wrong name, role or key. (An address or a count that
// is another valid one cannot be told from a right one.)
func TestFlippedBitsOfIdentity(t *testing.T) {
	f := savedFiles(t)
	want, _, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{f.identity(), f.key()} {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			data := bytes.Clone(whole)
			data[i] ^= 1 << (i % 7)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			got, _, err := f.load()
			if err == nil && (got.NodeID != want.NodeID || got.Role != want.Role || got.ClusterID != want.ClusterID || !got.Advertise.IsValid()) {
				t.Errorf("byte %d of %s: got %+v", i, filepath.Base(path), got)
			}
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A missing key is refused too: without it the node cannot speak to anybody.
func TestMissingKey(t *testing.T) {
	f := savedFiles(t)
	if err := os.Remove(f.key()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.load(); err == nil || !strings.Contains(err.Error(), f.key()) {
		t.Errorf("got %v", err)
	}
}

// contents maps each file below dir to what is in it.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
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
