package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"

	"github.com/hashicorp/raft"

	"netd"
)

// Identity is who the other end of a connection is, by its certificate.
type Identity struct {
	Node    netd.NodeID
	Manager bool
}

// Config says what a server stands on.
type Config struct {
	Listener net.Listener
	TLS      *tls.Config
	// Identify reads the identity from a verified certificate; an error refuses it.
	Identify func(tls.ConnectionState) (Identity, error)
	Manager  Manager
	Log      *slog.Logger
}

// Server is a manager's end.
type Server struct{ c Config }

// NewServer returns a server on c.Listener, which it closes at the end of Run.
func NewServer(c Config) *Server { return &Server{c: c} }

// SetManager sets who answers. Until then every call is answered with "try
// again": raft's connections, which the manager's store needs, come first.
func (s *Server) SetManager(m Manager) {}

// RaftLayer returns raft's connections over the server's port.
func (s *Server) RaftLayer() raft.StreamLayer { return nil }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error { return errors.ErrUnsupported }
