package dispatch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"netd/pki"
)

// How many connections without a node's certificate there may be, in all and
// from one address. Beyond that new ones are closed unheard: nodes try again.
const (
	maxStrangers     = 512
	maxStrangersFrom = 64
	// strangerTime is how long a connection without a certificate may last.
	strangerTime = time.Minute
)

// accept takes connections until the listener is closed, and hands each to the
// protocol that its handshake agrees on.
func (s *Server) accept(ctx context.Context, rpcs *queue) error {
	var handshakes sync.WaitGroup
	defer handshakes.Wait()
	for {
		conn, err := s.c.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			// Out of descriptors, or a connection that was gone at once.
			s.c.Log.Warn("no connection taken", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		stranger, ok := s.door.enter(conn)
		if !ok {
			conn.Close()
			continue
		}
		handshakes.Go(func() {
			if err := s.greet(ctx, stranger, rpcs); err != nil {
				stranger.Close()
				s.c.Log.Debug("connection refused", "from", conn.RemoteAddr(), "err", err)
			}
		})
	}
}

// greet does the handshake and hands the connection over.
func (s *Server) greet(ctx context.Context, stranger *strangerConn, rpcs *queue) error {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn := tls.Server(stranger, s.tls.Load())
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	state := conn.ConnectionState()
	who, err := pki.Identity(state)
	if err == nil {
		stranger.leave() // it is a node of the swarm
	}
	switch {
	case state.NegotiatedProtocol == protoRPC:
		return rpcs.put(conn)
	case state.NegotiatedProtocol != protoRaft:
		return fmt.Errorf("unknown protocol %q", state.NegotiatedProtocol)
	case err != nil:
		return err
	case who.Role != pki.Manager:
		return fmt.Errorf("node %s is no manager and may not speak raft", who.Node)
	}
	return s.raft.put(conn)
}

// door counts the connections that have not shown a certificate.
type door struct {
	mu   sync.Mutex
	all  int
	from map[netip.Addr]int
}

// strangerConn is a connection that counts as one until leave or Close.
type strangerConn struct {
	net.Conn
	once  sync.Once
	timer *time.Timer
	out   func()
}

func (d *door) enter(conn net.Conn) (*strangerConn, bool) {
	var addr netip.Addr
	if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		addr = ap.Addr().Unmap()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all >= maxStrangers || d.from[addr] >= maxStrangersFrom {
		return nil, false
	}
	if d.from == nil {
		d.from = make(map[netip.Addr]int)
	}
	d.all++
	d.from[addr]++
	c := &strangerConn{Conn: conn}
	c.out = func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.all--
		if d.from[addr]--; d.from[addr] == 0 {
			delete(d.from, addr)
		}
	}
	c.timer = time.AfterFunc(strangerTime, func() { c.Conn.Close() })
	return c, true
}

func (c *strangerConn) leave() {
	c.once.Do(func() {
		c.timer.Stop()
		c.out()
	})
}

// Close closes the connection and its place at the door.
func (c *strangerConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

// queue is a listener whose connections are put into it.
type queue struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (q *queue) put(conn net.Conn) error {
	select {
	case q.conns <- conn:
		return nil
	case <-q.closed:
		return net.ErrClosed
	}
}

// Accept returns the next connection.
func (q *queue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (q *queue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr returns the address of the port.
func (q *queue) Addr() net.Addr { return q.addr }

// raftLayer is raft's share of the port. Its Close also closes the connections
// that it has accepted: raft's own transport leaves them open. When the server
// ends first, Accept waits for Close: an error would be one to report.
type raftLayer struct {
	*queue
	server *Server
	ended  chan struct{} // closed when the server has ended

	mu   sync.Mutex
	open map[*raftConn]struct{} // nil once there are to be no more
}

func newRaftLayer(s *Server) *raftLayer {
	return &raftLayer{queue: newQueue(s.c.Listener.Addr()), server: s, ended: make(chan struct{}), open: make(map[*raftConn]struct{})}
}

// raftConn is an accepted connection of raft.
type raftConn struct {
	net.Conn
	layer *raftLayer
}

func (l *raftLayer) put(conn net.Conn) error {
	c := &raftConn{conn, l}
	l.mu.Lock()
	if l.open == nil {
		l.mu.Unlock()
		return net.ErrClosed
	}
	l.open[c] = struct{}{}
	l.mu.Unlock()
	select {
	case l.conns <- c:
		return nil
	case <-l.closed:
	case <-l.ended:
	}
	return errors.Join(net.ErrClosed, c.Close())
}

// Close closes the connection.
func (c *raftConn) Close() error {
	c.layer.mu.Lock()
	delete(c.layer.open, c)
	c.layer.mu.Unlock()
	return c.Conn.Close()
}

// Close ends Accept and all accepted connections.
func (l *raftLayer) Close() error {
	err := l.queue.Close()
	l.drop()
	return err
}

// end is the end of the server.
func (l *raftLayer) end() {
	close(l.ended)
	l.drop()
}

func (l *raftLayer) drop() {
	l.mu.Lock()
	open := l.open
	l.open = nil
	l.mu.Unlock()
	for c := range open {
		c.Conn.Close() // raft hears of it by its next read
	}
}

// Dial connects to the raft of the manager at the address.
func (l *raftLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	d := &net.Dialer{Timeout: timeout}
	conn, err := tls.DialWithDialer(d, "tcp", string(to), clientOf(l.server.tls.Load(), protoRaft))
	if err != nil {
		return nil, fmt.Errorf("dial raft of %s: %w", to, err)
	}
	return conn, nil
}
