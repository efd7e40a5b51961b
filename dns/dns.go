// Package dns answers the names of overlay networks to the containers on them:
// a UDP and a TCP socket in each router's namespace, one immutable view of all
// records behind them, and the host's own name servers for everything else.
//
// Who asks is told by the source address, which the router checks, and with it
// which networks' names may be seen. The package does not decide what is in the
// records: not which backend is ready, nor whether a name stands for a VIP. It
// keeps no cache and knows no zone files, transfers or DNSSEC.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Config is all that is to be served.
type Config struct {
	// Upstreams are asked in order for names that are not ours.
	Upstreams []netip.AddrPort
	Resolvers []Resolver
}

// Resolver is one address in one namespace that answers on port 53.
type Resolver struct {
	// NetNS is the path of the router's namespace.
	NetNS string
	Addr  netip.Addr
	// Zones are those that any of Clients may see.
	Zones   []Zone
	Clients []Client
}

// Client is a container. Queries from any other address are refused.
type Client struct {
	Addr netip.Addr
	// Zones are the IDs of the networks that it is on; where two have the same
	// name, the first answers.
	Zones []string
	// Forward is false for a client on internal networks only: names that are not
	// ours do not exist for it, and no query of its leaves the host.
	Forward bool
}

// Zone is the names of one network.
type Zone struct {
	ID string
	// Name is the network's: a record NAME is also found as NAME.<zone name>.
	Name   string
	Subnet netip.Prefix
	// Records of one name are answered together. One without addresses exists all
	// the same: the answer is empty, and the name is not looked for elsewhere.
	Records []Record
	PTRs    []PTR
}

// Record is a name such as web, tasks.web or web.1.<task ID>.
type Record struct {
	Name  string
	Addrs []netip.Addr
}

// PTR gives the full name that an address of the zone stands for.
type PTR struct {
	Addr netip.Addr
	Name string
}

// Server serves a Config. Set may be called from any goroutine.
type Server struct {
	log  *slog.Logger
	view atomic.Pointer[view]
	out  *forwarder

	// mu lets one Set work at a time and guards what follows.
	mu    sync.Mutex
	open  map[socketKey]*socket
	ended bool
	// serving counts the goroutines that Set started and Run ends.
	serving sync.WaitGroup
}

// New returns a server that serves nothing yet.
func New(log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{log: log, out: newForwarder(), open: make(map[socketKey]*socket)}
	s.view.Store(&view{})
	return s
}

// Set makes c what is served. Queries under way are answered from what was
// before; no query finds the sockets closed unless its resolver is gone. A
// resolver whose namespace cannot be entered is an error, and the others are
// served all the same. Run must be running or follow: it ends what Set started.
func (s *Server) Set(ctx context.Context, c Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return errors.New("set dns: the server has ended")
	}
	next, err := newView(c)
	s.view.Store(next)

	errs := []error{err}
	for key, sock := range s.open {
		if _, wanted := next.resolvers[key]; !wanted || !sock.usable() {
			delete(s.open, key)
			sock.shut()
		}
	}
	for _, r := range c.Resolvers {
		key := socketKey{r.NetNS, r.Addr}
		if _, wanted := next.resolvers[key]; !wanted || s.open[key] != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		sock, err := s.listen(ctx, key)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen on %s port 53 in %q: %w", r.Addr, r.NetNS, err))
			continue
		}
		s.open[key] = sock
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends, then closes all sockets and waits for the queries
// under way.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.mu.Lock()
	s.ended = true
	s.out.end()
	for key, sock := range s.open {
		delete(s.open, key)
		sock.shut()
	}
	s.mu.Unlock()
	s.serving.Wait()
	return nil
}
