package node

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/balancer"
	"netd/dispatch"
	"netd/gossip"
	"netd/internal/netns"
	"netd/netd/task"
	"netd/vxlan"
)

// unknownPathMTU is assumed where not even this node's own link tells: Ethernet's.
const unknownPathMTU = 1500

// input gathers what Compile needs: the managers' grant, the gossip, and the
// namespaces that exist here.
func (n *Node) input(ctx context.Context, a *dispatch.Assignment, view *gossip.View, statuses map[netd.TaskID]task.Status) (Input, error) {
	in := Input{
		Self: n.Self, Addr: n.Addr, Port: n.Port, NetNSDir: n.NetNSDir,
		Upstreams: n.Upstreams, Snapshot: a.Snapshot, Gossip: view, Heard: n.heard,
	}
	for i := range a.Tasks {
		t := &a.Tasks[i]
		s, ok := statuses[netd.TaskID(t.ID)]
		if !ok || s.NetNS == "" || (s.Phase != task.Created && s.Phase != task.Running) {
			continue
		}
		in.Local = append(in.Local, LocalTask{ID: netd.TaskID(t.ID), NetNS: s.NetNS, Attachments: attachments(t)})
	}
	if in.unheard() {
		in.Standing = n.standing(ctx, in)
	}
	peers := []netip.Addr{n.Addr} // alone, the node's own link is the measure
	for _, node := range a.Snapshot.Nodes {
		peers = append(peers, node.Addr)
	}
	path, err := vxlan.PathMTU(peers)
	if path == 0 {
		path = unknownPathMTU
	}
	in.MTU = vxlan.OverlayMTU(path, n.Addr)
	return in, wrap("find the path's MTU", err)
}

// standing reads what the routers that exist balance now. A router that cannot be
// read is made anew by this pass, or it is an error there.
func (n *Node) standing(ctx context.Context, in Input) balancer.Config {
	var routers []string
	for _, network := range in.Snapshot.Networks {
		if router := RouterNetNS(n.NetNSDir, network.ID); netns.Exists(router) {
			routers = append(routers, router)
		}
	}
	have, err := n.Balancer.Get(ctx, routers)
	if err != nil {
		n.Log.Warn("read the balancers", "err", err)
	}
	return have
}

// attachments lists a task's networks with its address on each.
func attachments(t *swarm.Task) []Attachment {
	var out []Attachment
	for _, at := range t.NetworksAttachments {
		if len(at.Addresses) > 0 {
			out = append(out, Attachment{Network: netd.NetworkID(at.Network.ID), Addr: at.Addresses[0]})
		}
	}
	return out
}

// notePlugged remembers which tasks have all their interfaces in place. After a
// pass without errors those are all; otherwise the kernel is asked, so that one
// bad network does not keep the tasks of the others from service. A task that was
// plugged once stays so: what breaks later is mended, not withdrawn.
func (n *Node) notePlugged(in Input, ok bool) {
	inPlace := map[netip.Prefix]bool{}
	if !ok {
		have, err := n.Overlay.Get()
		if err != nil {
			n.Log.Error("read the overlay", "err", err)
		}
		for _, network := range have.Networks {
			for _, p := range network.Ports {
				inPlace[p.Addr] = true
			}
		}
	}
	now := map[netd.TaskID]bool{}
	for _, t := range in.Local {
		missing := slices.ContainsFunc(t.Attachments, func(a Attachment) bool { return !inPlace[a.Addr] })
		now[t.ID] = ok || n.plugged[t.ID] || !missing
	}
	n.plugged = now
}

// step decides for every task, tells peers and managers, and sets workers to what
// takes time.
func (n *Node) step(ctx context.Context, a *dispatch.Assignment, statuses map[netd.TaskID]task.Status, now time.Time) time.Duration {
	wanted := map[netd.TaskID]*swarm.Task{}
	for i := range a.Tasks {
		wanted[netd.TaskID(a.Tasks[i].ID)] = &a.Tasks[i]
	}
	for id := range statuses {
		if _, ok := wanted[id]; !ok {
			wanted[id] = nil
		}
	}
	var again time.Duration
	var entries []gossip.Entry
	var reports []dispatch.TaskStatus
	withdrawn := []*progress{}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		p := n.progress(id)
		var actual *task.Status
		if status, ok := statuses[id]; ok {
			actual = &status
		}
		next := decide(n.situation(a, wanted[id], id, actual, now))
		if next.do == drain {
			p.draining = now
			withdrawn = append(withdrawn, p)
			again = minPositive(again, drainTimeout)
		}
		if next.again > 0 {
			again = minPositive(again, next.again)
		}
		entries = append(entries, n.entries(wanted[id], id, next.state)...)
		if next.report != nil && p.due(*next.report, now) {
			next.report.Timestamp = now
			reports = append(reports, dispatch.TaskStatus{ID: string(id), Status: *next.report})
		}
		n.act(ctx, a, wanted[id], id, next.do)
	}
	n.forget(wanted)
	version := n.Gossip.Publish(entries)
	for _, p := range withdrawn {
		p.version = version
	}
	if len(reports) > 0 {
		n.Report(dispatch.Report{Statuses: reports})
		again = minPositive(again, retryReport)
	}
	return again
}

func (n *Node) progress(id netd.TaskID) *progress {
	p := n.tasks[id]
	if p == nil {
		p = &progress{}
		n.tasks[id] = p
	}
	return p
}

func (n *Node) situation(a *dispatch.Assignment, wanted *swarm.Task, id netd.TaskID, actual *task.Status, now time.Time) situation {
	p := n.progress(id)
	s := situation{wanted: wanted, actual: actual, plugged: n.plugged[id], draining: p.draining, now: now, refusal: n.failure(id)}
	if actual == nil && wanted != nil && s.refusal == nil {
		want, err := spec(wanted, a, n.Name)
		s.refusal = cmp.Or(err, n.Runtime.Check(want), task.Unsupported(wanted.Spec))
	}
	if !p.draining.IsZero() {
		if p.acknowledged.IsZero() && len(n.Gossip.Acked(p.version)) == 0 {
			p.acknowledged = now
		}
		s.acknowledged = p.acknowledged
	}
	return s
}

// due says whether a status is news, or was sent so long ago that it must have
// been lost, and remembers it as sent.
func (p *progress) due(s swarm.TaskStatus, now time.Time) bool {
	same := p.reported.State == s.State && p.reported.Err == s.Err && samePid(p.reported.ContainerStatus, s.ContainerStatus)
	if same && now.Sub(p.reportedAt) < retryReport {
		return false
	}
	p.reported, p.reportedAt = s, now
	return true
}

// entries gives what peers are told of a task: one entry for each network. A
// task the managers no longer list has no address to speak of.
func (n *Node) entries(t *swarm.Task, id netd.TaskID, state netd.EndpointState) []gossip.Entry {
	if t == nil || state == 0 {
		return nil
	}
	var out []gossip.Entry
	for _, at := range attachments(t) {
		out = append(out, gossip.Entry{Key: netd.EndpointKey{Network: at.Network, Task: id}, State: state})
	}
	return out
}

// act hands what takes time to a worker, one at a time for each task.
func (n *Node) act(ctx context.Context, a *dispatch.Assignment, t *swarm.Task, id netd.TaskID, do action) {
	var work func() error
	switch do {
	case prepare:
		work = func() error {
			s, err := spec(t, a, n.Name)
			if err == nil {
				_, err = n.Runtime.Prepare(ctx, s)
			}
			return err
		}
	case start:
		work = func() error { return n.Runtime.Start(ctx, string(id)) }
	case stop:
		work = func() error { return n.Runtime.Stop(ctx, string(id)) }
	case remove:
		work = func() error { return n.Runtime.Remove(ctx, string(id)) }
	default:
		return
	}
	if !n.claim(id) {
		return
	}
	n.workers.Go(func() error {
		defer n.ring()
		defer n.release(id)
		if err := work(); err != nil && ctx.Err() == nil {
			n.Log.Error("act on task", "task", id, "action", do.String(), "err", err)
			if do == prepare || do == start {
				n.fail(id, err) // the managers may find a better node
				return nil
			}
			pause(ctx, time.Second)
		}
		return nil
	})
}

func (n *Node) claim(id netd.TaskID) bool {
	n.busyMu.Lock()
	defer n.busyMu.Unlock()
	if n.busy[id] {
		return false
	}
	n.busy[id] = true
	return true
}

func (n *Node) release(id netd.TaskID) {
	n.busyMu.Lock()
	defer n.busyMu.Unlock()
	delete(n.busy, id)
}

// fail remembers why a task cannot be.
func (n *Node) fail(id netd.TaskID, err error) {
	n.busyMu.Lock()
	defer n.busyMu.Unlock()
	n.failed[id] = err
}

func (n *Node) failure(id netd.TaskID) error {
	n.busyMu.Lock()
	defer n.busyMu.Unlock()
	return n.failed[id]
}

// forget drops what was remembered of tasks that are neither wanted nor here.
func (n *Node) forget(wanted map[netd.TaskID]*swarm.Task) {
	n.busyMu.Lock()
	defer n.busyMu.Unlock()
	for id := range n.tasks {
		if _, ok := wanted[id]; !ok {
			delete(n.tasks, id)
			delete(n.failed, id)
		}
	}
}
