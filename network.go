package netd

import "net/netip"

// NetworkID names an overlay network.
type NetworkID string

// Network is one overlay network.
type Network struct {
	ID   NetworkID
	Name string
	// VNI is the VXLAN network identifier, unique in the swarm: 4096 to 2^24-1.
	VNI uint32
	// Subnet holds every address of the network: endpoints and service VIPs.
	Subnet netip.Prefix
	// Gateway is the subnet's router address, the same on every node.
	Gateway netip.Addr
	// Internal networks have no way out: no uplink, no DNS query forwarded.
	Internal bool
	// Attachable networks accept containers that are not tasks of a service.
	Attachable bool
	// Ingress is the network that carries published ports: it reaches every node,
	// and takes connections with the client's own address.
	Ingress bool
}

// RouterAddr is the address under which every overlay router is known to its own
// containers: their default gateway and their DNS server. Link-local, so that it
// can never be an address of a network, and the same in each router.
var RouterAddr = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// HairpinAlias is the source address that a container sees when it is balanced
// to itself through its own service's VIP on the network. It lies in
// 169.254.64.0/18 (clear of the cloud metadata address 169.254.169.254) and
// differs between any two networks whose VNIs differ in their low 14 bits, so
// that a container on several networks routes each alias to the right router.
func (n Network) HairpinAlias() netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 64 | byte(n.VNI>>8)&0x3f, byte(n.VNI)})
}
