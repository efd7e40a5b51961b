package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	ns "netd/internal/netns"
)

// echoLinePort is where netd/echo answers lines of text on a long connection.
const echoLinePort = 7

// conversation is one TCP connection from a task to a service's VIP.
type conversation struct {
	conn  net.Conn
	lines *bufio.Reader
	said  int
}

func (in inside) talk(ctx context.Context, vip netip.Addr) (*conversation, error) {
	var conn net.Conn
	err := ns.Do(in.netns, func() (err error) {
		conn, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp4", netip.AddrPortFrom(vip, echoLinePort).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the VIP: %w", err)
	}
	return &conversation{conn: conn, lines: bufio.NewReader(conn)}, nil
}

// goOn says a line and expects it back.
func (c *conversation) goOn() error {
	c.said++
	line := fmt.Sprintf("line %d\n", c.said)
	if err := c.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.conn.Write([]byte(line)); err != nil {
		return err
	}
	got, err := c.lines.ReadString('\n')
	if err == nil && got != line {
		err = fmt.Errorf("said %q, heard %q", line, got)
	}
	return err
}

// survivesRestart kills every daemon the hard way while a connection through the
// VIP is open, and starts them again.
func (d *demo) survivesRestart(ctx context.Context) (string, error) {
	before, err := d.everyTask(ctx)
	if err != nil {
		return "", err
	}
	_, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	vip, err := d.vip(ctx, "web")
	if err != nil {
		return "", err
	}
	talk, err := in.talk(ctx, vip)
	if err != nil {
		return "", err
	}
	defer talk.conn.Close()
	if err := talk.goOn(); err != nil {
		return "", fmt.Errorf("before the kill: %w", err)
	}
	for _, n := range d.nodes {
		if err := n.process.Signal(syscall.SIGKILL); err != nil {
			return "", fmt.Errorf("kill the daemon of %s: %w", n.name, err)
		}
	}
	if err := talk.goOn(); err != nil {
		return "", fmt.Errorf("while no daemon runs: %w", err)
	}
	for _, n := range d.nodes {
		<-n.ended // until then it holds its data directory
		if err := d.launch(n); err != nil {
			return "", err
		}
	}
	if _, err := d.nodesReady(ctx); err != nil {
		return "", err
	}
	for _, n := range d.nodes {
		if err := d.adopted(ctx, n); err != nil {
			return "", err
		}
	}
	if err := talk.goOn(); err != nil {
		return "", fmt.Errorf("after the restart: %w", err)
	}
	after, err := d.everyTask(ctx)
	if err != nil {
		return "", err
	}
	for id, pid := range before {
		if after[id] != pid {
			return "", fmt.Errorf("task %s had pid %d and has %d now", id, pid, after[id])
		}
	}
	return fmt.Sprintf("%d tasks kept their processes, the connection its backend, the kernels every object", len(before)), nil
}

// everyTask maps each running task to its process.
func (d *demo) everyTask(ctx context.Context) (map[string]int, error) {
	pids := map[string]int{}
	for _, service := range []string{"web", "client"} {
		list, err := d.nodes[0].docker.TaskList(ctx, client.TaskListOptions{Filters: client.Filters{}.Add("service", service)})
		if err != nil {
			return nil, err
		}
		for _, t := range list.Items {
			if t.Status.State == swarm.TaskStateRunning && t.Status.ContainerStatus != nil {
				pids[t.ID] = t.Status.ContainerStatus.PID
			}
		}
	}
	return pids, nil
}

func (d *demo) vip(ctx context.Context, name string) (netip.Addr, error) {
	service, err := d.nodes[0].docker.ServiceInspect(ctx, name, client.ServiceInspectOptions{})
	if err != nil {
		return netip.Addr{}, err
	}
	for _, v := range service.Service.Endpoint.VirtualIPs {
		if v.NetworkID == d.network {
			return v.Addr.Addr(), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("service %s has no VIP on the network", name)
}

// adopted waits until a restarted node is healthy again, and checks that it got
// there without a change to the kernel.
func (d *demo) adopted(ctx context.Context, n *node) error {
	var status struct {
		Verdict     string
		Reasons     []string
		Changes     int
		LastChanges []string
	}
	err := eventually(ctx, 20*time.Second, func() error {
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, d.Binary, "status", "--json", "--socket", n.socket())
		cmd.Stdout = &out
		err := cmd.Run()
		if jerr := json.Unmarshal(out.Bytes(), &status); jerr != nil {
			return errors.Join(err, jerr)
		}
		if status.Verdict != "HEALTHY" {
			return fmt.Errorf("%s is %s: %v", n.name, status.Verdict, status.Reasons)
		}
		return nil
	})
	if err == nil && status.Changes > 0 {
		err = fmt.Errorf("%s changed %d kernel objects when it came back; want none: %s", n.name, status.Changes, strings.Join(status.LastChanges, "; "))
	}
	return err
}
