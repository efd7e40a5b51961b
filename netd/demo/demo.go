// Package demo runs netd's main job on one bare machine: three nodes, each a
// daemon in a network namespace of its own on a private underlay, joined by real
// tokens, and a list of checks that drive them through the Docker API and look at
// real packets. It has no knowledge of the daemon's inside: what it does, a user
// can do by hand.
package demo

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/client"

	"netd"
)

// Config says where the demo lives and what it runs.
type Config struct {
	// Binary is the netd executable that the nodes run.
	Binary string
	// Dir holds all of the demo's files: run directories, namespaces, logs.
	Dir string
	// Keep leaves the swarm up at the end.
	Keep bool
	// Balancer forces a renderer on all nodes; empty lets each choose.
	Balancer string
	Out      io.Writer
}

// size is the number of nodes.
const size = 3

// demo is one run.
type demo struct {
	Config
	nodes   []*node
	network string
	passed  int
	failed  []string
}

// node is one daemon and its Docker client.
type node struct {
	name    string
	addr    netip.Addr
	dir     string
	netns   string
	docker  *client.Client
	id      string
	process *os.Process
	ended   <-chan struct{} // closed when the process is gone
}

func (c Config) newDemo() (*demo, error) {
	d := &demo{Config: c}
	for i := range size {
		n := &node{
			name: fmt.Sprintf("n%d", i+1), addr: netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}),
			dir: filepath.Join(c.Dir, fmt.Sprintf("n%d", i+1)), netns: filepath.Join(c.Dir, "netns", fmt.Sprintf("n%d", i+1)),
		}
		docker, err := client.New(client.WithHost("unix://" + n.socket()))
		if err != nil {
			return nil, fmt.Errorf("make docker client: %w", err)
		}
		n.docker = docker
		d.nodes = append(d.nodes, n)
	}
	return d, nil
}

func (n *node) socket() string { return filepath.Join(n.dir, "run", "netd.sock") }
func (n *node) data() string   { return filepath.Join(n.dir, "data") }
func (n *node) run() string    { return filepath.Join(n.dir, "run") }
func (n *node) log() string    { return filepath.Join(n.dir, "daemon.log") }

// Run builds the lab, goes through the checks, and takes the lab down again
// unless Keep is set. The error says how many checks failed; each has been
// printed by name.
func Run(ctx context.Context, c Config) error {
	if err := Remove(ctx, c); err != nil {
		return fmt.Errorf("remove an earlier demo: %w", err)
	}
	d, err := c.newDemo()
	if err != nil {
		return err
	}
	begun := time.Now()
	err = d.checks(ctx)
	if err != nil {
		d.failed = append(d.failed, err.Error())
		fmt.Fprintf(c.Out, "FAIL %v\n", err)
	}
	if len(d.failed) > 0 {
		d.logs()
	}
	if c.Keep && ctx.Err() == nil {
		d.hints()
	} else if err := Remove(context.WithoutCancel(ctx), c); err != nil {
		d.failed = append(d.failed, err.Error())
		fmt.Fprintf(c.Out, "FAIL remove the demo: %v\n", err)
	}
	fmt.Fprintf(c.Out, "demo: %d checks passed, %d failed (%s)\n", d.passed, len(d.failed), time.Since(begun).Round(100*time.Millisecond))
	if len(d.failed) > 0 {
		return netd.Errorf(netd.ErrUnavailable, "%d checks failed; first: %s", len(d.failed), d.failed[0])
	}
	return nil
}

// check runs one check and prints its line. A failed check does not end the demo.
func (d *demo) check(name string, fn func() (string, error)) {
	begun := time.Now()
	detail, err := fn()
	took := time.Since(begun).Round(10 * time.Millisecond)
	if err != nil {
		d.failed = append(d.failed, name+": "+err.Error())
		fmt.Fprintf(d.Out, "FAIL %s: %v (%s)\n", name, err, took)
		return
	}
	d.passed++
	fmt.Fprintf(d.Out, "ok   %s: %s (%s)\n", name, detail, took)
}

// logs prints the end of each daemon's log, for whoever reads a failure.
func (d *demo) logs() {
	const tail = 3000
	for _, n := range d.nodes {
		data, err := os.ReadFile(n.log())
		if err != nil {
			continue
		}
		if len(data) > tail {
			data = data[len(data)-tail:]
		}
		fmt.Fprintf(d.Out, "---- log of %s\n%s\n", n.name, data)
	}
}

func (d *demo) hints() {
	fmt.Fprintln(d.Out, "\nThe swarm stays up. Its sockets:")
	for _, n := range d.nodes {
		fmt.Fprintf(d.Out, "  %s  unix://%s\n", n.name, n.socket())
	}
	s := d.nodes[0].socket()
	fmt.Fprintf(d.Out, `Try:
  docker -H unix://%[1]s node ls
  docker -H unix://%[1]s service ps web
  docker -H unix://%[1]s service scale web=6
  docker -H unix://%[1]s service update --env-add COLOR=blue web
  %[2]s status --socket %[1]s
  %[2]s drift --socket %[1]s
  %[2]s trace --socket %[1]s client.1 web:80     (on the client's node)
Stop:
  %[2]s demo rm --dir %[3]s
`, s, d.Binary, d.Dir)
}

// eventually asks again until fn has no error or the time is over; the error is
// the last one.
func eventually(ctx context.Context, within time.Duration, fn func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := fn()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", within, err)
		case <-tick.C:
		}
	}
}
