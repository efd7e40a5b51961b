package dispatch

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"netd"
	"netd/pki"
)

// Joins need no certificate, so all of them together are held to a rate: a token
// has 128 random bits, and a swarm has few joins at a time.
const (
	joinsPerSecond = 20
	joinsAtOnce    = 40
)

// Config says what a server stands on.
type Config struct {
	// Listener is closed at the end of Run.
	Listener net.Listener
	// TLS is as of pki.ServerTLS.
	TLS *tls.Config
	// Manager may come later, by SetManager.
	Manager Manager
	Log     *slog.Logger
	// Heartbeat is that of the nodes: a session without any for three of these
	// ends. 5 s when zero.
	Heartbeat time.Duration
}

// Server is a manager's end.
type Server struct {
	c       Config
	tls     atomic.Pointer[tls.Config]
	manager atomic.Pointer[Manager]
	raft    *raftLayer
	door    door
	joins   *rate.Limiter

	mu       sync.Mutex
	sessions map[netd.NodeID]*session
}

// NewServer returns a server that Run starts.
func NewServer(c Config) *Server {
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	s := &Server{c: c, joins: rate.NewLimiter(joinsPerSecond, joinsAtOnce), sessions: make(map[netd.NodeID]*session)}
	s.raft = newRaftLayer(s)
	s.SetTLS(c.TLS)
	if c.Manager != nil {
		s.SetManager(c.Manager)
	}
	return s
}

// SetManager sets who answers. Until then every call is answered with "try
// again": raft's connections, which the manager's own store needs, come first.
func (s *Server) SetManager(m Manager) { s.manager.Store(&m) }

// SetTLS replaces the configuration for new connections, as after a renewal.
func (s *Server) SetTLS(conf *tls.Config) {
	conf = conf.Clone()
	conf.NextProtos = []string{protoRPC, protoRaft}
	s.tls.Store(conf)
}

// RaftLayer returns raft's connections over the server's port. They end with Run,
// and whoever accepts them closes the layer.
func (s *Server) RaftLayer() raft.StreamLayer { return s.raft }

// Run serves until ctx ends; then it closes every connection and returns when
// all calls have ended.
func (s *Server) Run(ctx context.Context) error {
	calls := &calls{next: s.handler()}
	web := &http.Server{
		Handler:           calls,
		ReadHeaderTimeout: handshakeTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100, SendPingTimeout: s.c.Heartbeat, PingTimeout: s.c.Heartbeat, WriteByteTimeout: writeTimeout},
		ErrorLog:          slog.NewLogLogger(s.c.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	rpcs := newQueue(s.c.Listener.Addr())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := web.Serve(rpcs); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve nodes: %w", err)
		}
		return nil
	})
	group.Go(func() error { return s.accept(ctx, rpcs) })
	<-ctx.Done()
	s.raft.end()
	closing := errors.Join(s.c.Listener.Close(), web.Close())
	err := group.Wait()
	calls.wait()
	if err != nil {
		return err
	}
	if closing != nil && !errors.Is(closing, net.ErrClosed) {
		return fmt.Errorf("close port: %w", closing)
	}
	return nil
}

// calls counts the calls that run: http.Server.Close does not wait for them.
type calls struct {
	next http.Handler

	mu     sync.Mutex
	closed bool
	active sync.WaitGroup
}

// ServeHTTP passes the call on.
func (c *calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.active.Add(1)
	c.mu.Unlock()
	defer c.active.Done()
	c.next.ServeHTTP(w, r)
}

// wait returns when no call runs, nor will.
func (c *calls) wait() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.active.Wait()
}

// handler is the whole table of calls. All but the join are for nodes of the
// swarm, and each of those may speak for itself only.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+pathJoin, s.join)
	for path, call := range map[string]func(http.ResponseWriter, *http.Request, Manager, pki.Subject){
		pathRenew:   s.renew,
		pathSession: s.session,
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			who, err := pki.Identity(*r.TLS)
			if err != nil {
				s.fail(w, err)
				return
			}
			m, err := s.answering()
			if err != nil {
				s.fail(w, err)
				return
			}
			call(w, r, m, who)
		})
	}
	return mux
}

func (s *Server) answering() (Manager, error) {
	m := s.manager.Load()
	if m == nil {
		return nil, netd.Errorf(netd.ErrUnavailable, "this manager is still starting: try again")
	}
	return *m, nil
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	m, err := s.answering()
	if err != nil {
		s.fail(w, err)
		return
	}
	if err := s.joins.Wait(r.Context()); err != nil {
		s.fail(w, netd.Errorf(netd.ErrUnavailable, "too many nodes join at once: try again"))
		return
	}
	answer(s, w, r, func(req JoinRequest) (JoinReply, error) {
		if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && !req.Addr.IsValid() {
			req.Addr = from.Addr().Unmap()
		}
		return m.Join(r.Context(), req)
	})
}

func (s *Server) renew(w http.ResponseWriter, r *http.Request, m Manager, who pki.Subject) {
	answer(s, w, r, func(req renewRequest) (renewReply, error) {
		cert, err := m.Renew(r.Context(), who.Node, req.CSR)
		return renewReply{cert}, err
	})
}

// answer does one call: a bounded body in, a body out.
func answer[Req, Reply any](s *Server, w http.ResponseWriter, r *http.Request, do func(Req) (Reply, error)) {
	control := http.NewResponseController(w)
	deadline := time.Now().Add(callTimeout)
	if err := errors.Join(control.SetReadDeadline(deadline), control.SetWriteDeadline(deadline)); err != nil {
		s.fail(w, err)
		return
	}
	var req Req
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxCall)).Decode(&req); err != nil {
		s.fail(w, netd.Errorf(netd.ErrInvalid, "read request: %w", err))
		return
	}
	reply, err := do(req)
	if err != nil {
		s.fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(reply); err != nil {
		s.c.Log.Debug("a node did not take its answer", "path", r.URL.Path, "from", r.RemoteAddr, "err", err)
	}
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusOf(err))
	if err := json.NewEncoder(w).Encode(failure{err.Error()}); err != nil {
		s.c.Log.Debug("a node did not take its answer", "err", err)
	}
}
