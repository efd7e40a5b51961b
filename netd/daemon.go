package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"netd"
	"netd/balancer"
	"netd/netd/api"
	"netd/netd/debug"
)

// options are the daemon's flags.
type options struct {
	DataDir, RunDir, Socket string
	Advertise, NodeName     string
	DataPathPort            uint
	GossipPort              uint
	Balancer                string
	Debug                   bool
}

func (o *options) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.StringVar(&o.DataDir, "data-dir", "/var/lib/netd", "keep certificates, the raft log and task files in `DIR`")
	f.StringVar(&o.RunDir, "run-dir", "/run/netd", "keep network namespaces and the socket in `DIR`, empty after a boot")
	f.StringVar(&o.Socket, "socket", "", "answer the Docker API at `PATH` (default RUN-DIR/netd.sock)")
	f.StringVar(&o.Advertise, "advertise-addr", "", "`ADDRESS` or interface that other nodes reach this one at, unless init or join say another")
	f.UintVar(&o.DataPathPort, "data-path-port", 4789, "UDP `PORT` of the overlay's VXLAN traffic for a swarm that is begun here")
	f.UintVar(&o.GossipPort, "gossip-port", 7946, "TCP and UDP `PORT` of the gossip, the same on all nodes")
	f.StringVar(&o.NodeName, "node-name", "", "`NAME` of this node (default the host's name)")
	f.StringVar(&o.Balancer, "balancer", "", "`KIND` that renders service VIPs: ipvs or nftables (default what the kernel can)")
	f.BoolVar(&o.Debug, "debug", false, "log every change made to the kernel and every request")
	return f
}

func (o *options) complete() error {
	for _, dir := range []*string{&o.DataDir, &o.RunDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("find folder %q: %w", *dir, err)
		}
		*dir = abs
	}
	if o.Socket == "" {
		o.Socket = filepath.Join(o.RunDir, "netd.sock")
	}
	if o.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w", err)
		}
		o.NodeName = name
	}
	if o.DataPathPort < 1024 || o.DataPathPort > 49151 {
		return netd.Errorf(netd.ErrInvalid, "--data-path-port %d: the port must be 1024 to 49151", o.DataPathPort)
	}
	if o.GossipPort < 1 || o.GossipPort > 65535 {
		return netd.Errorf(netd.ErrInvalid, "--gossip-port %d: the port must be 1 to 65535", o.GossipPort)
	}
	switch balancer.Kind(o.Balancer) {
	case "", balancer.IPVS, balancer.NFTables:
	default:
		return netd.Errorf(netd.ErrInvalid, "--balancer %q: want ipvs or nftables", o.Balancer)
	}
	return nil
}

// Daemon is one node: a socket that answers the Docker API, and while the node
// is in a swarm a member that does its part.
type Daemon struct {
	options
	files   files
	log     *slog.Logger
	kind    balancer.Kind
	reason  string
	started time.Time

	group *errgroup.Group // owns the member's goroutine
	ctx   context.Context // of the group: a membership outlives the request that began it

	changing sync.Mutex // held through init, join and leave, one at a time

	mu     sync.Mutex
	member *member // guarded by mu; nil while in no swarm
	failed error   // guarded by mu; why the member ended by itself
}

func runDaemon(ctx context.Context, args []string, _ io.Writer) error {
	o := options{}
	f := o.flags("netd daemon")
	if err := f.Parse(args); err != nil {
		return exitFlag(err)
	}
	if f.NArg() > 0 {
		return netd.Errorf(netd.ErrInvalid, "unexpected argument %q", f.Arg(0))
	}
	if err := o.complete(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return netd.Errorf(netd.ErrForbidden, "the daemon changes network namespaces and needs root; run it with sudo or as a systemd service")
	}
	level := slog.LevelInfo
	if o.Debug {
		level = slog.LevelDebug
	}
	d := &Daemon{
		options: o, files: files{o.DataDir}, started: time.Now(),
		log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})).With("node", o.NodeName),
	}
	return d.Run(ctx)
}

// Run serves until ctx ends. Tasks and the data path stay as they are; the next
// Run finds them.
func (d *Daemon) Run(ctx context.Context) error {
	unlock, err := lockDir(d.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	d.chooseBalancer()
	listener, err := listenSocket(d.Socket)
	if err != nil {
		return err
	}
	if err := d.rehearse(ctx, filepath.Join(d.RunDir, "rehearsal")); err != nil {
		return errors.Join(err, listener.Close())
	}
	group, gctx := errgroup.WithContext(ctx)
	d.group, d.ctx = group, gctx
	if err := d.resume(gctx); err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{Handler: d.handler(), ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return gctx }}
	group.Go(func() error {
		<-gctx.Done()
		shut, cancel := context.WithTimeout(context.WithoutCancel(gctx), time.Second)
		defer cancel()
		if server.Shutdown(shut) != nil {
			return server.Close() // streams that never end by themselves
		}
		return nil
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the socket: %w", err)
		}
		return nil
	})
	d.log.Info("netd is up", "version", version, "socket", d.Socket, "balancer", string(d.kind), "because", d.reason)
	err = group.Wait()
	d.log.Info("netd is down; tasks and the data path go on")
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (d *Daemon) handler() http.Handler {
	return api.NewHandler(api.Config{
		Local: d, Log: d.log, Images: []string{"netd/echo"}, Extra: map[string]http.Handler{"/netd/v1/": debug.NewHandler(d)},
	})
}

func (d *Daemon) chooseBalancer() {
	if d.Balancer != "" {
		d.kind, d.reason = balancer.Kind(d.Balancer), "--balancer says so"
		return
	}
	d.kind, d.reason = balancer.Probe()
}

// resume takes up the membership that an earlier run left, if there is one.
func (d *Daemon) resume(ctx context.Context) error {
	id, key, err := d.files.load()
	if err != nil || id == nil {
		return err
	}
	id.Boot++
	if err := d.files.save(id); err != nil {
		return err
	}
	return d.begin(ctx, id, key, nil)
}

// exitFlag turns a flag error, already printed by the flag package, into a status.
func exitFlag(err error) error {
	if errors.Is(err, flag.ErrHelp) {
		return err
	}
	return exitError(64)
}

// lockDir makes dir and holds it until the returned function is called, so that
// two daemons cannot share it.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, netd.Errorf(netd.ErrExists, "data directory %q is in use by another netd daemon; stop that one, or give this one its own --data-dir and --run-dir", dir)
		}
		return nil, fmt.Errorf("lock data directory %q: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// maxSocketPath in bytes is what sockaddr_un holds beside its final zero (unix(7)).
const maxSocketPath = 107

// listenSocket opens the API's socket for root alone. A socket file that nobody
// answers on is left from a crash and replaced.
func listenSocket(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, netd.Errorf(netd.ErrInvalid, "socket %q: the path has %d bytes, at most %d are possible; give a shorter one with --socket", path, len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the socket: %w", err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return nil, netd.Errorf(netd.ErrInvalid, "socket %q: there is something else, which is left as it is; give another path with --socket, or move it away", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, netd.Errorf(netd.ErrExists, "socket %q is answered by another daemon; stop that one or give this one its own --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove stale socket: %w", err)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %q: %w", path, err)
	}
	return l, nil
}

// vtep returns the data path's address: what the user gave, or the advertised.
func vtep(given string, advertise netip.Addr) (netip.Addr, error) {
	if given == "" {
		return advertise, nil
	}
	addr, _, err := advertised(given)
	return addr, err
}
