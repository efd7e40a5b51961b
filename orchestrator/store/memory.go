package store

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/hashicorp/raft"
)

// OpenMemory returns a store without files or network for tests: the only voter,
// leading already. End it with Run's context or with Close.
func OpenMemory(log *slog.Logger) (*Store, error) {
	addr, transport := raft.NewInmemTransport("")
	mem := raft.NewInmemStore()
	s, err := start(Config{NodeID: "memory", Addr: string(addr), Log: log}, parts{
		logs: mem, stable: mem, snapshots: raft.NewInmemSnapshotStore(), transport: transport,
		timeout: 20 * time.Millisecond,
	})
	if err != nil {
		return nil, err
	}
	leads := s.raft.LeaderCh()
	if err := s.Bootstrap(); err != nil {
		return nil, err
	}
	if !<-leads {
		return nil, fmt.Errorf("open store in memory: leadership lost at once")
	}
	if err := s.raft.Barrier(0).Error(); err != nil {
		return nil, fmt.Errorf("open store in memory: %w", err)
	}
	s.ready.Store(s.raft.CurrentTerm())
	return s, nil
}
