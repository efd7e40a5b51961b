package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"
)

// ClientConfig says how a node reaches its managers.
type ClientConfig struct {
	TLS       *tls.Config
	Managers  []string // host:port
	Log       *slog.Logger
	Heartbeat time.Duration // 5 s when zero
}

// Client is a node's end.
type Client struct{}

// NewClient returns a client that Run connects.
func NewClient(c ClientConfig) *Client { return &Client{} }

// Run keeps a session until ctx ends or the swarm refuses the node for good,
// which is a netd.ErrForbidden.
func (c *Client) Run(ctx context.Context, onAssignment func(Assignment)) error {
	return errors.ErrUnsupported
}

// Send queues r for the managers and never blocks. What is newer replaces what
// is older; statuses are kept until a manager has stored them.
func (c *Client) Send(r Report) {}

// Connected tells whether a session is open.
func (c *Client) Connected() bool { return false }

// Join asks the manager at host:port to admit a node. conf pins the manager by
// the token's digest.
func Join(ctx context.Context, conf *tls.Config, manager string, req JoinRequest) (JoinReply, error) {
	return JoinReply{}, errors.ErrUnsupported
}
