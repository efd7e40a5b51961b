package dispatch

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"go.uber.org/goleak"

	"netd"
	"netd/internal/nettest"
	"netd/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	cluster   = "cluster1"
	heartbeat = 100 * time.Millisecond
)

// hub is a manager whose decisions the tests make.
type hub struct {
	ca    pki.CA
	log   *slog.Logger
	logs  *logText
	token string
	beat  time.Duration

	mu       sync.Mutex
	refused  map[netd.NodeID]bool
	attached map[netd.NodeID]chan Assignment
	attaches int
	sessions map[netd.NodeID]context.Context // the newest of each node
	overlap  bool                            // a node had two at once
	reports  []Report
	reject   error // what Report returns
	statuses map[string]swarm.TaskState
}

func newHub(t *testing.T) *hub {
	t.Helper()
	ca, _, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{beat: heartbeat, ca: ca, logs: new(logText), refused: map[netd.NodeID]bool{}, attached: map[netd.NodeID]chan Assignment{},
		sessions: map[netd.NodeID]context.Context{}, statuses: map[string]swarm.TaskState{}}
	h.log = slog.New(slog.NewTextHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if h.token, err = pki.NewToken(ca); err != nil {
		t.Fatal(err)
	}
	return h
}

// logText is all that was logged.
type logText struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (h *hub) Join(_ context.Context, r JoinRequest) (JoinReply, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !pki.SameToken(r.Token, h.token) {
		return JoinReply{}, netd.Errorf(netd.ErrInvalid, "A valid join token is necessary to join this cluster")
	}
	if !r.Addr.IsValid() {
		return JoinReply{}, errors.New("no address")
	}
	id := netd.NodeID(pki.NewID())
	cert, err := h.ca.Sign(r.CSR, pki.Subject{Node: id, Role: pki.Worker, Cluster: cluster}, 0, time.Now())
	return JoinReply{NodeID: id, Certificate: cert, CA: h.ca.CertPEM, Role: swarm.NodeRoleWorker, ClusterID: cluster}, err
}

func (h *hub) Attach(ctx context.Context, node netd.NodeID) (<-chan Assignment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused[node] {
		return nil, netd.Errorf(netd.ErrForbidden, "node %s is not part of this swarm", node)
	}
	h.attaches++
	if old := h.sessions[node]; old != nil && old.Err() == nil {
		h.overlap = true
	}
	h.sessions[node] = ctx
	ch := make(chan Assignment, 1)
	h.attached[node] = ch
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.attached[node] == ch {
			delete(h.attached, node)
			close(ch)
		}
	})
	return ch, nil
}

func (h *hub) Report(_ context.Context, _ netd.NodeID, r Report) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reject != nil {
		return h.reject
	}
	h.reports = append(h.reports, r)
	for _, s := range r.Statuses {
		h.statuses[s.ID] = s.Status.State
	}
	return nil
}

func (h *hub) Renew(_ context.Context, node netd.NodeID, csr []byte) ([]byte, error) {
	return h.ca.Sign(csr, pki.Subject{Node: node, Role: pki.Manager, Cluster: cluster}, 0, time.Now())
}

// remove takes a node out of the swarm.
func (h *hub) remove(node netd.NodeID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused[node] = true
	if ch := h.attached[node]; ch != nil {
		delete(h.attached, node)
		close(ch)
	}
}

func (h *hub) assign(t *testing.T, node netd.NodeID, a Assignment) {
	t.Helper()
	nettest.Eventually(t, 5*time.Second, "the node attaches", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.attached[node] == nil {
			return errors.New("not attached")
		}
		h.attached[node] <- a
		return nil
	})
}

// server is a server that runs.
type server struct {
	*Server
	addr string
	stop context.CancelFunc
	done chan error
}

func (h *hub) serve(t *testing.T, addr string) *server {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{
		Server: NewServer(Config{Listener: l, TLS: pki.ServerTLS(h.cert(t, "m1", pki.Manager), h.ca), Manager: h, Log: h.log, Heartbeat: h.beat}),
		addr:   l.Addr().String(), done: make(chan error, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	go func() { s.done <- s.Run(ctx) }()
	t.Cleanup(func() { s.end(t) })
	return s
}

func (s *server) end(t *testing.T) {
	t.Helper()
	if s.done == nil {
		return
	}
	s.stop()
	start := time.Now()
	if err := <-s.done; err != nil {
		t.Errorf("server: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("the server took %v to stop", took)
	}
	s.done = nil
}

func (h *hub) cert(t *testing.T, node netd.NodeID, role pki.Role) tls.Certificate {
	t.Helper()
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := h.ca.Sign(csr, pki.Subject{Node: node, Role: role, Cluster: cluster}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.Certificate(cert, key, h.ca)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// worker is a client that runs.
type worker struct {
	*Client
	id   netd.NodeID
	stop context.CancelFunc
	got  chan Assignment
	done chan error
}

func (h *hub) worker(t *testing.T, id netd.NodeID, managers ...string) *worker {
	t.Helper()
	conf := pki.ClientTLS(h.cert(t, id, pki.Worker), h.ca)
	w := &worker{
		Client: NewClient(ClientConfig{TLS: conf, Managers: managers, Log: h.log, Heartbeat: h.beat}),
		id:     id, got: make(chan Assignment, 100), done: make(chan error, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() { w.done <- w.Run(ctx, func(a Assignment) { w.got <- a }) }()
	t.Cleanup(func() { w.end(t) })
	return w
}

func (w *worker) end(t *testing.T) {
	t.Helper()
	w.stop()
	if w.done == nil {
		return
	}
	if err := <-w.done; err != nil {
		t.Errorf("client: %v", err)
	}
	w.done = nil
}

func (w *worker) wait(t *testing.T, connected bool) {
	t.Helper()
	nettest.Eventually(t, 10*time.Second, "connected", func() error {
		if w.Connected() != connected {
			return errors.New("not so")
		}
		return nil
	})
}

func (w *worker) next(t *testing.T) Assignment {
	t.Helper()
	select {
	case a := <-w.got:
		return a
	case <-time.After(10 * time.Second):
		t.Fatal("no assignment came")
		return Assignment{}
	}
}

func (h *hub) stored(t *testing.T, want map[string]swarm.TaskState) {
	t.Helper()
	nettest.Eventually(t, 10*time.Second, "statuses stored", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if !maps.Equal(h.statuses, want) {
			return errors.New("not yet")
		}
		return nil
	})
}

func status(id string, state swarm.TaskState) Report {
	return Report{Statuses: []TaskStatus{{ID: id, Status: swarm.TaskStatus{State: state}}}}
}

// A node joins with the token of the swarm, and gets a certificate with which it
// has a session; with any other token it is told so, in swarmkit's words.
func TestJoin(t *testing.T) {
	h, other := newHub(t), newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	rotated, err := pki.NewToken(h.ca)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		token, want string
		kind        error
	}{
		"rotated":       {rotated, "A valid join token is necessary to join this cluster", netd.ErrInvalid},
		"other swarm":   {other.token, "remote CA does not match fingerprint", netd.ErrForbidden},
		"no token":      {"", "invalid join token", netd.ErrInvalid},
		"half a token":  {h.token[:30], "invalid join token", netd.ErrInvalid},
		"wrong request": {h.token, "certificate request", nil},
	} {
		_, err := Join(t.Context(), s.addr, JoinRequest{Token: tc.token, CSR: []byte("x")})
		if err == nil || !strings.Contains(err.Error(), tc.want) || (tc.kind != nil && !errors.Is(err, tc.kind)) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && tc.token != "" && strings.Contains(err.Error(), tc.token) {
			t.Errorf("%s: the token is in the error", name)
		}
	}
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := Join(t.Context(), s.addr, JoinRequest{Token: h.token, CSR: csr})
	if err != nil {
		t.Fatal(err)
	}
	ca, err := pki.LoadCA(reply.CA, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Certificate(reply.Certificate, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Assignment)
	c := NewClient(ClientConfig{TLS: pki.ClientTLS(cert, ca), Managers: []string{s.addr}, Log: h.log, Heartbeat: h.beat})
	done := make(chan error)
	go func() { done <- c.Run(ctx, func(a Assignment) { got <- a }) }()
	h.assign(t, reply.NodeID, Assignment{Generation: 7})
	if a := <-got; a.Generation != 7 {
		t.Errorf("assignment %+v", a)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if strings.Contains(h.logs.String(), h.token) {
		t.Error("the token is in the log")
	}
}

// A session carries assignments down and reports up, keeps the newest of each
// status, and heartbeats when there is nothing to say.
func TestSession(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	w := h.worker(t, "n1", s.addr)
	w.Send(status("t1", swarm.TaskStateStarting))
	w.Send(Report{Applied: 3, Description: &swarm.NodeDescription{Hostname: "host1"}})
	w.Send(status("t1", swarm.TaskStateRunning))
	w.Send(status("t2", swarm.TaskStateReady))
	h.assign(t, "n1", Assignment{Generation: 1, GossipKeys: [][]byte{[]byte("canary-key")}, Managers: []string{s.addr}})
	h.assign(t, "n1", Assignment{Generation: 2})
	if a, b := w.next(t), w.next(t); a.Generation != 1 || b.Generation != 2 || string(a.GossipKeys[0]) != "canary-key" {
		t.Errorf("assignments %+v and %+v", a, b)
	}
	h.stored(t, map[string]swarm.TaskState{"t1": swarm.TaskStateRunning, "t2": swarm.TaskStateReady})
	nettest.Eventually(t, 5*time.Second, "heartbeats", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.reports) < 4 {
			return errors.New("too few")
		}
		return nil
	})
	h.mu.Lock()
	described := slices.ContainsFunc(h.reports, func(r Report) bool {
		return r.Description != nil && r.Description.Hostname == "host1" && r.Applied == 3
	})
	h.mu.Unlock()
	if !described {
		t.Error("the description is missing")
	}
	if strings.Contains(h.logs.String(), "canary") || strings.Contains(h.logs.String(), "Y2FuYXJ5") {
		t.Error("a key is in the log")
	}
}

// An assignment may be larger than any window of HTTP/2.
func TestLargeAssignment(t *testing.T) {
	h := newHub(t)
	h.beat = defaultHeartbeat
	w := h.worker(t, "n1", h.serve(t, "127.0.0.1:0").addr)
	large := bytes.Repeat([]byte{'x'}, 6<<20)
	h.assign(t, "n1", Assignment{GossipKeys: [][]byte{large}})
	if a := w.next(t); !bytes.Equal(a.GossipKeys[0], large) {
		t.Error("it is not what was sent")
	}
}

// Statuses that a manager could not store, or that were sent while there was
// none, are stored when there is one again, at the address it then has.
func TestReconnect(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	w := h.worker(t, "n1", s.addr)
	w.wait(t, true)
	h.mu.Lock()
	h.reject = netd.Errorf(netd.ErrUnavailable, "leadership lost")
	h.mu.Unlock()
	w.Send(status("t1", swarm.TaskStateRunning))
	w.wait(t, false)
	s.end(t)
	w.Send(status("t2", swarm.TaskStateFailed))
	h.mu.Lock()
	h.reject = nil
	h.mu.Unlock()
	second := h.serve(t, s.addr)
	h.stored(t, map[string]swarm.TaskState{"t1": swarm.TaskStateRunning, "t2": swarm.TaskStateFailed})
	third := h.serve(t, "127.0.0.1:0")
	h.assign(t, "n1", Assignment{Generation: 1, Managers: []string{third.addr}})
	w.next(t)
	second.end(t)
	w.Send(status("t3", swarm.TaskStateRunning))
	h.stored(t, map[string]swarm.TaskState{"t1": swarm.TaskStateRunning, "t2": swarm.TaskStateFailed, "t3": swarm.TaskStateRunning})
}

// A node that is removed, with an open session or without, learns that for good.
func TestRemovedNode(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	w := h.worker(t, "n1", s.addr)
	w.wait(t, true)
	h.remove("n1")
	select {
	case err := <-w.done:
		w.done = nil
		if !errors.Is(err, netd.ErrForbidden) || !strings.Contains(err.Error(), "node n1 is not part of this swarm") {
			t.Errorf("run: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it goes on")
	}
}
