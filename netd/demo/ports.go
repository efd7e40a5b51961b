package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	ns "netd/internal/netns"
)

// The ports that web publishes on every node.
const publishedHTTP, publishedUDP = 8080, 8053

func publishedPorts() *swarm.EndpointSpec {
	return &swarm.EndpointSpec{Ports: []swarm.PortConfig{
		{Protocol: network.TCP, TargetPort: 80, PublishedPort: publishedHTTP},
		{Protocol: network.UDP, TargetPort: 80, PublishedPort: publishedUDP},
	}}
}

// outsider is a client on the underlay that is no node of the swarm.
func (d *demo) outsider() *node {
	return &node{name: "outside", addr: netip.AddrFrom4([4]byte{10, 99, 0, 100}), netns: filepath.Join(d.Dir, "netns", "outside")}
}

// callFrom makes n calls from the namespace to a published port of the node at
// to, each on a connection of its own.
func callFrom(ctx context.Context, netns, proto string, to netip.Addr, n int) calls {
	c := calls{Tasks: map[string]int{}, Nodes: map[string]int{}, Clients: map[string]int{}}
	for range n {
		line, err := ask(ctx, netns, proto, to)
		var task, at, client string
		if err == nil {
			_, err = fmt.Sscanf(line, "task=%s node=%s client=%s", &task, &at, &client)
		}
		seen, perr := netip.ParseAddrPort(client)
		if err = cmp.Or(err, perr); err != nil {
			c.Failed++
			c.Error = cmp.Or(c.Error, err.Error())
			continue
		}
		c.OK++
		c.Tasks[task]++
		c.Nodes[at]++
		c.Clients[seen.Addr().String()]++
	}
	return c
}

// ask makes one call and returns the line that netd/echo answers.
func ask(ctx context.Context, netns, proto string, to netip.Addr) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	dial := func(ctx context.Context, _, at string) (c net.Conn, err error) {
		err = ns.Do(netns, func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, proto+"4", at)
			return err
		})
		return c, err
	}
	if proto == "udp" {
		conn, err := dial(ctx, "", netip.AddrPortFrom(to, publishedUDP).String())
		if err != nil {
			return "", err
		}
		defer conn.Close()
		deadline, _ := ctx.Deadline()
		if err := errors.Join(conn.SetDeadline(deadline), write(conn, "?")); err != nil {
			return "", err
		}
		answer := make([]byte, 512)
		n, err := conn.Read(answer)
		return string(answer[:n]), err
	}
	caller := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+netip.AddrPortFrom(to, publishedHTTP).String()+"/", nil)
	if err != nil {
		return "", err
	}
	response, err := caller.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	line, err := io.ReadAll(io.LimitReader(response.Body, 512))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("answered %s", response.Status)
	}
	return string(line), err
}

func write(conn net.Conn, text string) error {
	_, err := conn.Write([]byte(text))
	return err
}

// publishes calls the published port of every node from the outside, and looks at
// whom the tasks saw.
func (d *demo) publishes(ctx context.Context, proto string) (string, error) {
	client := d.outsider()
	remote := 0
	for _, n := range d.nodes {
		c := callFrom(ctx, client.netns, proto, n.addr, 12)
		if c.Failed > 0 {
			return "", fmt.Errorf("%d of 12 calls to %s failed: %s", c.Failed, n.name, c.Error)
		}
		if c.Clients[client.addr.String()] != c.OK {
			return "", fmt.Errorf("tasks reached by %s saw %v, the client is %s", n.name, c.Clients, client.addr)
		}
		remote += c.OK - c.Nodes[n.name]
	}
	if remote == 0 || remote == 36 {
		return "", fmt.Errorf("%d of 36 calls were answered by another node than the one called; want some of both", remote)
	}
	return fmt.Sprintf("36 calls to 3 nodes, %d answered by tasks elsewhere, all saw %s", remote, client.addr), nil
}

// publishesInside calls a node's published port from the node itself, by its
// address and as localhost, and from a task on it.
func (d *demo) publishesInside(ctx context.Context) (string, error) {
	task, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	n := d.nodeOf(task)
	for from, call := range map[string]struct {
		netns string
		to    netip.Addr
	}{
		n.name + " by its address":  {n.netns, n.addr},
		n.name + " as localhost":    {n.netns, netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		"a task on its node's port": {in.netns, n.addr},
	} {
		for _, proto := range []string{"tcp", "udp"} {
			c := callFrom(ctx, call.netns, proto, call.to, 6)
			if c.Failed > 0 || c.Clients[n.addr.String()] != c.OK {
				return "", fmt.Errorf("%s, %s: %d failed (%s), saw %v", from, proto, c.Failed, c.Error, c.Clients)
			}
		}
	}
	return fmt.Sprintf("the node, its localhost and a task on it; seen as %s", n.addr), nil
}
