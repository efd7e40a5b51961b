// Package api is the front door: the Docker Engine API on the node's socket, so
// that the docker command and every Docker client drive the swarm unchanged. It
// owns the wire: versions, headers, JSON, filters, status codes, Docker's words.
//
// It decides nothing about the swarm, stores nothing and runs nothing: each
// request becomes one call of a Control or of Local. What needs a Docker Engine
// (containers, images, volumes, builds) is answered honestly: none is attached.
package api

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Docker's own limit for a call of the managers (daemon/cluster/cluster.go).
const requestTimeout = 20 * time.Second

// LocalStatus is how this node stands in its swarm.
type LocalStatus struct {
	NodeID, NodeName, NodeAddr string
	// Version is netd's own, such as 0.1.0.
	Version string
	State   swarm.LocalNodeState
	// ControlAvailable: this node is a manager and its managers answer.
	ControlAvailable bool
	// Error says why State is error or pending; empty otherwise.
	Error     string
	Managers  []swarm.Peer
	ClusterID string
	// Warnings are shown by docker info.
	Warnings []string
}

// Local is this node: what it is, and how it enters and leaves a swarm.
type Local interface {
	Status() LocalStatus
	// Init starts a swarm of one node; a request that reaches it has passed
	// Docker's checks of form, not those that need the host (addresses, ports).
	Init(context.Context, swarm.InitRequest) (nodeID string, err error)
	Join(context.Context, swarm.JoinRequest) error
	Leave(ctx context.Context, force bool) error
	// Control returns the managers' operations, or a netd.ErrUnavailable error
	// with Docker's text where this node is not an active manager.
	Control() (Control, error)
}

// SwarmControl reads and changes the swarm itself.
type SwarmControl interface {
	Swarm(context.Context) (swarm.Swarm, error)
	UpdateSwarm(ctx context.Context, version uint64, spec swarm.Spec, rotateWorker, rotateManager bool) error
}

// NodeControl reads and changes nodes. A ref, here and below, is an ID, an exact
// name or a unique prefix of an ID, in this order.
type NodeControl interface {
	ListNodes(context.Context) ([]swarm.Node, error)
	GetNode(ctx context.Context, ref string) (swarm.Node, error)
	UpdateNode(ctx context.Context, ref string, version uint64, spec swarm.NodeSpec) error
	RemoveNode(ctx context.Context, ref string, force bool) error
}

// NetworkControl reads, makes and removes overlay networks.
type NetworkControl interface {
	ListNetworks(context.Context) ([]swarm.Network, error)
	GetNetwork(ctx context.Context, ref string) (swarm.Network, error)
	CreateNetwork(context.Context, network.CreateRequest) (id string, err error)
	RemoveNetwork(ctx context.Context, ref string) error
}

// ServiceControl reads and changes services.
type ServiceControl interface {
	ListServices(context.Context) ([]swarm.Service, error)
	GetService(ctx context.Context, ref string, insertDefaults bool) (swarm.Service, error)
	CreateService(context.Context, swarm.ServiceSpec) (id string, warnings []string, err error)
	UpdateService(ctx context.Context, ref string, version uint64, spec swarm.ServiceSpec, rollback bool) (warnings []string, err error)
	RemoveService(ctx context.Context, ref string) error
}

// TaskControl reads and counts tasks.
type TaskControl interface {
	ListTasks(context.Context) ([]swarm.Task, error)
	GetTask(ctx context.Context, ref string) (swarm.Task, error)
	// UpToDate reports whether the task runs what its service wants now, by the
	// same rule by which the updater replaces tasks.
	UpToDate(context.Context, swarm.Task) bool
	// ServiceStatuses counts each service's tasks, by service ID.
	ServiceStatuses(context.Context) (map[string]swarm.ServiceStatus, error)
}

// Control is what a manager can be asked to do. What it returns may be shared
// with others: this package copies before it changes anything.
type Control interface {
	SwarmControl
	NodeControl
	NetworkControl
	ServiceControl
	TaskControl
}

// Config is what the API stands on. Local and Log are needed.
type Config struct {
	Local Local
	Log   *slog.Logger
	// Extra are further handlers by mux pattern, such as "/netd/v1/".
	Extra map[string]http.Handler
	// Images are those that the nodes carry themselves, such as netd/echo: no
	// registry has to be asked for them.
	Images []string
}

// server answers requests; its fields never change.
type server struct {
	Config
	host   host
	routes *http.ServeMux
}

// NewHandler returns the API. Streams (GET /events) last until the request's
// context ends, so the http.Server needs a BaseContext that ends with the daemon.
func NewHandler(c Config) http.Handler {
	s := &server{Config: c, host: readHost(), routes: http.NewServeMux()}
	s.systemRoutes()
	s.swarmRoutes()
	s.networkRoutes()
	s.engineRoutes()
	for pattern, handler := range c.Extra {
		s.routes.Handle(pattern, handler)
	}
	return s
}

// handler answers one kind of request; its error becomes the response.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *server) handle(pattern string, h handler) {
	s.routes.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			writeError(w, r, err)
		}
	})
}

// managed wraps a handler that needs a manager: it gets the Control, and bounded
// time.
func (s *server) managed(h func(w http.ResponseWriter, r *http.Request, c Control) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		c, err := s.Local.Control()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		return h(w, r.WithContext(ctx), c)
	}
}

func (s *server) swarmRoutes() {
	s.handle("GET /swarm", s.managed(getSwarm))
	s.handle("POST /swarm/init", s.initSwarm)
	s.handle("POST /swarm/join", s.joinSwarm)
	s.handle("POST /swarm/leave", s.leaveSwarm)
	s.handle("POST /swarm/update", s.managed(updateSwarm))
	s.handle("GET /swarm/unlockkey", s.managed(getUnlockKey))
	s.handle("POST /swarm/unlock", s.managed(unlockSwarm))

	s.handle("GET /nodes", s.managed(listNodes))
	s.handle("GET /nodes/{id}", s.managed(getNode))
	s.handle("DELETE /nodes/{id}", s.managed(removeNode))
	s.handle("POST /nodes/{id}/update", s.managed(updateNode))

	s.handle("GET /services", s.managed(listServices))
	s.handle("POST /services/create", s.managed(createService))
	s.handle("GET /services/{id}", s.managed(getService))
	s.handle("DELETE /services/{id}", s.managed(removeService))
	s.handle("POST /services/{id}/update", s.managed(updateService))
	s.handle("GET /services/{id}/logs", s.managed(serviceLogs))

	s.handle("GET /tasks", s.managed(listTasks))
	s.handle("GET /tasks/{id}", s.managed(getTask))
	s.handle("GET /tasks/{id}/logs", s.managed(taskLogs))
}
