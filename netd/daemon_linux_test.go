//go:build linux

package main

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"

	"netd/internal/netns"
	"netd/internal/nettest"
	"netd/netd/debug"
)

// wantError checks that an error's text has all the parts, on one line.
func wantError(t *testing.T, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s: got %v, want %q in it", what, err, part)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: more than one line: %v", what, err)
	}
}

// A daemon starts in no swarm, begins one, runs its tasks, finds it all again
// after a stop and after a kill without touching task or kernel, and after a leave
// nothing of it is left, so that a new swarm can begin.
func TestRootLifeOfANode(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.inactive()
	if s, code := h.status(); s.Verdict != debug.Inactive || code != 0 {
		t.Errorf("before a swarm: %s, exit status %d", s.Verdict, code)
	}
	wantError(t, "leave no swarm", h.leave(false), textNoSwarm)
	_, err := h.docker.NodeList(t.Context(), client.NodeListOptions{})
	wantError(t, "list nodes of no swarm", err, textNotManager)
	if code, out := h.netd("drift", "--socket", h.socket()); code != 1 || !strings.Contains(out, textNoSwarm) {
		t.Errorf("drift in no swarm: %d %s", code, out)
	}

	h.mustInit()
	first := h.swarmInfo()
	if first.LocalNodeState != swarm.LocalNodeStateActive || !first.ControlAvailable || first.NodeID == "" || first.NodeAddr != h.addr || first.Error != "" {
		t.Fatalf("after init: %+v", first)
	}
	wantError(t, "init twice", h.init(), textInSwarm)
	wantError(t, "join after init", h.join("10.99.0.9:2377", h.token()), textInSwarm)
	h.createService("web", 2)
	pids := h.running(2, time.Minute)
	h.healthy()
	token := h.token()

	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		h.end(signal)
		for id, pid := range pids {
			if err := syscall.Kill(pid, 0); err != nil {
				t.Errorf("after %s task %s: %v", signal, id, err)
			}
		}
		h.start()
		h.healthy()
		if s, _ := h.status(); s.Changes != 0 {
			t.Errorf("the restart after %s changed %q", signal, s.LastChanges)
		}
		if again := h.swarmInfo(); again.NodeID != first.NodeID || again.Cluster.ID != first.Cluster.ID || h.token() != token {
			t.Errorf("the restart after %s found another swarm: %+v", signal, again)
		}
		if again := h.running(2, time.Minute); !maps.Equal(again, pids) {
			t.Errorf("the restart after %s: tasks %v, before %v", signal, again, pids)
		}
	}

	wantError(t, "leave as the last manager", h.leave(false), "Removing the last manager erases all current state")
	if err := h.leave(true); err != nil {
		t.Fatal(err)
	}
	h.inactive()
	for id, pid := range pids {
		nettest.Eventually(t, 5*time.Second, "task "+id+" is gone", func() error {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if err == nil && !strings.Contains(string(stat), ") Z ") { // a zombie waits for the machine's init
				return fmt.Errorf("still there: %s", stat)
			}
			return nil
		})
	}
	h.mustInit()
	if again := h.swarmInfo(); again.Cluster.ID == first.Cluster.ID || again.NodeID == first.NodeID {
		t.Errorf("the new swarm is the old one: %+v", again)
	}
	if list, err := h.docker.ServiceList(t.Context(), client.ServiceListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("the new swarm has services %v, %v", list, err)
	}
}

// hold holds a port in the host's namespace until the returned function is
// called.
func (h *testHost) hold(network, port string) (release func()) {
	h.t.Helper()
	var held interface{ Close() error }
	err := netns.Do(h.ns, func() (err error) {
		held, err = hold(network, h.addr+":"+port)
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	released := false
	release = func() {
		if !released {
			released = true
			if err := held.Close(); err != nil {
				h.t.Error(err)
			}
		}
	}
	h.t.Cleanup(release)
	return release
}

// A port that is taken makes init fail with the port, its user's trail and the way
// out; nothing is half made, and the same command works once the port is free.
func TestRootPortInUse(t *testing.T) {
	h := newHosts(t, 1)[0]
	release := h.hold("tcp", "2377")
	h.start()
	wantError(t, "init", h.init(), "TCP port 2377", "in use", "ss -ltnp", "--listen-addr")
	h.inactive()
	_, err := h.docker.SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: "10.99.0.200:2377"})
	wantError(t, "init on a foreign address", err, "10.99.0.200:2377", "not an address of this host")
	_, err = h.docker.SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: "10.99.0.200"})
	wantError(t, "advertise a foreign address", err, "10.99.0.200 is not an address of this host, which has 10.99.0.1")
	h.inactive()
	if _, err := h.docker.SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: "0.0.0.0:4000"}); err != nil {
		t.Errorf("with another port: %v", err)
	}
	nettest.Eventually(t, 10*time.Second, "it is known by the other port", func() error {
		if info := h.swarmInfo(); len(info.RemoteManagers) != 1 || info.RemoteManagers[0].Addr != h.addr+":4000" {
			return fmt.Errorf("known as %+v", info.RemoteManagers)
		}
		return nil
	})
	if err := h.leave(true); err != nil {
		t.Fatal(err)
	}
	release()
	h.mustInit()
	h.stop()
	// The port is taken while the daemon is down: it does not start, and its state
	// is as it was.
	release = h.hold("tcp", "2377")
	h.refuses("TCP port 2377", h.daemonArgs()...)
	release()
	h.start()
	h.healthy()
}

// A gossip port that is taken does not end the daemon: docker info and netd status
// say what is wrong, on which port, and what to do. Once it is free the node takes
// part by itself; a leave works all the same.
func TestRootGossipPortInUse(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			h := newHosts(t, 1)[0]
			release := h.hold(network, "7946")
			h.start()
			h.mustInit()
			nettest.Eventually(t, 20*time.Second, "the node says that it failed", func() error {
				if info := h.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateError {
					return errdefs.ErrUnavailable
				}
				return nil
			})
			if info := h.swarmInfo(); !strings.Contains(info.Error, "port 7946") || !strings.Contains(info.Error, "--gossip-port") {
				t.Errorf("docker info says %q", info.Error)
			}
			s, code := h.status()
			if s.Verdict != debug.Broken || code != 2 || len(s.Reasons) == 0 || !strings.Contains(s.Reasons[0], "port 7946") {
				t.Errorf("netd status says %s %q, exit status %d", s.Verdict, s.Reasons, code)
			}
			_, err := h.docker.NodeList(t.Context(), client.NodeListOptions{})
			wantError(t, "node ls", err, "port 7946")
			if network == "udp" {
				release()
				h.healthy()
				return
			}
			if err := h.leave(true); err != nil {
				t.Fatal(err)
			}
			h.inactive()
			release()
			h.mustInit()
			h.healthy()
		})
	}
}

// A node whose address comes back after the daemon's start, as at a boot, takes part
// then by itself, with its tasks as they were.
func TestRootAddressComesBack(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.mustInit()
	h.createService("web", 1)
	pids := h.running(1, 20*time.Second)
	h.healthy()
	h.stop()
	h.address((*netns.Handle).AddrDel)
	h.start()
	nettest.Eventually(t, 20*time.Second, "the node says that it failed", func() error {
		if info := h.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateError || !strings.Contains(info.Error, h.addr) {
			return fmt.Errorf("it says %s: %s", info.LocalNodeState, info.Error)
		}
		return nil
	})
	h.address((*netns.Handle).AddrAdd)
	nettest.Eventually(t, 30*time.Second, "the node is back", func() error {
		if info := h.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateActive {
			return fmt.Errorf("it says %s: %s", info.LocalNodeState, info.Error)
		}
		return nil
	})
	h.healthy()
	if again := h.running(1, 20*time.Second); !maps.Equal(again, pids) {
		t.Errorf("tasks %v, before %v", again, pids)
	}
}

// address gives the host its address, or takes it.
func (h *testHost) address(change func(*netns.Handle, netlink.Link, *netlink.Addr) error) {
	h.t.Helper()
	nettest.With(h.t, h.ns, func(n *netns.Handle) error {
		eth0, err := n.LinkByName("eth0")
		if err != nil {
			return err
		}
		return change(n, eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(h.addr).To4(), Mask: net.CIDRMask(24, 32)}})
	})
}

// A second daemon in the same data or run directory does not start, says how it
// would, and does not disturb the first.
func TestRootSecondDaemon(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	h.mustInit()
	h.refuses("in use by another netd daemon", h.daemonArgs()...)
	h.refuses("is answered by another daemon", "daemon", "--data-dir", filepath.Join(h.dir, "other"), "--run-dir", h.run)
	if code, out := h.netd("cleanup", "--data-dir", h.data, "--run-dir", h.run); code != 1 || !strings.Contains(out, "in use by another netd daemon") {
		t.Errorf("cleanup beside a daemon: %d %s", code, out)
	}
	h.healthy()
}

// Without root there is one line that says so.
func TestRootNeedsRoot(t *testing.T) {
	nettest.Root(t)
	for _, verb := range []string{"daemon", "cleanup", "demo"} {
		var out bytes.Buffer
		cmd := exec.Command("/proc/self/exe", verb)
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		err := cmd.Run()
		if cmd.ProcessState.ExitCode() != 1 || strings.Count(out.String(), "\n") != 1 || !strings.Contains(out.String(), "needs root; run it with sudo") {
			t.Errorf("netd %s: %v: %s", verb, err, &out)
		}
	}
}

// hold listens on an address.
func hold(network, addr string) (interface{ Close() error }, error) {
	if network == "udp" {
		return net.ListenPacket(network, addr)
	}
	return net.Listen(network, addr)
}
