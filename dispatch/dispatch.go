// Package dispatch is the protocol between nodes and managers: one TCP port with
// TLS 1.3, on which ALPN tells the nodes' RPC (h2) from the managers' raft. It
// owns the join, the session that carries assignments down and reports up, the
// renewal of certificates, and raft's connections.
//
// It does NOT decide anything but who is at the other end of a connection: what
// a node is assigned, whether a token is good and what a report means is the
// Manager's business.
package dispatch

import (
	"context"
	"net/netip"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// Manager answers the nodes. The node's ID is always that of its certificate.
// Errors reach the node with their text; a netd.ErrForbidden tells it for good
// that it is not, or no longer, of the swarm, any other that it may try again.
type Manager interface {
	// Join admits a node that has no certificate yet.
	Join(context.Context, JoinRequest) (JoinReply, error)
	// Attach begins a session of the node, of which there is one at a time. The
	// channel hands out the newest assignment; it is closed when ctx ends, when
	// the node is removed, or when this manager can no longer serve it.
	Attach(ctx context.Context, node netd.NodeID) (<-chan Assignment, error)
	// Report stores what the node says; when it returns nil the node forgets it.
	Report(ctx context.Context, node netd.NodeID, r Report) error
	// Renew signs a new certificate for the node, with the role that it now has.
	Renew(ctx context.Context, node netd.NodeID, csrPEM []byte) (certPEM []byte, err error)
}

// JoinRequest is what a new node tells a manager.
type JoinRequest struct {
	Token        string
	CSR          []byte // PEM
	Description  swarm.NodeDescription
	Addr         netip.Addr // the node's VTEP; zero: the address it comes from
	Availability swarm.NodeAvailability
	// ListenAddr is the host:port on which the node would serve as a manager.
	ListenAddr string
}

// JoinReply makes the node a member.
type JoinReply struct {
	NodeID      netd.NodeID
	Certificate []byte // PEM
	CA          []byte // PEM
	Role        swarm.NodeRole
	Managers    []string // host:port
	ClusterID   string
}

// Assignment is all that a node has to know and do: it replaces the one before.
// It holds keys and secrets: never log one.
type Assignment struct {
	// Generation grows with each assignment of a session.
	Generation uint64
	// Node is the node itself, as the managers hold it.
	Node swarm.Node
	// Tasks of the node that must run or be stopped.
	Tasks    []swarm.Task
	Snapshot netd.Snapshot
	// Members are all nodes of the swarm, sorted: what is remembered of others may
	// be forgotten.
	Members []netd.NodeID
	// ServiceNames are the names of the services of Tasks, by ID.
	ServiceNames map[string]string
	GossipKeys   [][]byte
	GossipPeers  []netip.AddrPort
	// Managers is where sessions can be had, as host:port; ManagerIDs are their
	// nodes, in the same order.
	Managers     []string
	ManagerIDs   []netd.NodeID
	DataPathPort uint32
}

// Report is what a node says of itself. The zero Report is a heartbeat.
type Report struct {
	Statuses []TaskStatus
	// Description and Addr are nil and zero when they did not change.
	Description *swarm.NodeDescription
	Addr        netip.Addr
	// Applied is the Generation of the newest assignment that the node has put
	// into effect.
	Applied uint64
	// Leaving is true in the last reports of a node that leaves the swarm for good.
	Leaving bool
}

// TaskStatus is the state of one task of the node.
type TaskStatus struct {
	ID     string
	Status swarm.TaskStatus
}
