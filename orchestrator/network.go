package orchestrator

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/ipam"
	"netd/orchestrator/store"
)

const scopeSwarm = "swarm"

func findNetwork(tx *store.Tx, ref string) (*swarm.Network, error) {
	return lookup[swarm.Network]{
		"network", ref, func(id string) *swarm.Network { return openNetwork(tx, id) }, func() []*swarm.Network { return slices.DeleteFunc(slices.Clone(tx.Networks()), removing) },
		func(n *swarm.Network) string { return n.ID }, func(n *swarm.Network) string { return n.Spec.Name },
	}.find()
}

// openNetwork returns the network that tasks and services may have addresses on;
// nil when it is gone or going.
func openNetwork(tx *store.Tx, id string) *swarm.Network {
	if n := tx.Network(id); n != nil && !removing(n) {
		return n
	}
	return nil
}

// ListNetworks returns all networks of the swarm, sorted by ID.
func (o *Orchestrator) ListNetworks(context.Context) ([]swarm.Network, error) {
	return values(slices.DeleteFunc(slices.Clone(o.store.View().Networks()), removing)), nil
}

// GetNetwork returns the network with the ID, name or ID prefix.
func (o *Orchestrator) GetNetwork(_ context.Context, ref string) (swarm.Network, error) {
	return value(findNetwork(o.store.View(), ref))
}

// CreateNetwork makes an overlay network, with its subnet, gateway and VNI.
func (o *Orchestrator) CreateNetwork(ctx context.Context, req network.CreateRequest) (string, error) {
	n, err := networkOf(req)
	if err != nil {
		return "", err
	}
	n.ID = o.newID()
	err = o.store.Update(ctx, func(tx *store.Tx) error {
		if tx.NetworkByName(n.Spec.Name) != nil {
			return netd.Errorf(netd.ErrExists, "network with name %s already exists", n.Spec.Name)
		}
		if n.Spec.Ingress && ingressNetwork(tx) != nil {
			return swarmError(netd.ErrExists, "AlreadyExists", "ingress network (%s) is already present", ingressNetwork(tx).ID)
		}
		if err := allocateNetwork(tx, n); err != nil {
			return err
		}
		return tx.Put(n)
	})
	if err != nil {
		return "", err
	}
	return n.ID, nil
}

// networkOf checks a request and returns the network that it asks for, without
// what the managers choose.
func networkOf(req network.CreateRequest) (*swarm.Network, error) {
	if err := checkName(req.Name); err != nil {
		return nil, err
	}
	switch {
	case req.Name == network.NetworkHost, req.Name == network.NetworkBridge, req.Name == network.NetworkNone, req.Name == network.NetworkDefault:
		return nil, netd.Errorf(netd.ErrForbidden, "operation is not permitted on predefined %s network", req.Name)
	case req.Driver != "" && req.Driver != driverOverlay:
		return nil, netd.Errorf(netd.ErrUnsupported, "network driver %q is not supported in the swarm: use overlay", req.Driver)
	case req.Scope != "" && req.Scope != scopeSwarm:
		return nil, netd.Errorf(netd.ErrInvalid, "an overlay network has the scope swarm, not %q", req.Scope)
	case req.EnableIPv6 != nil && *req.EnableIPv6:
		return nil, netd.Errorf(netd.ErrUnsupported, "IPv6 networks are not supported yet: create the network without --ipv6")
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return nil, netd.Errorf(netd.ErrUnsupported, "networks without IPv4 are not supported yet")
	case req.ConfigOnly, req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return nil, netd.Errorf(netd.ErrUnsupported, "configuration-only networks are not supported in the swarm")
	case req.Ingress && (req.Internal || req.Attachable):
		return nil, netd.Errorf(netd.ErrInvalid, "the ingress network can be neither internal nor attachable")
	}
	if encrypted, ok := req.Options["encrypted"]; ok && encrypted != "false" {
		return nil, netd.Errorf(netd.ErrUnsupported, "encrypted networks are not supported yet: create the network without --opt encrypted, or wait for a version that can encrypt it")
	}
	options, err := ipamOptions(req.IPAM)
	if err != nil {
		return nil, err
	}
	return &swarm.Network{
		Spec: swarm.NetworkSpec{
			Annotations:         swarm.Annotations{Name: req.Name, Labels: labels(req.Labels)},
			DriverConfiguration: &swarm.Driver{Name: driverOverlay, Options: maps.Clone(req.Options)},
			Internal:            req.Internal,
			Attachable:          req.Attachable,
			Ingress:             req.Ingress,
			IPAMOptions:         options,
			Scope:               scopeSwarm,
		},
	}, nil
}

// ipamOptions checks what the user wants of the addresses. The pool is chosen
// later where no subnet is named.
func ipamOptions(req *network.IPAM) (*swarm.IPAMOptions, error) {
	out := &swarm.IPAMOptions{Driver: swarm.Driver{Name: driverIPAM}, Configs: []swarm.IPAMConfig{}}
	if req == nil {
		return out, nil
	}
	if req.Driver != "" && req.Driver != driverIPAM {
		return nil, netd.Errorf(netd.ErrUnsupported, "IPAM driver %q is not supported: use default", req.Driver)
	}
	if len(req.Config) > 1 {
		return nil, netd.Errorf(netd.ErrUnsupported, "a network has one subnet: %d were given", len(req.Config))
	}
	for _, c := range req.Config {
		if err := checkSubnet(c); err != nil {
			return nil, err
		}
		out.Configs = append(out.Configs, swarm.IPAMConfig{Subnet: c.Subnet, Gateway: c.Gateway})
	}
	return out, nil
}

func checkSubnet(c network.IPAMConfig) error {
	// What an endpoint's own node uses on every network, and what no host may have.
	reserved := []netip.Prefix{
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	}
	switch {
	case c.IPRange.IsValid():
		return netd.Errorf(netd.ErrUnsupported, "an IP range within the subnet is not supported yet: create the network without --ip-range")
	case len(c.AuxAddress) > 0:
		return netd.Errorf(netd.ErrUnsupported, "auxiliary addresses are not supported yet: create the network without --aux-address")
	case !c.Subnet.IsValid() && c.Gateway.IsValid():
		return netd.Errorf(netd.ErrInvalid, "every ip-range or gateway must have a corresponding subnet")
	case !c.Subnet.IsValid():
		return nil
	case !c.Subnet.Addr().Is4():
		return netd.Errorf(netd.ErrUnsupported, "subnet %s: IPv6 networks are not supported yet", c.Subnet)
	case c.Subnet != c.Subnet.Masked():
		return netd.Errorf(netd.ErrInvalid, "invalid subnet %s: it should be %s", c.Subnet, c.Subnet.Masked())
	case c.Subnet.Bits() < 8:
		return netd.Errorf(netd.ErrInvalid, "invalid subnet %s: it is larger than a /8", c.Subnet)
	}
	if r, overlaps := ipam.Overlapping(c.Subnet, reserved); overlaps {
		return netd.Errorf(netd.ErrInvalid, "invalid subnet %s: %s is not for networks", c.Subnet, r)
	}
	a, err := ipam.NewAddresses(c.Subnet, c.Subnet.Addr())
	if err != nil {
		return netd.Errorf(netd.ErrInvalid, "invalid %w", err)
	}
	if c.Gateway.IsValid() {
		if err := a.Take(c.Gateway); err != nil {
			return netd.Errorf(netd.ErrInvalid, "invalid gateway: %w", err)
		}
	}
	return nil
}

// RemoveNetwork removes a network that no service uses. Tasks that are being
// stopped keep it until the last of them is gone: until then it has no name and
// is shown to nobody, but nobody gets its subnet and its VNI either.
func (o *Orchestrator) RemoveNetwork(ctx context.Context, ref string) error {
	return o.store.Update(ctx, func(tx *store.Tx) error {
		n, err := findNetwork(tx, ref)
		if err != nil {
			return err
		}
		for _, s := range tx.Services() {
			if n.Spec.Ingress && slices.ContainsFunc(s.Endpoint.Ports, published) {
				return precondition("ingress network cannot be removed because service %s depends on it", s.ID)
			}
			if slices.ContainsFunc(s.Spec.TaskTemplate.Networks, func(a swarm.NetworkAttachmentConfig) bool { return a.Target == n.ID }) {
				return precondition("network %s is in use by service %s", n.ID, s.ID)
			}
		}
		holders := holdersOf(tx, n.ID)
		for _, t := range holders {
			if wanted(t) && tx.Service(t.ServiceID) != nil {
				return precondition("network %s is in use by task %s", n.ID, t.ID)
			}
		}
		if len(holders) == 0 {
			return tx.Delete(n)
		}
		return tx.Put(removed(n))
	})
}

// optionRemoved marks a network that is removed as soon as its last task is gone;
// its value is the name that the network had.
const optionRemoved = "netd.removed"

func removing(n *swarm.Network) bool {
	_, is := n.DriverState.Options[optionRemoved]
	return is
}

// removed returns a copy of the network that is marked, and leaves its name to others.
func removed(n *swarm.Network) *swarm.Network {
	c := *n
	c.DriverState.Options = maps.Clone(n.DriverState.Options)
	c.DriverState.Options[optionRemoved] = n.Spec.Name
	c.Spec.Name = n.ID
	return &c
}

// holdersOf returns the tasks that may still use an address of the network.
func holdersOf(tx *store.Tx, id string) []*swarm.Task {
	var list []*swarm.Task
	for _, t := range tx.Tasks() {
		if holdsAddress(t) && slices.ContainsFunc(t.NetworksAttachments, func(a swarm.NetworkAttachment) bool { return a.Network.ID == id }) {
			list = append(list, t)
		}
	}
	return list
}

// reapNetworks deletes the removed networks whose last task is gone.
func (p *pass) reapNetworks() {
	for _, n := range p.tx.Networks() {
		if removing(n) && len(holdersOf(p.tx, n.ID)) == 0 {
			p.delete(n)
		}
	}
}

// labels returns labels that are never null in JSON.
func labels(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

func value[T any](o *T, err error) (T, error) {
	if err != nil {
		var zero T
		return zero, err
	}
	return *o, nil
}

func values[T any](all []*T) []T {
	out := make([]T, len(all))
	for i, o := range all {
		out[i] = *o
	}
	return out
}
