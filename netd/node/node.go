// Package node is this host's part of the swarm: it takes the managers'
// assignment and what the other nodes gossip, decides what must run here and what
// the kernel must hold (Compile and decide, both pure), makes it so through the
// packages below, and reports what it sees.
//
// Level-triggered: each pass looks at everything anew, so a lost or doubled event
// is harmless, and a restart is a pass like any other. It does not speak to the
// managers itself (dispatch does) and knows nothing of raft or the API.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"netd"
	"netd/balancer"
	"netd/dispatch"
	"netd/dns"
	"netd/gossip"
	"netd/ingress"
	"netd/netd/task"
	"netd/vxlan"
)

const (
	// sweep is how often everything is looked at although nothing was heard.
	sweep = 5 * time.Second
	// settle gathers the events of one change into one pass.
	settle = 10 * time.Millisecond
	// retryReport is when a status that the managers did not take is sent again.
	retryReport = 5 * time.Second
	// keptChanges is how many kernel changes are remembered in words.
	keptChanges = 20
)

// Overlay makes the routed overlay of this node; *vxlan.Overlay.
type Overlay interface {
	Set(context.Context, vxlan.Config) ([]string, error)
	Diff(vxlan.Config) ([]string, error)
	Get() (vxlan.Config, error)
}

// Balancer makes the VIPs of this node; *balancer.Balancer.
type Balancer interface {
	Set(context.Context, balancer.Config) ([]string, error)
	Diff(context.Context, balancer.Config) ([]string, error)
	Get(ctx context.Context, routers []string) (balancer.Config, error)
}

// Ingress opens published ports; *ingress.Ingress.
type Ingress interface {
	Set(context.Context, ingress.Config) ([]string, error)
	Diff(ingress.Config) ([]string, error)
}

// Resolver answers names; *dns.Server.
type Resolver interface {
	Set(context.Context, dns.Config) error
}

// Gossip tells and hears how endpoints are; *gossip.Table.
type Gossip interface {
	Publish([]gossip.Entry) uint64
	View() *gossip.View
	Changed() <-chan struct{}
	Applied(*gossip.View)
	Acked(version uint64) []netd.NodeID
}

// Runtime runs tasks; *task.Runtime.
type Runtime interface {
	Check(task.Spec) error
	Prepare(context.Context, task.Spec) (string, error)
	Start(context.Context, string) error
	Stop(context.Context, string) error
	Remove(context.Context, string) error
	List() []task.Status
	Changed() <-chan struct{}
}

// Config is a Node's surroundings. All fields are needed but Upstreams.
type Config struct {
	Self netd.NodeID
	Name string
	// Addr is the VTEP's address, Port the swarm's VXLAN port.
	Addr netip.Addr
	Port uint16
	// DataDir holds assignment.json; NetNSDir the pinned namespaces.
	DataDir, NetNSDir string
	Upstreams         []netip.AddrPort

	Overlay  Overlay
	Balancer Balancer
	Ingress  Ingress
	Resolver Resolver
	Gossip   Gossip
	Runtime  Runtime
	// Report sends towards the managers; it never blocks.
	Report func(dispatch.Report)
	Log    *slog.Logger
}

// Node reconciles one host. Make it with New; its owner runs Run.
type Node struct {
	Config
	assigned atomic.Pointer[dispatch.Assignment]
	desired  atomic.Pointer[Desired]
	applied  atomic.Pointer[Applied]
	changes  atomic.Pointer[Changes]
	wake     chan struct{}

	// Owned by Run's goroutine.
	tasks   map[netd.TaskID]*progress
	plugged map[netd.TaskID]bool
	heard   map[netd.NodeID]bool // the owners whose state has come since New
	kept    *dispatch.Assignment // what assignment.json holds, as far as sameOrders sees
	told    *dispatch.Assignment // the one last reported as applied: generations begin anew with each session
	workers *errgroup.Group

	busyMu sync.Mutex
	busy   map[netd.TaskID]bool  // guarded by busyMu: a worker is at the task
	failed map[netd.TaskID]error // guarded by busyMu: why it could not be prepared or started
}

// Applied is the outcome of the last pass.
type Applied struct {
	At time.Time
	// Generation is the assignment's that was applied.
	Generation uint64
	// Took is how long the pass was.
	Took time.Duration
	// Err is what could not be made so, or nil.
	Err error
}

// progress is what the node must remember of a task between two passes. Losing
// it (a restart) costs a second drain, nothing else.
type progress struct {
	draining     time.Time
	version      uint64 // of our gossip entries, in which it is withdrawn
	acknowledged time.Time
	reported     swarm.TaskStatus
	reportedAt   time.Time
}

// New returns a Node that has nothing to do until it is assigned something.
func New(c Config) *Node {
	return &Node{
		Config: c, wake: make(chan struct{}, 1), tasks: map[netd.TaskID]*progress{},
		plugged: map[netd.TaskID]bool{}, heard: map[netd.NodeID]bool{}, busy: map[netd.TaskID]bool{}, failed: map[netd.TaskID]error{},
	}
}

// Assign takes a new assignment. Run keeps it on disk, so that a restart without
// managers goes on with it.
func (n *Node) Assign(a dispatch.Assignment) {
	n.assigned.Store(&a)
	n.ring()
}

// Assignment returns the newest assignment, or nil before the first.
func (n *Node) Assignment() *dispatch.Assignment { return n.assigned.Load() }

// Desired returns what the last pass wanted of the kernel, or nil before it.
func (n *Node) Desired() *Desired { return n.desired.Load() }

// Applied returns the outcome of the last pass, or nil before it.
func (n *Node) Applied() *Applied { return n.applied.Load() }

// Changes is what this daemon changed in the kernel since its start: nothing
// where a restart found everything as it had left it.
type Changes struct {
	Count int
	// Last are the newest of them, as commands.
	Last []string
}

// Changes returns what was changed since New.
func (n *Node) Changes() Changes {
	if c := n.changes.Load(); c != nil {
		return *c
	}
	return Changes{}
}

func (n *Node) ring() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run reconciles until ctx ends. Tasks and the data path are left as they are.
func (n *Node) Run(ctx context.Context) error {
	workers, wctx := errgroup.WithContext(ctx)
	n.workers = workers
	ticker := time.NewTicker(sweep)
	defer ticker.Stop()
	soon := time.NewTimer(0)
	defer soon.Stop()
	for {
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), ignoreCanceled(workers.Wait()))
		case <-n.wake:
		case <-n.Gossip.Changed():
		case <-n.Runtime.Changed():
		case <-ticker.C:
		case <-soon.C:
		}
		if !pause(ctx, settle) {
			continue
		}
		if again := n.pass(wctx, time.Now()); again > 0 {
			soon.Reset(again)
		}
	}
}

// pass looks at everything once and returns when to look again at the latest;
// zero leaves that to the next event.
func (n *Node) pass(ctx context.Context, now time.Time) time.Duration {
	a := n.assigned.Load()
	if a == nil {
		return 0
	}
	view := n.Gossip.View()
	for id, m := range view.Members {
		if m.Version > 0 {
			n.heard[id] = true
		}
	}
	statuses := map[netd.TaskID]task.Status{}
	for _, s := range n.Runtime.List() {
		statuses[netd.TaskID(s.ID)] = s
	}
	in, mtuErr := n.input(ctx, a, view, statuses)
	desired := Compile(in)
	n.desired.Store(&desired)
	err := n.apply(ctx, desired)
	n.keep(a) // traffic does not wait for the disk, but no task begins before
	n.notePlugged(in, err == nil)
	again := n.step(ctx, a, statuses, now)
	if err == nil {
		n.Gossip.Applied(view)
	}
	err = errors.Join(err, mtuErr)
	n.applied.Store(&Applied{At: now, Generation: a.Generation, Took: time.Since(now), Err: err})
	if err == nil && n.told != a {
		n.told = a
		n.Report(dispatch.Report{Applied: a.Generation})
	}
	if err != nil {
		n.Log.Error("apply the assignment", "generation", a.Generation, "err", err)
		again = minPositive(again, time.Second)
	}
	return again
}

// keep saves an assignment that says something new.
func (n *Node) keep(a *dispatch.Assignment) {
	if a == n.kept || n.kept != nil && sameOrders(a, n.kept) {
		n.kept = a
		return
	}
	if err := save(n.DataDir, a); err != nil {
		n.Log.Error("keep the assignment", "err", err)
		return
	}
	n.kept = a
}

// apply makes the kernel and the resolver so. The order lets a name resolve only
// after its path exists, and a port opens only after that.
func (n *Node) apply(ctx context.Context, d Desired) error {
	ops, err := n.Overlay.Set(ctx, d.Overlay)
	n.logOps("overlay", ops)
	more, berr := n.Balancer.Set(ctx, d.Balancer)
	n.logOps("balancer", more)
	ports, perr := n.Ingress.Set(ctx, d.Ingress)
	n.logOps("ingress", ports)
	return errors.Join(wrap("set overlay", err), wrap("set balancer", berr), wrap("set ports", perr), wrap("set names", n.Resolver.Set(ctx, d.DNS)))
}

func (n *Node) logOps(what string, ops []string) {
	for _, op := range ops {
		n.Log.Debug("changed the kernel", "part", what, "op", op)
	}
	if len(ops) > 0 {
		c := Changes{}
		if have := n.changes.Load(); have != nil {
			c = *have
		}
		c.Count += len(ops)
		c.Last = append(slices.Clone(c.Last), ops...)
		c.Last = c.Last[max(0, len(c.Last)-keptChanges):]
		n.changes.Store(&c)
	}
}

// Drift compares what the last pass wanted with the kernel as it is now: one
// line for each object that differs, none when all is well.
func (n *Node) Drift(ctx context.Context) ([]string, error) {
	d := n.desired.Load()
	if d == nil {
		return nil, netd.Errorf(netd.ErrUnavailable, "nothing has been assigned to this node yet; look at 'netd status'")
	}
	overlay, err := n.Overlay.Diff(d.Overlay)
	balancer, berr := n.Balancer.Diff(ctx, d.Balancer)
	ports, perr := n.Ingress.Diff(d.Ingress)
	return slices.Concat(overlay, balancer, ports), errors.Join(wrap("compare overlay", err), wrap("compare balancer", berr), wrap("compare ports", perr))
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// pause waits for d and says whether ctx is still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func minPositive(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}
