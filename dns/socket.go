package dns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
	"netd/internal/netns"
)

const (
	port = 53
	// A TCP client may be idle this long, and have so many connections at once:
	// what one container holds open must not keep the others of its router out.
	tcpIdle         = 8 * time.Second
	tcpReadTimeout  = 3 * time.Second
	maxConnsPerAddr = 64
	// udpWake is how often an idle UDP server wakes up for nothing.
	udpWake = time.Hour
)

// socketKey names a resolver: an address in the namespace at a path.
type socketKey struct {
	netNS string
	addr  netip.Addr
}

// socket is the open UDP and TCP sockets of one resolver.
type socket struct {
	key   socketKey
	inode uint64 // of the namespace that they are in
	// done is closed when either has ended, closing when both are to end.
	done, closing chan struct{}
	shut          func()
}

// listen opens the sockets of a resolver and serves them.
func (s *Server) listen(ctx context.Context, key socketKey) (*socket, error) {
	inode, err := nsInode(key.netNS)
	if err != nil {
		return nil, err
	}
	var packets net.PacketConn
	var conns net.Listener
	err = netns.Do(key.netNS, func() (err error) {
		packets, conns, err = listenHere(ctx, netip.AddrPortFrom(key.addr, port).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	sock := &socket{key: key, inode: inode, done: make(chan struct{}), closing: make(chan struct{})}
	sock.shut = sync.OnceFunc(func() { close(sock.closing) })
	ended := sync.OnceFunc(func() { close(sock.done) })
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, query *dns.Msg) { s.serve(key, w, query) })
	started := make(chan struct{}, 2)
	for _, server := range []*dns.Server{
		{PacketConn: packets, UDPSize: dns.DefaultMsgSize, ReadTimeout: udpWake},
		{
			Listener:    &fairListener{Listener: conns, open: make(map[netip.Addr]int)},
			ReadTimeout: tcpReadTimeout, IdleTimeout: func() time.Duration { return tcpIdle },
		},
	} {
		server.Handler, server.NotifyStartedFunc = handler, func() { started <- struct{}{} }
		s.serving.Go(func() {
			defer ended()
			if err := server.ActivateAndServe(); err != nil && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("dns resolver ended", "netns", key.netNS, "err", err)
			}
		})
		s.serving.Go(func() {
			<-sock.closing
			_ = server.Shutdown() // waits for the queries under way; an error only tells that it has ended
			_ = packets.Close()
			_ = conns.Close()
		})
	}
	for range 2 { // a server that has not started cannot be shut down
		select {
		case <-started:
		case <-sock.done:
			sock.shut()
			return nil, errors.New("the sockets closed at once")
		}
	}
	return sock, nil
}

// listenHere opens both sockets in the calling thread's namespace. They may be
// bound before the address is there, and outlast its removal (IP_FREEBIND).
func listenHere(ctx context.Context, addr string) (net.PacketConn, net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if e := conn.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}); e != nil {
			return e
		}
		return err
	}}
	config.SetMultipathTCP(false)
	packets, err := config.ListenPacket(ctx, "udp", addr)
	if err != nil {
		return nil, nil, err
	}
	conns, err := config.Listen(ctx, "tcp", addr)
	if err != nil {
		_ = packets.Close()
		return nil, nil, err
	}
	return packets, conns, nil
}

// usable says whether the sockets serve, in the namespace that is at the path
// now: one that was removed lives on for as long as a socket is in it.
func (k *socket) usable() bool {
	select {
	case <-k.done:
		return false
	default:
	}
	inode, err := nsInode(k.key.netNS)
	return err == nil && inode == k.inode
}

func nsInode(path string) (uint64, error) {
	if path == "" {
		path = "/proc/self/ns/net"
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("find network namespace: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("find network namespace %q: %w", path, fs.ErrInvalid)
	}
	return stat.Ino, nil
}

// fairListener refuses connections of an address that has too many.
type fairListener struct {
	net.Listener
	mu   sync.Mutex
	open map[netip.Addr]int
}

func (l *fairListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := addrOf(conn.RemoteAddr())
		l.mu.Lock()
		full := l.open[from] >= maxConnsPerAddr
		if !full {
			l.open[from]++
		}
		l.mu.Unlock()
		if full {
			_ = conn.Close()
			continue
		}
		return &countedConn{conn, sync.OnceFunc(func() { l.closed(from) })}, nil
	}
}

func (l *fairListener) closed(from netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	default:
		return netip.Addr{}
	}
}
