package dispatch

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"

	"netd"
	"netd/pki"
)

// A client that finds no manager waits this long and ever longer.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 8 * time.Second
)

// ClientConfig says how a node reaches its managers.
type ClientConfig struct {
	// TLS is as of pki.ClientTLS.
	TLS      *tls.Config
	Managers []string // host:port
	Log      *slog.Logger
	// Heartbeat is the longest silence of the node. 5 s when zero.
	Heartbeat time.Duration
}

// Client is a node's end.
type Client struct {
	c         ClientConfig
	connected atomic.Bool
	outbox    *outbox

	mu       sync.Mutex
	tls      *tls.Config
	managers []string
	restart  func() // ends the open session, nil when there is none
}

// NewClient returns a client that Run connects.
func NewClient(c ClientConfig) *Client {
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	return &Client{c: c, tls: c.TLS, managers: slices.Clone(c.Managers), outbox: newOutbox()}
}

// Send queues r for the managers and never blocks. What is newer replaces what
// is older; statuses are kept until a manager has stored them.
func (c *Client) Send(r Report) { c.outbox.add(r) }

// Leave tells the managers that this node leaves the swarm for good, and waits
// until one of them has stored it or ctx ends. Run must be running, and should be
// ended next: a later session would make the node a member again for a moment.
func (c *Client) Leave(ctx context.Context) error {
	c.outbox.add(Report{Leaving: true})
	select {
	case <-c.outbox.left:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("tell the managers that the node leaves: %w", context.Cause(ctx))
	}
}

// Connected tells whether a session is open.
func (c *Client) Connected() bool { return c.connected.Load() }

// Managers returns where the client looks for sessions, as host:port.
func (c *Client) Managers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.managers)
}

// SetTLS replaces the configuration, as after a renewal, and opens a new session
// under it.
func (c *Client) SetTLS(conf *tls.Config) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tls = conf
	if c.restart != nil {
		c.restart()
	}
}

// Run keeps a session with one of the managers and hands each assignment to
// onAssignment, which must return soon: nothing else is received meanwhile. It
// returns nil when ctx ends, and a netd.ErrForbidden when the swarm refuses the
// node for good.
func (c *Client) Run(ctx context.Context, onAssignment func(Assignment)) error {
	wait := backoff.ExponentialBackOff{InitialInterval: firstWait, MaxInterval: longestWait, Multiplier: 2, RandomizationFactor: 0.5}
	wait.Reset()
	lost := false
	for {
		for _, manager := range c.Managers() {
			start := time.Now()
			worked, err := c.session(ctx, manager, onAssignment)
			switch {
			case ctx.Err() != nil:
				return nil
			case errors.Is(err, netd.ErrForbidden):
				return err
			case worked:
				c.c.Log.Info("session with manager ended", "manager", manager, "err", err)
				lost = true
				if time.Since(start) > c.c.Heartbeat { // not one that ends as soon as it begins
					wait.Reset()
				}
			case lost: // said once, then only for debugging: the managers may be away for long
				lost = false
				c.c.Log.Warn("no session with manager", "manager", manager, "err", err)
			default:
				c.c.Log.Debug("no session with manager", "manager", manager, "err", err)
			}
		}
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// Renew asks any manager to sign a new certificate for this node.
func (c *Client) Renew(ctx context.Context, csrPEM []byte) (certPEM []byte, err error) {
	err = netd.Errorf(netd.ErrUnavailable, "renew certificate: no manager is known")
	for _, manager := range c.Managers() {
		c.mu.Lock()
		conf := c.tls
		c.mu.Unlock()
		var reply renewReply
		if err = call(ctx, conf, url(manager, pathRenew), renewRequest{csrPEM}, &reply); err == nil {
			return reply.Certificate, nil
		}
		if errors.Is(err, netd.ErrForbidden) {
			break
		}
	}
	return nil, fmt.Errorf("renew certificate: %w", err)
}

// Join asks the manager at host:port to admit a node. Only a manager of the
// swarm that the token names is spoken to.
func Join(ctx context.Context, manager string, req JoinRequest) (JoinReply, error) {
	conf, err := pki.PinnedTLS(req.Token)
	if err != nil {
		return JoinReply{}, err
	}
	var reply JoinReply
	if err := call(ctx, conf, url(manager, pathJoin), req, &reply); err != nil {
		return JoinReply{}, err
	}
	digest, _, err := pki.ParseToken(req.Token)
	if err != nil {
		return JoinReply{}, err
	}
	ca, err := pki.LoadCA(reply.CA, nil)
	if err != nil {
		return JoinReply{}, fmt.Errorf("join swarm at %s: %w", manager, err)
	}
	if ca.Digest() != digest {
		return JoinReply{}, netd.Errorf(netd.ErrForbidden, "join swarm at %s: the root certificate in the answer is not that of the join token", manager)
	}
	return reply, nil
}

// call does one call and returns the manager's error as it is.
func call(ctx context.Context, conf *tls.Config, to string, req, reply any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return netd.Errorf(netd.ErrInvalid, "call manager: %w", err)
	}
	t, closeConns := transport(conf, defaultHeartbeat)
	defer closeConns()
	resp, err := t.RoundTrip(r)
	if err != nil {
		return unreachable(r.URL.Host, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errorOf(resp)
	}
	if err := json.NewDecoder(http.MaxBytesReader(nil, resp.Body, maxCall)).Decode(reply); err != nil {
		return netd.Errorf(netd.ErrUnavailable, "read answer of manager %s: %w", r.URL.Host, err)
	}
	return nil
}

// unreachable makes err an ErrUnavailable, unless it is already something worse,
// such as a manager of another swarm.
func unreachable(manager string, err error) error {
	if errors.Is(err, netd.ErrForbidden) {
		return fmt.Errorf("connect to manager %s: %w", manager, err)
	}
	return netd.Errorf(netd.ErrUnavailable, "connect to manager %s: %w", manager, err)
}
