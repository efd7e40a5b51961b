package main

import (
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
	// Advertise is this node's address for the other nodes; DataPath is its VTEP.
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
	if err := json.Unmarshal(data, id); err != nil || id.NodeID == "" {
		return nil, nil, fmt.Errorf("read membership: the file %q is corrupt: %v; restore it from a backup, or remove the data directory and join the swarm again", f.identity(), err)
	}
	key, err := os.ReadFile(f.key())
	if err != nil {
		return nil, nil, fmt.Errorf("read the node's private key: %w; restore it from a backup, or remove the data directory and join the swarm again", err)
	}
	return id, key, nil
}

func (f files) save(id *identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("encode membership: %w", err)
	}
	return durable.WriteFile(f.identity(), data, 0o600)
}

func (f files) saveKey(pem []byte) error { return durable.WriteFile(f.key(), pem, 0o600) }

// remove forgets the membership, the identity last: a removal that was cut off
// is a member still, and can leave again.
func (f files) remove() error {
	return errors.Join(os.RemoveAll(f.raft()), os.RemoveAll(f.node()), os.RemoveAll(f.key()), os.RemoveAll(f.identity()))
}
