package orchestrator

import (
	"context"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/store"
)

func findNode(tx *store.Tx, ref string) (*swarm.Node, error) {
	return lookup[swarm.Node]{
		"node", ref, tx.Node, tx.Nodes,
		func(n *swarm.Node) string { return n.ID }, func(n *swarm.Node) string { return n.Description.Hostname },
	}.find()
}

// ListNodes returns all nodes, sorted by ID.
func (o *Orchestrator) ListNodes(context.Context) ([]swarm.Node, error) {
	return values(o.store.View().Nodes()), nil
}

// GetNode returns the node with the ID, host name or ID prefix.
func (o *Orchestrator) GetNode(_ context.Context, ref string) (swarm.Node, error) {
	return value(findNode(o.store.View(), ref))
}

// UpdateNode replaces the node's spec: labels and availability. Roles stay.
func (o *Orchestrator) UpdateNode(ctx context.Context, ref string, version uint64, spec swarm.NodeSpec) error {
	switch {
	case !slices.Contains([]swarm.NodeAvailability{swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain}, spec.Availability):
		return netd.Errorf(netd.ErrInvalid, "invalid Availability: %q", spec.Availability)
	case spec.Role != swarm.NodeRoleWorker && spec.Role != swarm.NodeRoleManager:
		return netd.Errorf(netd.ErrInvalid, "invalid Role: %q", spec.Role)
	}
	spec.Labels = labels(spec.Labels)
	return o.store.Update(ctx, func(tx *store.Tx) error {
		old, err := findNode(tx, ref)
		if err != nil {
			return err
		}
		if old.Version.Index != version {
			return outOfSequence()
		}
		switch {
		case old.Spec.Role == spec.Role:
		case spec.Role == swarm.NodeRoleManager:
			return netd.Errorf(netd.ErrUnsupported, "several managers are not supported yet: node %s stays a worker", old.ID)
		case managers(tx) == 1:
			return precondition("attempting to demote the last manager of the swarm")
		default:
			return netd.Errorf(netd.ErrUnsupported, "several managers are not supported yet: node %s stays a manager", old.ID)
		}
		n := *old
		n.Spec = spec
		return tx.Put(&n)
	})
}

func managers(tx *store.Tx) int {
	n := 0
	for _, o := range tx.Nodes() {
		if o.Spec.Role == swarm.NodeRoleManager {
			n++
		}
	}
	return n
}

// RemoveNode removes a worker that is down, with force one that is not. Its tasks
// are given up and placed elsewhere; its certificate is of no use any more.
func (o *Orchestrator) RemoveNode(ctx context.Context, ref string, force bool) error {
	now := o.now()
	return o.store.Update(ctx, func(tx *store.Tx) error {
		n, err := findNode(tx, ref)
		if err != nil {
			return err
		}
		if n.Spec.Role == swarm.NodeRoleManager {
			return precondition("node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
		}
		if n.Status.State == swarm.NodeStateReady && !force {
			return precondition("node %s is not down and can't be removed", n.ID)
		}
		p := o.newPass(tx, now)
		p.orphan(n.ID)
		p.delete(n)
		return p.err
	})
}
