package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go4.org/netipx"

	ns "netd/internal/netns"
)

// wire is the namespace that holds the underlay's bridge, so that the demo adds
// no link to the machine's own namespace.
func (c Config) wire() string { return filepath.Join(c.Dir, "netns", "wire") }

// build makes the underlay and starts the daemons.
func (d *demo) build(ctx context.Context) error {
	if err := d.underlay(); err != nil {
		return fmt.Errorf("build the underlay: %w", err)
	}
	for _, n := range d.nodes {
		if err := d.launch(n); err != nil {
			return fmt.Errorf("start the daemon of %s: %w", n.name, err)
		}
	}
	for _, n := range d.nodes {
		err := eventually(ctx, 10*time.Second, func() error {
			_, err := n.docker.Ping(ctx, client.PingOptions{})
			return err
		})
		if err != nil {
			return fmt.Errorf("reach the daemon of %s: %w", n.name, err)
		}
	}
	return nil
}

// underlay is one bridge with a cable to each node.
func (d *demo) underlay() error {
	if err := ns.Create(d.wire()); err != nil {
		return err
	}
	h, err := ns.Open(d.wire())
	if err != nil {
		return err
	}
	defer h.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "wire"}}
	if err := errors.Join(h.LinkAdd(bridge), h.LinkSetUp(bridge)); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	for _, n := range d.nodes {
		if err := d.cable(h, bridge, n); err != nil {
			return fmt.Errorf("connect %s: %w", n.name, err)
		}
	}
	return nil
}

func (d *demo) cable(wire *ns.Handle, bridge netlink.Link, n *node) error {
	if err := ns.Create(n.netns); err != nil {
		return err
	}
	fd, err := netns.GetFromPath(n.netns)
	if err != nil {
		return err
	}
	defer fd.Close()
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: n.name, MasterIndex: bridge.Attrs().Index},
		PeerName:  "eth0", PeerNamespace: netlink.NsFd(int(fd)),
	}
	if err := errors.Join(wire.LinkAdd(veth), wire.LinkSetUp(veth)); err != nil {
		return err
	}
	h, err := ns.Open(n.netns)
	if err != nil {
		return err
	}
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: netipx.PrefixIPNet(netip.PrefixFrom(n.addr, 24))}
	return errors.Join(h.AddrAdd(eth0, addr), h.LinkSetUp(eth0))
}

// plug connects a node to the underlay or cuts it off.
func (d *demo) plug(n *node, up bool) error {
	h, err := ns.Open(d.wire())
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(n.name)
	if err != nil {
		return err
	}
	if up {
		return h.LinkSetUp(link)
	}
	return h.LinkSetDown(link)
}

// launch starts a node's daemon in its namespace, in a session of its own so
// that it outlives this program with --keep.
func (d *demo) launch(n *node) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"daemon", "--data-dir", n.data(), "--run-dir", n.run(), "--node-name", n.name, "--advertise-addr", n.addr.String()}
	if d.Balancer != "" {
		args = append(args, "--balancer", d.Balancer)
	}
	cmd := exec.Command(d.Binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := ns.Do(n.netns, cmd.Start); err != nil {
		return err
	}
	ended := make(chan struct{})
	n.process, n.ended = cmd.Process, ended
	go func() {
		defer close(ended)
		cmd.Wait() //nolint:errcheck // a daemon that ended is seen on its socket
	}()
	return os.WriteFile(n.pidFile(), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}

func (n *node) pidFile() string { return filepath.Join(n.dir, "daemon.pid") }

// Remove takes down whatever a demo in c.Dir left, and checks that nothing of it
// remains.
func Remove(ctx context.Context, c Config) error {
	d, err := c.newDemo()
	if err != nil {
		return err
	}
	if _, err := os.Stat(c.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var errs []error
	for _, n := range d.nodes {
		errs = append(errs, n.halt(ctx))
	}
	for _, n := range d.nodes {
		errs = append(errs, n.clear(ctx, c.Binary))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, path := range append([]string{c.wire()}, d.namespaces()...) {
		errs = append(errs, ns.Delete(path))
	}
	errs = append(errs, os.RemoveAll(c.Dir), d.leftovers())
	return errors.Join(errs...)
}

func (d *demo) namespaces() []string {
	var out []string
	for _, n := range d.nodes {
		out = append(out, n.netns)
	}
	return out
}

// halt ends the node's daemon, which is only ever the process that launch
// started: the pid file's process must still run with our data directory.
func (n *node) halt(ctx context.Context) error {
	pid, ours := n.daemon()
	if !ours {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop the daemon of %s: %w", n.name, err)
	}
	return eventually(ctx, 10*time.Second, func() error {
		if _, still := n.daemon(); still {
			return fmt.Errorf("the daemon of %s (pid %d) still runs", n.name, pid)
		}
		return nil
	})
}

func (n *node) daemon() (pid int, ours bool) {
	text, err := os.ReadFile(n.pidFile())
	if err != nil {
		return 0, false
	}
	pid, err = strconv.Atoi(string(text))
	if err != nil {
		return 0, false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return pid, err == nil && strings.Contains(string(cmdline), n.data())
}

// clear removes what the daemon left running and in the kernel.
func (n *node) clear(ctx context.Context, binary string) error {
	if !ns.Exists(n.netns) {
		return nil
	}
	cmd := exec.CommandContext(ctx, binary, "cleanup", "--data-dir", n.data(), "--run-dir", n.run())
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(n.netns, cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("clean up %s: %w: %s", n.name, err, out.String())
	}
	return nil
}

// leftovers is an error that names what of the demo is still there.
func (d *demo) leftovers() error {
	if _, err := os.Stat(d.Dir); err == nil {
		return fmt.Errorf("folder %q is left", d.Dir)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), d.Dir+"/") {
		return fmt.Errorf("a mount below %q is left", d.Dir)
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, p := range processes {
		cmdline, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(cmdline), d.Dir+"/n") {
			return fmt.Errorf("process %s is left", filepath.Base(filepath.Dir(p)))
		}
	}
	return nil
}
