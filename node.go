// Package netd is the shared vocabulary: what a node, a network, an endpoint
// and a service are to the network. Values only: comparable, without pointers,
// locks or I/O, and importing nothing but the standard library.
//
// It says nothing of how these are stored (that is the Docker API's own types)
// or of how the kernel holds them (each kernel package has its own Config).
package netd

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
)

// NodeID names a node for its whole life: 25 characters of base 36, given by
// the managers at the join and carried in the node's certificate.
type NodeID string

// Node is one host of the swarm as its peers see it.
type Node struct {
	ID   NodeID
	Name string
	// Addr is where the node's VXLAN traffic goes to and comes from (its VTEP).
	Addr netip.Addr
}

// MAC is a hardware address that can be compared and used as a map key.
type MAC [6]byte

// String formats m as 02:00:5e:10:00:01.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// RouterMAC is the hardware address of every overlay router of the node: locally
// administered, derived from the ID, so that peers compute it and nobody has to
// announce it.
func RouterMAC(id NodeID) MAC {
	sum := sha256.Sum256([]byte("netd router " + id))
	m := MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02 // unicast, locally administered (IEEE 802)
	return m
}
