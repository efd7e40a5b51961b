package orchestrator

import (
	"context"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/dispatch"
	"netd/orchestrator/store"
	"netd/pki"
)

// The Orchestrator answers the nodes.
var _ dispatch.Manager = (*Orchestrator)(nil)

// maxStatusText bounds what a node can make the swarm store for one task, in bytes.
const maxStatusText = 4096

// Join admits a node that shows a valid token. The node is not used before its
// first session.
func (o *Orchestrator) Join(ctx context.Context, req dispatch.JoinRequest) (dispatch.JoinReply, error) {
	addr := req.Addr.Unmap()
	if !usable(addr) {
		return dispatch.JoinReply{}, netd.Errorf(netd.ErrInvalid, "join: %v is no address under which others can reach this node: set --advertise-addr", req.Addr)
	}
	var reply dispatch.JoinReply
	now := o.now()
	err := o.store.Update(ctx, func(tx *store.Tx) error {
		c := tx.Cluster()
		if c == nil {
			return netd.Errorf(netd.ErrUnavailable, "join: the swarm is not known to this manager yet: try again")
		}
		asManager := pki.SameToken(req.Token, c.JoinTokens.Manager)
		if asWorker := pki.SameToken(req.Token, c.JoinTokens.Worker); !asManager && !asWorker {
			return invalid("A valid join token is necessary to join this cluster")
		}
		if asManager {
			return netd.Errorf(netd.ErrUnsupported, "several managers are not supported yet; join as a worker with the token that 'docker swarm join-token worker' shows on the manager")
		}
		if err := joinable(tx, addr.String()); err != nil {
			return err
		}
		n := swarm.Node{
			ID: o.newID(),
			Spec: swarm.NodeSpec{
				Annotations:  swarm.Annotations{Labels: map[string]string{}},
				Role:         swarm.NodeRoleWorker,
				Availability: availability(req.Availability),
			},
			Description: req.Description,
			Status:      swarm.NodeStatus{State: swarm.NodeStateUnknown, Message: "joined, not heard of yet", Addr: addr.String()},
		}
		cert, err := sign(c, &n, req.CSR, now)
		if err != nil {
			return err
		}
		reply = dispatch.JoinReply{
			NodeID: netd.NodeID(n.ID), Certificate: cert, CA: c.CACert, Role: n.Spec.Role,
			Managers: newProjection(tx).managers, ClusterID: c.ID,
		}
		p := o.newPass(tx, now)
		p.replaceAddr(addr.String(), n.ID)
		p.put(&n)
		return p.err
	})
	if err != nil {
		return dispatch.JoinReply{}, err
	}
	o.checkIn(reply.NodeID, now)
	return reply, nil
}

// joinable refuses an address that is another node's while that node is up: two
// nodes with one VTEP would get each other's packets.
func joinable(tx *store.Tx, addr string) error {
	for _, n := range tx.Nodes() {
		switch host := n.Description.Hostname; {
		case n.Status.Addr != addr:
		case n.Spec.Role == swarm.NodeRoleManager:
			return netd.Errorf(netd.ErrExists, "join: the address %s is that of the manager %s: set another --advertise-addr or --data-path-addr", addr, host)
		case n.Status.State == swarm.NodeStateReady:
			return netd.Errorf(netd.ErrExists, "join: the address %s is that of node %s (%s), which is up: set another --data-path-addr; "+
				"if it was this host's own, wait until 'docker node ls' shows that node as Down, run 'docker node rm %s' on the manager, and join again", addr, host, n.ID, n.ID)
		}
	}
	return nil
}

// admissible refuses a report by which node n would take up an address that
// another node has: after a replacement (see replaceAddr) or because it has moved.
// Of two nodes the one that is not down keeps it.
func admissible(tx *store.Tx, n *swarm.Node, r dispatch.Report) error {
	addr := addrAfter(n, r)
	if r.Leaving || n.Status.State == swarm.NodeStateReady && addr == n.Status.Addr {
		return nil
	}
	for _, o := range tx.Nodes() {
		if o.ID != n.ID && o.Status.Addr == addr && (o.Spec.Role == swarm.NodeRoleManager || o.Status.State != swarm.NodeStateDown) {
			return netd.Errorf(netd.ErrExists, "the address %s of node %s is now that of node %s (%s): run 'docker swarm leave --force' here and join again with another --data-path-addr, or take that node down and run 'docker node rm %s' on the manager",
				addr, n.ID, o.Description.Hostname, o.ID, o.ID)
		}
	}
	return nil
}

// addrAfter is the node's VTEP once the report is stored.
func addrAfter(n *swarm.Node, r dispatch.Report) string {
	if addr := r.Addr.Unmap(); usable(addr) {
		return addr.String()
	}
	return n.Status.Addr
}

// replaceAddr gives up the nodes that are down and had the address: it is a new
// node's now, most often because the host left the swarm and has come back.
func (p *pass) replaceAddr(addr, by string) {
	for _, n := range p.tx.Nodes() {
		if n.Status.Addr != addr || n.Spec.Role == swarm.NodeRoleManager {
			continue
		}
		p.orphan(n.ID)
		if n.Status.State != swarm.NodeStateDown {
			c := *n
			c.Status.State, c.Status.Message = swarm.NodeStateDown, "its address is now that of node "+by
			p.put(&c)
		}
	}
}

func availability(a swarm.NodeAvailability) swarm.NodeAvailability {
	switch a {
	case swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
		return a
	}
	return swarm.NodeAvailabilityActive
}

// sign makes a certificate with the node's ID and present role.
func sign(c *store.Cluster, n *swarm.Node, csr []byte, now time.Time) ([]byte, error) {
	ca, err := pki.LoadCA(c.CACert, c.CAKey)
	if err != nil {
		return nil, err
	}
	role := pki.Worker
	if n.Spec.Role == swarm.NodeRoleManager {
		role = pki.Manager
	}
	cert, err := ca.Sign(csr, pki.Subject{Node: netd.NodeID(n.ID), Role: role, Cluster: c.ID}, c.Spec.CAConfig.NodeCertExpiry, now)
	if err != nil {
		return nil, netd.Errorf(netd.ErrInvalid, "%w", err)
	}
	return cert, nil
}

// Renew signs a new certificate for a node of the swarm.
func (o *Orchestrator) Renew(_ context.Context, node netd.NodeID, csrPEM []byte) ([]byte, error) {
	tx := o.store.View()
	n, c := tx.Node(string(node)), tx.Cluster()
	if n == nil || c == nil {
		return nil, stranger(node)
	}
	return sign(c, n, csrPEM, o.now())
}

// stranger tells a node for good that it is not of this swarm.
func stranger(node netd.NodeID) error {
	return netd.Errorf(netd.ErrForbidden, "node %s is not, or no longer, a member of this swarm: leave it with 'docker swarm leave --force' and join again", node)
}

// Attach begins a session: the node is ready from now on, until it misses its
// heartbeats.
func (o *Orchestrator) Attach(ctx context.Context, node netd.NodeID) (<-chan dispatch.Assignment, error) {
	if !o.store.Leading() {
		return nil, netd.Errorf(netd.ErrUnavailable, "attach node %s: this manager does not lead the swarm", node)
	}
	if err := o.Report(ctx, node, dispatch.Report{}); err != nil {
		return nil, err
	}
	ch := o.sessions.open(ctx, node, func(n netd.NodeID) (dispatch.Assignment, bool) {
		return newProjection(o.store.View()).assignment(n)
	})
	if ch == nil {
		return nil, stranger(node)
	}
	return ch, nil
}

// Report notes that the node lives and stores what it says of itself and of its
// tasks. Of a task that is not the node's, or that is in that state already or
// past it, nothing is stored: the node need not repeat it.
func (o *Orchestrator) Report(ctx context.Context, node netd.NodeID, r dispatch.Report) error {
	n := o.store.View().Node(string(node))
	if n == nil {
		return stranger(node)
	}
	now := o.now()
	if err := admissible(o.store.View(), n, r); err != nil {
		return err
	}
	o.checkIn(node, now)
	if n.Status.State == swarm.NodeStateReady && !r.Leaving && len(r.Statuses) == 0 && r.Description == nil && !r.Addr.IsValid() {
		return nil
	}
	return o.store.Update(ctx, func(tx *store.Tx) error {
		n := tx.Node(string(node))
		if n == nil {
			return stranger(node)
		}
		if err := admissible(tx, n, r); err != nil {
			return err
		}
		p := o.newPass(tx, now)
		p.noteNode(n, r)
		for _, st := range r.Statuses {
			t := tx.Task(st.ID)
			if t == nil || t.NodeID != n.ID {
				continue
			}
			p.noteStatus(t, st.Status)
		}
		return p.err
	})
}

// noteNode makes the node ready, or down if it leaves, and takes over what it says
// of itself.
func (p *pass) noteNode(n *swarm.Node, r dispatch.Report) {
	c := *n
	c.Status.State, c.Status.Message = swarm.NodeStateReady, ""
	if r.Leaving {
		c.Status.State, c.Status.Message = swarm.NodeStateDown, messageLeft
	}
	if r.Description != nil {
		c.Description = *r.Description
	}
	c.Status.Addr = addrAfter(n, r)
	if c.Status != n.Status || !reflect.DeepEqual(c.Description, n.Description) {
		p.put(&c)
	}
}

func usable(addr netip.Addr) bool {
	return addr.IsValid() && !addr.IsUnspecified() && !addr.IsMulticast()
}

// noteStatus moves the task forward to what its node says. Times are this
// manager's: nodes' clocks differ, and delays and monitor periods count from them.
func (p *pass) noteStatus(t *swarm.Task, st swarm.TaskStatus) {
	if !reportable(st.State) || !assigned(t) || rank(st.State) < rank(t.Status.State) {
		return
	}
	c := *t
	st.Timestamp = t.Status.Timestamp
	if st.State != t.Status.State {
		st.Timestamp = p.now
	}
	st.Message, st.Err = bounded(st.Message), bounded(st.Err)
	c.Status = st
	if terminal(&c) && t.Status.State == swarm.TaskStateRunning {
		c.Labels = withLabel(t.Labels, labelRanFor, p.now.Sub(t.Status.Timestamp).String())
	}
	if !reflect.DeepEqual(c, *t) {
		p.put(&c)
	}
}

// reportable reports whether the state is one that a node decides on.
func reportable(s swarm.TaskState) bool {
	switch s {
	case swarm.TaskStateRemove, swarm.TaskStateOrphaned:
		return false
	}
	return rank(s) >= rank(swarm.TaskStateAccepted)
}

func bounded(text string) string {
	if len(text) > maxStatusText {
		text = text[:maxStatusText]
	}
	return strings.ToValidUTF8(text, "")
}
