package main

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"netd"
	"netd/internal/durable"
	"netd/pki"
)

// identity is what a node keeps of its membership: who it is, and how it reaches
// and is reached. It is written at init or join and lives until leave.
type identity struct {
	NodeID    netd.NodeID
	ClusterID string
	Role      pki.Role
	// Advertise is this node's address for the other nodes; DataPath is its VTEP, where
	// it gossips too.
	Advertise, DataPath netip.Addr
	// Listen and Port are the manager's TCP address and the one it is known by.
	Listen string
	Port   uint16
	// Managers are where to find the swarm after a restart (host:port).
	Managers []string
	// Boot counts the daemon's starts; it orders this node's gossip.
	Boot uint64
	// CA and Certificate are PEM; the private key has a file of its own.
	CA, Certificate []byte
}

// files are the state files of a membership, all below the data directory.
type files struct{ dir string }

func (f files) identity() string { return filepath.Join(f.dir, "node.json") }
func (f files) key() string      { return filepath.Join(f.dir, "node.key") }
func (f files) raft() string     { return filepath.Join(f.dir, "raft") }
func (f files) node() string     { return filepath.Join(f.dir, "node") }

// load returns the kept membership, or nil where the node is in no swarm. A
// corrupt file is refused and left as it is.
func (f files) load() (*identity, []byte, error) {
	data, err := os.ReadFile(f.identity())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read membership: %w", err)
	}
	id := &identity{}
	if err := cmp.Or(json.Unmarshal(data, id), id.check()); err != nil {
		return nil, nil, fmt.Errorf("read membership: the file %q is corrupt: %w; restore it from a backup, or remove the data directory and join the swarm again", f.identity(), err)
	}
	key, err := os.ReadFile(f.key())
	if err != nil {
		return nil, nil, fmt.Errorf("read the node's private key: %w; restore it from a backup, or remove the data directory and join the swarm again", err)
	}
	if _, _, err := id.credentials(key); err != nil {
		return nil, nil, fmt.Errorf("read membership: the files %q and %q are corrupt or do not belong together: %w; restore them from a backup, or remove the data directory and join the swarm again", f.identity(), f.key(), err)
	}
	return id, key, nil
}

// check finds what is missing.
func (id *identity) check() error {
	switch {
	case id.NodeID == "":
		return errors.New("it names no node")
	case !id.Advertise.IsValid() || !id.DataPath.IsValid() || id.Port == 0:
		return errors.New("it lacks an address of the node")
	case id.Role != pki.Manager && id.Role != pki.Worker:
		return fmt.Errorf("the role %q is none", id.Role)
	}
	_, err := netip.ParseAddrPort(id.Listen)
	return err
}

// credentials are what the node shows to others, after a check that they belong
// together and to this identity.
func (id *identity) credentials(key []byte) (tls.Certificate, pki.CA, error) {
	ca, err := pki.LoadCA(id.CA, nil)
	if err != nil {
		return tls.Certificate{}, pki.CA{}, err
	}
	cert, err := pki.Certificate(id.Certificate, key, ca)
	if err != nil {
		return tls.Certificate{}, pki.CA{}, err
	}
	want := pki.Subject{Node: id.NodeID, Role: id.Role, Cluster: id.ClusterID}
	if got, err := pki.SubjectOf(cert.Leaf); err != nil || got != want {
		return tls.Certificate{}, pki.CA{}, fmt.Errorf("the certificate is of %+v, not of %+v", got, want)
	}
	return cert, ca, nil
}

func (f files) save(id *identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode membership: %w", err)
	}
	return durable.WriteFile(f.identity(), data, 0o600)
}

func (f files) saveKey(pem []byte) error { return durable.WriteFile(f.key(), pem, 0o600) }

// remove forgets the membership.
func (f files) remove() error { return f.removeBy(os.RemoveAll) }

// removeBy removes one file after the other, and none after one that stays: the
// identity after what needs it, so that a removal that was cut off is a member
// still and can leave again, and the key last. A key alone is harmless; an
// identity alone would keep the daemon from starting.
func (f files) removeBy(remove func(string) error) error {
	for _, path := range []string{f.raft(), f.node(), f.identity(), f.key()} {
		if err := remove(path); err != nil {
			return err
		}
	}
	return nil
}
