//go:build linux

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"netd/internal/nettest"
	"netd/netd/debug"
)

// A living worker that the managers remove stops its tasks and leaves nothing in
// the kernel; it says so, also after a restart, and what to do; a leave works from
// there, and a join after it.
func TestRootRemovedWorkerIsCleared(t *testing.T) {
	hosts := newHosts(t, 2)
	manager, worker := hosts[0], hosts[1]
	for _, h := range hosts {
		h.start()
	}
	manager.mustInit()
	if err := worker.join(manager.addr+":2377", manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
	manager.createService("web", 2)
	manager.running(2, 20*time.Second)
	if worker.leftovers() == nil {
		t.Fatal("no task runs on the worker")
	}
	id := manager.nodes()[worker.name].ID
	if _, err := manager.docker.NodeRemove(t.Context(), id, client.NodeRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	removed := func() error {
		if info := worker.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, "removed") || !strings.Contains(info.Error, "docker swarm leave") {
			return fmt.Errorf("it says %s: %s", info.LocalNodeState, info.Error)
		}
		return worker.leftovers()
	}
	nettest.Eventually(t, 30*time.Second, "nothing is left on the removed node", removed)
	if s, code := worker.status(); s.Verdict != debug.Broken || code != 2 {
		t.Errorf("netd status: %s, exit status %d", s.Verdict, code)
	}
	worker.stop()
	worker.start()
	nettest.Eventually(t, 30*time.Second, "it says so after a restart", removed)
	if err := worker.leave(false); err != nil {
		t.Fatal(err)
	}
	worker.inactive()
	if err := worker.join(manager.addr+":2377", manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
	manager.running(2, 20*time.Second)
}
