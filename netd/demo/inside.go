package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	ns "netd/internal/netns"
)

// inside is the way into a running netd/echo task: over the loopback of its own
// namespace. What it then does, it does itself, with its own resolver and address.
type inside struct {
	name  string
	netns string
}

func (d *demo) inside(service string, t swarm.Task) inside {
	in := inside{name: fmt.Sprintf("%s.%d.%s", service, t.Slot, t.ID)}
	if n := d.nodeOf(t); n != nil {
		in.netns = filepath.Join(n.run(), "netns", "task-"+t.ID)
	}
	return in
}

// calls is what a task tells of requests that it made.
type calls struct {
	OK, Failed int
	Error      string // of the first that failed
	// Tasks, Nodes and Clients count the answers by who answered where, and by the
	// address that it saw.
	Tasks, Nodes, Clients map[string]int
}

// call has the task make n requests to target, each on a connection of its own.
func (in inside) call(ctx context.Context, target string, n int) (calls, error) {
	var c calls
	err := in.get(ctx, fmt.Sprintf("/call?url=%s&n=%d", url.QueryEscape(target), n), &c)
	return c, err
}

// resolve has the task look a name up.
func (in inside) resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	var answer struct {
		Addrs []netip.Addr
		Error string
	}
	if err := in.get(ctx, "/resolve?name="+url.QueryEscape(name), &answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("resolve %q: %s", name, answer.Error)
	}
	slices.SortFunc(answer.Addrs, netip.Addr.Compare)
	return answer.Addrs, nil
}

func (in inside) get(ctx context.Context, path string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	dial := func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = ns.Do(in.netns, func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", "127.0.0.1:80")
			return err
		})
		return c, err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://task"+path, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("ask task %s: %w", in.name, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 300))
		return fmt.Errorf("ask task %s: %s: %s", in.name, response.Status, text)
	}
	return json.NewDecoder(response.Body).Decode(into)
}
