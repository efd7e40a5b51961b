package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"netd/internal/netns"
)

// Serve answers on the port of every address of the namespace, TCP and UDP, with
// "<name> <the client's address>", until the test ends. On TCP each line that the
// client sends is answered with one line, so that a connection can be kept.
func Serve(t testing.TB, ns, name string, port uint16) {
	t.Helper()
	s := &server{name: name, conns: map[net.Conn]bool{}}
	err := netns.Do(ns, func() (err error) {
		if s.listener, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port)); err != nil {
			return err
		}
		s.packets, err = net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	})
	if err != nil {
		t.Fatalf("serve in %s: %v", ns, err)
	}
	s.running.Go(s.accept)
	s.running.Go(s.receive)
	t.Cleanup(s.close)
}

type server struct {
	name     string
	listener net.Listener
	packets  net.PacketConn
	running  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	conns  map[net.Conn]bool
}

func (s *server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		if s.closed {
			conn.Close()
		}
		s.conns[conn] = true
		s.mu.Unlock()
		s.running.Go(func() { s.serve(conn) })
	}
}

func (s *server) serve(conn net.Conn) {
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
		if _, err := conn.Write([]byte(s.answer(conn.RemoteAddr()) + "\n")); err != nil {
			return
		}
	}
}

func (s *server) receive() {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := s.packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			s.packets.WriteTo([]byte(s.answer(from)), from)
		}
	}
}

func (s *server) answer(from net.Addr) string {
	addr, _ := netip.ParseAddrPort(from.String())
	return s.name + " " + addr.Addr().Unmap().String()
}

func (s *server) close() {
	s.listener.Close()
	s.packets.Close()
	s.mu.Lock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Dial connects from inside the namespace. The network is tcp or udp; an empty
// from lets the kernel choose the source address.
func Dial(ns, network, from, to string) (net.Conn, error) {
	var conn net.Conn
	err := netns.Do(ns, func() (err error) {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		switch {
		case from == "":
		case network == "tcp":
			dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		default:
			dialer.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
		conn, err = dialer.Dial(network, to)
		return err
	})
	return conn, err
}

// Ask dials, sends one line and returns the line that a server of Serve answers.
func Ask(ns, network, from, to string) (string, error) {
	conn, err := Dial(ns, network, from, to)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return AskConn(conn)
}

// AskConn sends one line on a connection and returns the answer.
func AskConn(conn net.Conn) (string, error) {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte("?\n")); err != nil {
		return "", err
	}
	buf := make([]byte, 512)
	n, err := conn.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}

// Refused reports whether err is a connection refused or reset by the peer.
func Refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

func openNS(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return file, nil
}
