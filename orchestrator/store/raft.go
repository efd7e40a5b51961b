package store

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// parts are what raft stands on.
type parts struct {
	logs      raft.LogStore
	stable    raft.StableStore
	snapshots raft.SnapshotStore
	transport raft.Transport
	// timeout is how long a follower waits for its leader before it stands itself.
	timeout time.Duration
	// files are closed in order when raft has stopped.
	files []func() error
}

// start restores the newest snapshot and begins to take part in raft.
func start(c Config, p parts) (*Store, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &Store{
		log: c.Log, now: c.Now, id: raft.ServerID(c.NodeID), addr: raft.ServerAddress(c.Addr),
		writing: make(chan struct{}, 1), files: p.files,
	}
	var err error
	if s.fsm, err = newFSM(s.bells.ring); err != nil {
		return nil, err
	}
	s.raft, err = raft.NewRaft(raftConfig(c, p.timeout), s.fsm, p.logs, p.stable, p.snapshots, p.transport)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

// Snapshots are taken every snapshotEntries entries; keepEntries stay in the log
// behind each, so that a follower which is a little late needs no snapshot. These
// figures are swarmkit's. Large entries make for a snapshot after snapshotBytes.
const (
	snapshotEntries = 10000
	snapshotBytes   = 32 << 20
	keepEntries     = 500
)

func raftConfig(c Config, timeout time.Duration) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(c.NodeID)
	rc.HeartbeatTimeout = timeout
	rc.ElectionTimeout = timeout
	rc.LeaderLeaseTimeout = timeout
	rc.SnapshotThreshold = snapshotEntries
	rc.TrailingLogs = keepEntries
	rc.Logger = raftLogger(c.Log)
	rc.NoLegacyTelemetry = true
	return rc
}
