package netd

import "net/netip"

// TaskID names a task: one attempt to run one replica of a service.
type TaskID string

// EndpointKey names an endpoint: a task has at most one on each network.
type EndpointKey struct {
	Network NetworkID
	Task    TaskID
}

// Endpoint is a task's place on a network, as the managers granted it.
type Endpoint struct {
	Network NetworkID
	Task    TaskID
	// Name is the task's DNS name, such as web.1.h0ev5tvl84x9kbd5lcp4rs5wk.
	Name    string
	Service ServiceID
	Node    NodeID
	Addr    netip.Addr
	// Leaving is true once the managers want the task gone: whatever its node
	// says of it, it gets no new connections.
	Leaving bool
}

// Key returns the endpoint's name.
func (e Endpoint) Key() EndpointKey { return EndpointKey{Network: e.Network, Task: e.Task} }

// EndpointState is what the endpoint's own node says of it, spread by gossip.
// An endpoint of which nothing is said is not ready.
type EndpointState uint8

const (
	// Ready endpoints take new connections: the task runs, is healthy, and its
	// node has built its path.
	Ready EndpointState = iota + 1
	// Draining endpoints keep the connections that they have and get no new ones.
	Draining
)

// String returns the state's name.
func (s EndpointState) String() string {
	switch s {
	case Ready:
		return "ready"
	case Draining:
		return "draining"
	default:
		return "unknown"
	}
}
