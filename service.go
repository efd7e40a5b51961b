package netd

import "net/netip"

// ServiceID names a service.
type ServiceID string

// Service is a service's presence on one network: a service on two networks is
// two of these.
type Service struct {
	ID      ServiceID
	Network NetworkID
	Name    string
	// Aliases are other names for it on this network, sorted. Services may share them.
	Aliases []string `json:",omitempty"`
	// VIP is the virtual address that stands for all ready endpoints. It is the
	// zero Addr in endpoint mode dnsrr, where the name answers with them all.
	VIP netip.Addr
}

// Protocol is the transport of a published port: tcp, udp or sctp.
type Protocol string

// Port is one published port of a service.
type Port struct {
	Service  ServiceID
	Protocol Protocol
	// Published is the number on the nodes, Target the one that the tasks listen on.
	Published, Target uint16
	// Host ports are open on the nodes that run a task, each for its own; others
	// are open on every node, for all tasks.
	Host bool
}

// Snapshot is what the managers want one node to know of the swarm's network:
// the networks of its tasks, and on them every service and endpoint. Slices are
// sorted by ID, so that equal snapshots are deeply equal.
type Snapshot struct {
	// Nodes are those that hold an endpoint on one of Networks, and the node itself;
	// all of them as soon as a port is open on every node.
	Nodes    []Node
	Networks []Network
	Services []Service
	// Ports are those open on every node, and the host ports of services with tasks
	// here. Sorted by protocol, number and service.
	Ports     []Port
	Endpoints []Endpoint
}
