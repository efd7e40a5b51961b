package task

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	echoPort    = 80
	echoTCPPort = 7 // RFC 862
	// echoLinger is how long a stopping server still takes connections: others may
	// not know yet that it goes.
	echoLinger = 200 * time.Millisecond
	// echoDrain bounds how long it then waits for requests that are being answered.
	echoDrain = time.Hour
)

// echoOptions are the flags of netd echo.
type echoOptions struct {
	ports            []uint16
	tcpPort          uint16
	check            bool
	delay, failAfter time.Duration
}

func parseEcho(args []string) (echoOptions, error) {
	var o echoOptions
	f := flag.NewFlagSet("netd echo", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Func("port", "answer HTTP and UDP on `PORT` (default 80; may be given several times)", func(text string) error {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return errors.New("want a port from 1 to 65535")
		}
		o.ports = append(o.ports, uint16(port))
		return nil
	})
	tcp := f.Uint("tcp-port", echoTCPPort, "send back the lines of TCP connections to `PORT`; 0 for none")
	f.BoolVar(&o.check, "check", false, "ask a server with the same flags whether it is well, and exit")
	f.DurationVar(&o.delay, "delay", 0, "wait this `TIME` before the first port is opened")
	f.DurationVar(&o.failAfter, "fail-after", 0, "end with an error after this `TIME`")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		var usage strings.Builder
		f.SetOutput(&usage)
		f.Usage()
		return o, fmt.Errorf("%w\n%s", err, usage.String())
	} else if err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("echo takes no argument %q", f.Arg(0))
	}
	if *tcp > 65535 {
		return o, fmt.Errorf("TCP port %d: want at most 65535", *tcp)
	}
	o.tcpPort = uint16(*tcp)
	if len(o.ports) == 0 {
		o.ports = []uint16{echoPort}
	}
	return o, nil
}

// Echo is the image netd/echo (netd echo): a server that answers with its task's
// name, its node and the client's address, over HTTP and UDP, and sends back
// lines over TCP. It ends with ctx, SIGTERM or SIGINT: it lingers, finishes what
// it is answering, and returns nil.
func Echo(ctx context.Context, args []string, stdout io.Writer) error {
	o, err := parseEcho(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, strings.TrimPrefix(err.Error(), flag.ErrHelp.Error()+"\n"))
		return nil
	}
	if err != nil {
		return err
	}
	if o.check {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return askEcho(ctx, "", o.ports[0])
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(o.delay):
	}
	s, err := listenEcho(ctx, o)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "echo: %s on ports %v (HTTP, UDP) and %d (lines over TCP)\n", s.who, o.ports, o.tcpPort)
	if o.failAfter == 0 {
		return s.run(ctx)
	}
	failed := fmt.Errorf("failing after %s, as asked", o.failAfter)
	ctx, cancel := context.WithTimeoutCause(ctx, o.failAfter, failed)
	defer cancel()
	if err := s.run(ctx); err != nil || !errors.Is(context.Cause(ctx), failed) {
		return err
	}
	return failed
}

// echo is the server.
type echo struct {
	who     identityLine
	http    []net.Listener
	packets []net.PacketConn
	lines   net.Listener // nil for none

	mu      sync.Mutex
	leaving bool              // no connection is to be kept for a next request
	ended   bool              // no connection of lines is to go on
	held    map[net.Conn]bool // connections of lines
}

// identityLine is who answers.
type identityLine struct{ Task, Node string }

func (w identityLine) String() string { return "task=" + w.Task + " node=" + w.Node }

// line is the text that a client gets.
func (w identityLine) line(client net.Addr) string {
	return fmt.Sprintf("%s client=%s", w, plain(client))
}

// plain formats an address; a v4 client of a dual-stack socket is a v4 client.
func plain(addr net.Addr) string {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
}

// listenEcho opens all ports, or none.
func listenEcho(ctx context.Context, o echoOptions) (s *echo, err error) {
	s = &echo{who: identityLine{os.Getenv("NETD_TASK"), os.Getenv("NETD_NODE")}, held: map[net.Conn]bool{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	var config net.ListenConfig
	for _, port := range o.ports {
		at := fmt.Sprintf(":%d", port)
		l, err := config.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		s.http = append(s.http, l)
		p, err := config.ListenPacket(ctx, "udp", at)
		if err != nil {
			return nil, err
		}
		s.packets = append(s.packets, p)
	}
	if o.tcpPort != 0 {
		if s.lines, err = config.Listen(ctx, "tcp", fmt.Sprintf(":%d", o.tcpPort)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *echo) close() {
	for _, l := range s.http {
		l.Close()
	}
	for _, p := range s.packets {
		p.Close()
	}
	if s.lines != nil {
		s.lines.Close()
	}
}

// run serves until ctx ends, and then as gently as it can.
func (s *echo) run(ctx context.Context) error {
	var serving sync.WaitGroup
	server := s.server(context.WithoutCancel(ctx))
	ctx, broken := context.WithCancelCause(ctx)
	defer broken(nil)
	for _, l := range s.http {
		serving.Go(func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				broken(&serveError{err})
			}
		})
	}
	for _, p := range s.packets {
		serving.Go(func() { s.servePackets(p) })
	}
	if s.lines != nil {
		serving.Go(func() { s.serveLines(&serving) })
	}
	<-ctx.Done()
	s.mu.Lock()
	s.leaving = true
	s.mu.Unlock()
	linger := time.NewTimer(echoLinger)
	<-linger.C
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), echoDrain)
	defer cancel()
	err := server.Shutdown(drain)
	s.close()
	s.endLines()
	serving.Wait()
	var failed *serveError
	if errors.As(context.Cause(ctx), &failed) {
		return failed
	}
	return err
}

// serveError is why a server ended by itself.
type serveError struct{ err error }

func (e *serveError) Error() string { return "serve HTTP: " + e.err.Error() }
func (e *serveError) Unwrap() error { return e.err }

func (s *echo) isLeaving() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leaving
}
