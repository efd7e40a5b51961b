// Package debug explains a node: how it is and why (status), where the kernel
// differs from what is wanted (drift), and which kernel object decides each hop
// of a connection (trace). It reads, through the other packages' own Get and
// plan, and never changes anything. The daemon serves it below /netd/v1/; the
// commands of netd fetch and print it.
package debug

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/balancer"
	"netd/gossip"
	"netd/netd/task"
	"netd/vxlan"
)

// Facts is all that is known of a node at one moment.
type Facts struct {
	Version, Name string
	ID            netd.NodeID
	State         swarm.LocalNodeState
	Manager       bool
	Leader        bool
	Up            time.Duration
	// Error is why the node is not what it should be, or empty.
	Error string
	// Balancer is the renderer of VIPs in use, and why that one.
	Balancer, BalancerWhy string
	// GossipPort is where nodes gossip, TCP and UDP.
	GossipPort uint
	// Managers are where this node looks for one (host:port).
	Managers []string
	// Connected is true while a manager talks to this node.
	Connected bool
	// Generation and ApplyError tell of the last pass over the kernel; Applied is
	// its age.
	Generation uint64
	Applied    time.Duration
	// Took is how long that pass was.
	Took       time.Duration
	ApplyError string
	// Changes counts what this daemon changed in the kernel since its start;
	// LastChanges are the newest of them, as commands.
	Changes     int
	LastChanges []string
	MTU         int
	Snapshot    netd.Snapshot
	View        *gossip.View
	Tasks       []task.Status
	Wanted      balancer.Config
}

// Kernel is what the kernel holds of ours.
type Kernel struct {
	Overlay  vxlan.Config
	Balancer balancer.Config
}

// Source is the daemon, as far as it lets itself be looked into.
type Source interface {
	Facts() Facts
	Drift(context.Context) ([]string, error)
	Kernel(context.Context) (Kernel, error)
	// Explain lists the kernel objects in the router that a packet to the VIP meets.
	Explain(ctx context.Context, router string, vip netip.Addr) ([]string, error)
	// Lookup asks the resolver that the task uses, from the task's namespace.
	Lookup(ctx context.Context, netns, name string) ([]netip.Addr, error)
	// Dial opens and closes a TCP connection from the task's namespace.
	Dial(ctx context.Context, netns string, to netip.AddrPort) error
}

// NewHandler serves /netd/v1/status, /netd/v1/drift and
// /netd/v1/trace?task=&service=&port= as JSON.
func NewHandler(s Source) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /netd/v1/status", func(w http.ResponseWriter, r *http.Request) {
		facts := s.Facts()
		var drift []string
		var err error
		if facts.State == swarm.LocalNodeStateActive {
			drift, err = s.Drift(r.Context())
		}
		reply(w, Judge(facts, drift, err), nil)
	})
	mux.HandleFunc("GET /netd/v1/drift", func(w http.ResponseWriter, r *http.Request) {
		drift, err := s.Drift(r.Context())
		reply(w, Drift{Objects: append([]string{}, drift...)}, err)
	})
	mux.HandleFunc("GET /netd/v1/trace", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		t, err := trace(r.Context(), s, q.Get("task"), q.Get("service"), q.Get("port"))
		reply(w, t, err)
	})
	return mux
}

// Drift lists each kernel object that differs from what is wanted, as the command
// that would mend it.
type Drift struct{ Objects []string }

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(status(err))
		v = map[string]string{"message": err.Error()}
	}
	json.NewEncoder(w).Encode(v) //nolint:errcheck // the client has gone; nobody is left to tell
}

func status(err error) int {
	switch {
	case errors.Is(err, netd.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, netd.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, netd.ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
