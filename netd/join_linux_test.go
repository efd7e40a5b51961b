//go:build linux

package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// nodes lists the nodes as the manager knows them, by name.
func (h *testHost) nodes() map[string]swarm.Node {
	h.t.Helper()
	list, err := h.docker.NodeList(h.t.Context(), client.NodeListOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	nodes := map[string]swarm.Node{}
	for _, n := range list.Items {
		nodes[n.Description.Hostname] = n
	}
	return nodes
}

func (h *testHost) rotate() {
	h.t.Helper()
	sw, err := h.docker.SwarmInspect(h.t.Context(), client.SwarmInspectOptions{})
	if err == nil {
		_, err = h.docker.SwarmUpdate(h.t.Context(), client.SwarmUpdateOptions{Version: sw.Swarm.Version, Spec: sw.Swarm.Spec, RotateWorkerToken: true})
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// A join that cannot be says why and what to do, the node stays in no swarm and
// keeps nothing, and a right join works afterwards.
func TestRootJoinErrors(t *testing.T) {
	hosts := newHosts(t, 3)
	manager, other, worker := hosts[0], hosts[1], hosts[2]
	for _, h := range hosts {
		h.start()
	}
	manager.mustInit()
	other.mustInit()
	token, at := manager.token(), manager.addr+":2377"
	last := token[len(token)-1:]
	wrong := strings.TrimSuffix(token, last) + map[bool]string{true: "1", false: "0"}[last == "0"]
	for _, c := range []struct {
		what, manager, token string
		parts                []string
	}{
		{"no token", at, "", []string{"invalid join token", "docker swarm join-token worker"}},
		{"half a token", at, token[:40], []string{"invalid join token", "SWMTKN-1-"}},
		{"wrong secret", at, wrong, []string{"A valid join token is necessary to join this cluster", "docker swarm join-token worker"}},
		{"token of another swarm", at, other.token(), []string{"remote CA does not match fingerprint", "of another swarm"}},
		{"no manager there", worker.addr + ":2377", token, []string{"connection refused", worker.addr + ":2377", "Manager Addresses"}},
		{"no such host", "10.99.0.77:2377", token, []string{"10.99.0.77:2377", "Manager Addresses"}},
		{"no port that can be", manager.addr + ":0", token, []string{"invalid address of a manager"}},
		{"a manager's name that is none", "nowhere.invalid:2377", token, []string{"nowhere.invalid"}},
	} {
		err := worker.join(c.manager, c.token)
		wantError(t, c.what, err, c.parts...)
		if err != nil && c.token != "" && strings.Contains(err.Error(), c.token) {
			t.Errorf("%s: the error tells the token: %v", c.what, err)
		}
		worker.inactive()
	}
	manager.rotate()
	wantError(t, "rotated token", worker.join(at, token), "A valid join token is necessary to join this cluster", "rotated")
	worker.inactive()
	if n := manager.nodes(); len(n) != 1 {
		t.Errorf("the refused joins left nodes %v", n)
	}
	if err := worker.join(at, manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
	wantError(t, "join twice", worker.join(at, manager.token()), textInSwarm)
	_, err := worker.docker.NodeList(t.Context(), client.NodeListOptions{})
	wantError(t, "node ls on a worker", err, textIsWorker)
}

// Where packets to the manager vanish, the join ends after Docker's 20 s with
// Docker's words, and the node can join afterwards.
func TestRootJoinTimesOut(t *testing.T) {
	hosts := newHosts(t, 2)
	manager, worker := hosts[0], hosts[1]
	manager.start()
	worker.start()
	manager.mustInit()
	// A neighbour that nobody is: what is sent there is lost without a word.
	hole := netip.MustParseAddr("10.99.0.77")
	nettest.With(t, worker.ns, func(h *netns.Handle) error {
		eth0, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.NeighAdd(&netlink.Neigh{
			LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT, IP: hole.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 77},
		})
	})
	begun := time.Now()
	err := worker.join(hole.String()+":2377", manager.token())
	wantError(t, "join", err, "Timeout was reached before node joined", "10.99.0.77:2377", "still in no swarm")
	if took := time.Since(begun); took < joinTimeout-time.Second || took > joinTimeout+5*time.Second {
		t.Errorf("it took %s, want about %s", took, joinTimeout)
	}
	worker.inactive()
	if err := worker.join(manager.addr, manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
}

// A worker that leaves is down at once and its tasks run elsewhere; the managers
// need not miss its heartbeats first. Once it is removed the others forget it. All
// of it on a gossip port of one's own.
func TestRootWorkerLeaves(t *testing.T) {
	hosts := newHosts(t, 3)
	manager := hosts[0]
	for _, h := range hosts {
		h.flags = []string{"--gossip-port", "7999"}
		h.start()
	}
	manager.mustInit()
	for _, h := range hosts[1:] {
		if err := h.join(manager.addr+":2377", manager.token()); err != nil {
			t.Fatal(err)
		}
	}
	manager.createService("web", 3)
	manager.running(3, time.Minute)
	for _, h := range hosts {
		h.healthy()
		if line := gossipLine(t, h); line != "3/3 members alive" {
			t.Errorf("%s: gossip: %s", h.name, line)
		}
	}
	leaver := hosts[2]
	old := manager.nodes()[leaver.name]
	if err := leaver.leave(false); err != nil {
		t.Fatal(err)
	}
	if s := manager.nodes()[leaver.name].Status; s.State != swarm.NodeStateDown || s.Message != "the node has left the swarm" {
		t.Errorf("right after the leave the managers know it as %+v", s)
	}
	leaver.inactive()
	nettest.Eventually(t, 30*time.Second, "all tasks run elsewhere", func() error {
		list, err := manager.docker.TaskList(t.Context(), client.TaskListOptions{Filters: client.Filters{}.Add("desired-state", "running")})
		for _, task := range list.Items {
			if task.NodeID == old.ID || task.Status.State != swarm.TaskStateRunning {
				return fmt.Errorf("task %s is %s on %s", task.ID, task.Status.State, task.NodeID)
			}
		}
		return err
	})
	if _, err := manager.docker.NodeRemove(t.Context(), old.ID, client.NodeRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts[:2] {
		nettest.Eventually(t, 20*time.Second, "the removed node is forgotten", func() error {
			if line := gossipLine(t, h); line != "2/2 members alive" {
				return fmt.Errorf("%s: gossip: %s", h.name, line)
			}
			return nil
		})
	}
	if err := leaver.join(manager.addr+":2377", manager.token()); err != nil {
		t.Fatal(err)
	}
	for _, h := range hosts {
		h.healthy()
	}
}

// A worker that the managers removed says so, and what to do.
func TestRootRemovedWorker(t *testing.T) {
	hosts := newHosts(t, 2)
	manager, worker := hosts[0], hosts[1]
	manager.start()
	worker.start()
	manager.mustInit()
	if err := worker.join(manager.addr, manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
	if _, err := manager.docker.NodeRemove(t.Context(), manager.nodes()[worker.name].ID, client.NodeRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, 20*time.Second, "the worker knows", func() error {
		if info := worker.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, "docker swarm leave --force") {
			return fmt.Errorf("%s: %s", info.LocalNodeState, info.Error)
		}
		return nil
	})
	worker.stop() // a removed node is refused again after a restart, and can still leave
	worker.start()
	if err := worker.leave(true); err != nil {
		t.Fatal(err)
	}
	worker.inactive()
	if err := worker.join(manager.addr, manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
}

// A worker can leave although no manager answers any more, after a few seconds.
func TestRootLeaveWithoutManager(t *testing.T) {
	hosts := newHosts(t, 2)
	manager, worker := hosts[0], hosts[1]
	manager.start()
	worker.start()
	manager.mustInit()
	if err := worker.join(manager.addr, manager.token()); err != nil {
		t.Fatal(err)
	}
	worker.healthy()
	manager.end(syscall.SIGKILL)
	begun := time.Now()
	if err := worker.leave(false); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 2*farewellTime+10*time.Second { // stopping tasks takes a while too
		t.Errorf("it took %s", took)
	}
	worker.inactive()
}

func gossipLine(t *testing.T, h *testHost) string {
	t.Helper()
	s, _ := h.status()
	for _, l := range s.Lines {
		if l.Part == "gossip" {
			return l.Text
		}
	}
	return ""
}
