//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"

	"netd/internal/netns"
	"netd/internal/nettest"
	"netd/netd/debug"
)

// testHost is a host of the tests: a network namespace and the daemon in it, a
// process of its own that is driven through its socket.
type testHost struct {
	t                  *testing.T
	name, ns, dir      string
	addr               string
	flags              []string // beside those that every host has
	docker             *client.Client
	cmd                *exec.Cmd
	ended              chan error
	data, run, logFile string
}

// newHosts makes n hosts on one wire, 10.99.0.1 and so on, without a daemon yet.
func newHosts(t *testing.T, n int) []*testHost {
	t.Helper()
	nettest.Root(t)
	nettest.Require(t, "vxlan", "nf_tables")
	var hosts []*testHost
	for i, ns := range nettest.Underlay(t, n) {
		dir := nettest.Dir(t)
		h := &testHost{
			t: t, name: fmt.Sprintf("n%d", i+1), ns: ns, dir: dir, addr: fmt.Sprintf("10.99.0.%d", i+1),
			data: filepath.Join(dir, "data"), run: filepath.Join(dir, "run"), logFile: filepath.Join(dir, "daemon.log"),
		}
		docker, err := client.New(client.WithHost("unix://" + h.socket()))
		if err != nil {
			t.Fatal(err)
		}
		h.docker = docker
		t.Cleanup(h.clear)
		hosts = append(hosts, h)
	}
	return hosts
}

func (h *testHost) socket() string { return filepath.Join(h.run, "netd.sock") }

// command is netd with arguments, to be run in the host's namespace. It is this
// test's own binary, or a static one that is built for it: the root of a task
// holds no libraries.
func (h *testHost) command(args ...string) *exec.Cmd {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	file, err := elf.Open(self)
	if err != nil {
		h.t.Fatal(err)
	}
	defer file.Close()
	if file.Section(".interp") != nil {
		self = filepath.Join(h.dir, "netd")
		if _, err := os.Stat(self); errors.Is(err, os.ErrNotExist) {
			build := exec.CommandContext(h.t.Context(), "go", "build", "-o", self, ".")
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				h.t.Fatalf("build netd: %v\n%s", err, out)
			}
		}
	}
	return exec.Command(self, args...)
}

func (h *testHost) daemonArgs() []string {
	return append([]string{"daemon", "--data-dir", h.data, "--run-dir", h.run, "--node-name", h.name, "--advertise-addr", h.addr}, h.flags...)
}

// start starts the daemon and waits until it answers.
func (h *testHost) start() {
	h.t.Helper()
	log, err := os.OpenFile(h.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := h.command(h.daemonArgs()...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := netns.Do(h.ns, cmd.Start); err != nil {
		h.t.Fatal(err)
	}
	h.cmd, h.ended = cmd, make(chan error, 1)
	go func(ended chan error) { ended <- cmd.Wait() }(h.ended)
	nettest.Eventually(h.t, 20*time.Second, "the daemon answers", func() error {
		select {
		case err := <-h.ended:
			h.cmd = nil
			h.t.Fatalf("the daemon of %s has ended: %v\n%s", h.name, err, h.log())
		default:
		}
		_, err := h.docker.Ping(h.t.Context(), client.PingOptions{})
		return err
	})
}

func (h *testHost) log() string {
	data, err := os.ReadFile(h.logFile)
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// end sends the daemon a signal and waits for its end.
func (h *testHost) end(signal os.Signal) {
	h.t.Helper()
	if h.cmd == nil {
		return
	}
	cmd := h.cmd
	h.cmd = nil
	if err := cmd.Process.Signal(signal); err != nil {
		h.t.Errorf("signal %s: %v", h.name, err)
	}
	select {
	case err := <-h.ended:
		if signal == syscall.SIGTERM && err != nil {
			h.t.Errorf("the daemon of %s ended with %v\n%s", h.name, err, h.log())
		}
	case <-time.After(15 * time.Second):
		h.t.Errorf("the daemon of %s does not end", h.name)
		_ = cmd.Process.Kill()
		if err := <-h.ended; err != nil {
			h.t.Log(err)
		}
	}
}

func (h *testHost) stop() { h.t.Helper(); h.end(syscall.SIGTERM) }

// clear ends the daemon and takes all that it left out of the kernel; nothing
// may be left then.
func (h *testHost) clear() {
	h.stop()
	_ = h.docker.Close()
	if status, out := h.netd("cleanup", "--data-dir", h.data, "--run-dir", h.run); status != 0 {
		h.t.Errorf("clean up %s: status %d: %s", h.name, status, out)
	}
	if err := h.leftovers(); err != nil {
		h.t.Errorf("after the clean-up: %v", err)
	}
	if h.t.Failed() {
		h.t.Logf("log of %s:\n%s", h.name, h.log())
	}
}

// netd runs a command of netd in the host's namespace to its end, and returns its
// status and all that it printed.
func (h *testHost) netd(args ...string) (status int, out string) {
	h.t.Helper()
	var text bytes.Buffer
	cmd := h.command(args...)
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := netns.Do(h.ns, cmd.Start); err != nil {
		h.t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		h.t.Errorf("netd %s: %v", strings.Join(args, " "), err)
	}
	return cmd.ProcessState.ExitCode(), text.String()
}

// refuses starts a daemon that must end by itself, with status 1 and one line
// that has the text.
func (h *testHost) refuses(want string, args ...string) {
	h.t.Helper()
	status, out := h.netd(args...)
	var lines []string
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "time=") { // the log
			lines = append(lines, line)
		}
	}
	if status != 1 || len(lines) != 1 || !strings.HasPrefix(out, "netd daemon: ") || !strings.Contains(out, want) {
		h.t.Errorf("status %d, %d lines, want one with %q:\n%s", status, len(lines), want, out)
	}
}

// leftovers names what of netd is in the kernel of the host.
func (h *testHost) leftovers() error {
	var left []string
	nettest.With(h.t, h.ns, func(n *netns.Handle) error {
		links, err := n.LinkList()
		for _, l := range links {
			if name := l.Attrs().Name; name != "lo" && name != "eth0" {
				left = append(left, "link "+name)
			}
		}
		if err != nil {
			return err
		}
		routes, err := n.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Protocol: 78}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range routes {
			left = append(left, "route "+r.String())
		}
		return err
	})
	err := netns.Do(h.ns, func() error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := conn.ListTables()
		for _, table := range tables {
			left = append(left, "nft table "+table.Name)
		}
		return err
	})
	pins, lerr := netns.List(filepath.Join(h.run, "netns"))
	for _, pin := range pins {
		left = append(left, "namespace "+pin)
	}
	tasks, _ := filepath.Glob(filepath.Join(h.data, "tasks", "*"))
	left = append(left, tasks...)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("%s has still %s", h.name, strings.Join(left, ", ")))
	}
	return errors.Join(err, lerr)
}

// swarmInfo is the swarm's part of docker info.
func (h *testHost) swarmInfo() swarm.Info {
	h.t.Helper()
	info, err := h.docker.Info(h.t.Context(), client.InfoOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	return info.Info.Swarm
}

// inactive checks that the host is in no swarm and keeps nothing of one.
func (h *testHost) inactive() {
	h.t.Helper()
	if info := h.swarmInfo(); info.LocalNodeState != swarm.LocalNodeStateInactive || info.NodeID != "" || info.ControlAvailable {
		h.t.Errorf("%s is %+v, want inactive", h.name, info)
	}
	for _, name := range []string{"node.json", "node.key", "raft", "node"} {
		if _, err := os.Stat(filepath.Join(h.data, name)); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("%s keeps %s: %v", h.name, name, err)
		}
	}
	if err := h.leftovers(); err != nil {
		h.t.Error(err)
	}
}

func (h *testHost) init() error {
	_, err := h.docker.SwarmInit(h.t.Context(), client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377"})
	return err
}

func (h *testHost) mustInit() {
	h.t.Helper()
	if err := h.init(); err != nil {
		h.t.Fatal(err)
	}
}

func (h *testHost) leave(force bool) error {
	_, err := h.docker.SwarmLeave(h.t.Context(), client.SwarmLeaveOptions{Force: force})
	return err
}

func (h *testHost) join(manager, token string) error {
	_, err := h.docker.SwarmJoin(h.t.Context(), client.SwarmJoinOptions{ListenAddr: "0.0.0.0:2377", RemoteAddrs: []string{manager}, JoinToken: token})
	return err
}

func (h *testHost) token() string {
	h.t.Helper()
	sw, err := h.docker.SwarmInspect(h.t.Context(), client.SwarmInspectOptions{})
	if err != nil {
		h.t.Fatal(err)
	}
	return sw.Swarm.JoinTokens.Worker
}

// status is netd status, and its exit status.
func (h *testHost) status() (debug.Status, int) {
	h.t.Helper()
	code, out := h.netd("status", "--json", "--socket", h.socket())
	var s debug.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		h.t.Fatalf("netd status: %v: %s", err, out)
	}
	return s, code
}

// healthy waits until netd status says so.
func (h *testHost) healthy() {
	h.t.Helper()
	nettest.Eventually(h.t, time.Minute, h.name+" is healthy", func() error {
		if s, _ := h.status(); s.Verdict != debug.Healthy {
			return fmt.Errorf("%s because of %q", s.Verdict, s.Reasons)
		}
		return nil
	})
}

// createService makes a service of netd/echo on a network of its own.
func (h *testHost) createService(name string, replicas uint64) {
	h.t.Helper()
	network, err := h.docker.NetworkCreate(h.t.Context(), "net-"+name, client.NetworkCreateOptions{Driver: "overlay"})
	if err != nil {
		h.t.Fatal(err)
	}
	delay := time.Duration(0)
	_, err = h.docker.ServiceCreate(h.t.Context(), client.ServiceCreateOptions{Spec: swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: name},
		Mode:        swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Image: "netd/echo"}, Networks: []swarm.NetworkAttachmentConfig{{Target: network.ID}},
			RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay},
		},
	}})
	if err != nil {
		h.t.Fatal(err)
	}
}

// running waits until n tasks are wanted and run, and maps each to its process.
func (h *testHost) running(n int, within time.Duration) map[string]int {
	h.t.Helper()
	var pids map[string]int
	nettest.Eventually(h.t, within, fmt.Sprintf("%d tasks run", n), func() error {
		list, err := h.docker.TaskList(h.t.Context(), client.TaskListOptions{Filters: client.Filters{}.Add("desired-state", "running")})
		pids = map[string]int{}
		for _, t := range list.Items {
			if t.Status.State == swarm.TaskStateRunning && t.Status.ContainerStatus != nil {
				pids[t.ID] = t.Status.ContainerStatus.PID
			} else {
				err = errors.Join(err, fmt.Errorf("%s on %s is %s: %s", t.ID, t.NodeID, t.Status.State, t.Status.Err))
			}
		}
		if len(pids) != n {
			err = errors.Join(err, fmt.Errorf("%d run", len(pids)))
		}
		return err
	})
	return pids
}
