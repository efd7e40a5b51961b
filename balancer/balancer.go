// Package balancer spreads the connections to a service's virtual IP over the
// service's backends, in the kernel, inside the router namespace of each network.
// It owns two renderers of one model: IPVS, and nftables for kernels without
// ip_vs. In both the client's address stays the packet's source, any port and
// protocol passes, a draining backend keeps its connections, and the connections
// of a backend that is gone are reset.
//
// It does NOT make the routers, their routes or the VIP addresses (a VIP must be
// a local address of its router), and it decides nothing: who is ready is the
// caller's word. What it wants is computed, what is there is read from the kernel
// each time; the package remembers nothing between two calls.
package balancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
)

// Kind names a renderer.
type Kind string

// The renderers. They have equal rights: the same model, the same tests.
const (
	IPVS     Kind = "ipvs"
	NFTables Kind = "nftables"
)

// Balancer renders configurations into router namespaces. Safe for concurrent
// use; calls run one after another, as the package must be the only writer of
// its objects.
type Balancer struct {
	kind Kind
	// ipvs is true where the kernel has ip_vs, whichever the kind: the nftables
	// kind then has to look for what an IPVS renderer left behind.
	ipvs bool
	log  *slog.Logger
	mu   sync.Mutex
}

// New returns a Balancer of that kind. A nil log discards.
func New(kind Kind, log *slog.Logger) (*Balancer, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	b := &Balancer{kind: kind, log: log}
	err := familyExists()
	b.ipvs = err == nil
	switch kind {
	case NFTables:
	case IPVS:
		if err != nil {
			return nil, fmt.Errorf("use balancer %q: this kernel has no ip_vs (%w); load the modules ip_vs and ip_vs_rr, or use the balancer %q", kind, err, NFTables)
		}
	default:
		return nil, fmt.Errorf("use balancer %q: no such kind, there are %q and %q", kind, IPVS, NFTables)
	}
	return b, nil
}

// Kind returns the renderer in use.
func (b *Balancer) Kind() Kind { return b.kind }

// Get reads from the kernel what the named router namespaces balance. A router
// that cannot be read is left out and named in the error.
func (b *Balancer) Get(ctx context.Context, routers []string) (Config, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var c Config
	var errs []error
	for _, path := range routers {
		if err := ctx.Err(); err != nil {
			return c, errors.Join(append(errs, err)...)
		}
		err := b.open(path, func(k *kernel) error {
			have, err := k.read()
			if err != nil {
				return err
			}
			c.Routers = append(c.Routers, decode(b.kind, path, have))
			return nil
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("get balancer of router %q: %w", path, err))
		}
	}
	return c.normal(), errors.Join(errs...)
}

// Diff returns what Set would do, each as "<router>: <command line>", and does
// none of it.
func (b *Balancer) Diff(ctx context.Context, want Config) ([]string, error) {
	return b.reconcile(ctx, want, false)
}

// Set makes the kernel hold want in each of its routers and returns what it did,
// in Diff's form. Routers that want does not name are not touched; one without
// alias, locals and services is cleaned of everything. A router that fails does
// not keep the others from being set. In a router, new connections never see a
// half-made change, and connections of backends that stay are not disturbed.
func (b *Balancer) Set(ctx context.Context, want Config) ([]string, error) {
	return b.reconcile(ctx, want, true)
}

func (b *Balancer) reconcile(ctx context.Context, want Config, apply bool) ([]string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var done []string
	var errs []error
	for _, router := range want.normal().Routers {
		if err := ctx.Err(); err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		ops, err := b.router(router, apply)
		for _, op := range ops {
			done = append(done, filepath.Base(router.NetNS)+": "+op.String())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("balance router %q: %w", router.NetNS, err))
		}
	}
	return done, errors.Join(errs...)
}

// router plans one router and, if asked, applies the plan. It returns the
// operations that were planned or, on apply, done.
func (b *Balancer) router(router Router, apply bool) (ops []op, err error) {
	if err := router.check(); err != nil {
		return nil, err
	}
	err = b.open(router.NetNS, func(k *kernel) error {
		have, err := k.read()
		if err != nil {
			return err
		}
		ops = plan(have, render(b.kind, router))
		if !apply || len(ops) == 0 {
			return nil
		}
		n, err := k.apply(ops)
		ops = ops[:n]
		b.log.Debug("router balanced", "router", router.NetNS, "kind", b.kind, "ops", n)
		return err
	})
	return ops, err
}
