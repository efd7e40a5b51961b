package debug

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"netd"
	"netd/balancer"
	"netd/netd/task"
	"netd/vxlan"
)

// Trace is a connection's way from a task to a service, hop by hop.
type Trace struct {
	From, To string
	Hops     []Hop
	// Verdict is one sentence: it works, or where it ends and what to do.
	Verdict string
	OK      bool
}

// Hop is one decision on the way.
type Hop struct {
	OK bool
	// Layer is the part of the data plane that decides: dns, link, vip, balancer, ...
	Layer string
	// Text says what was decided, Object which kernel object did, and where.
	Text, Object string
}

// origin is the task that a trace begins at.
type origin struct {
	endpoint netd.Endpoint
	network  netd.Network
	status   task.Status
}

// trace walks from the task to the service. It fails only where the question
// makes no sense; what is wrong with the way is in the hops.
func trace(ctx context.Context, s Source, taskRef, service, portText string) (Trace, error) {
	if taskRef == "" || service == "" {
		return Trace{}, netd.Errorf(netd.ErrInvalid, "trace needs a task and a service: netd trace TASK SERVICE[:PORT]")
	}
	port := uint64(80)
	if portText != "" {
		var err error
		if port, err = strconv.ParseUint(portText, 10, 16); err != nil || port == 0 {
			return Trace{}, netd.Errorf(netd.ErrInvalid, "port %q is not a number from 1 to 65535", portText)
		}
	}
	f := s.Facts()
	from, to, err := find(f, taskRef, service)
	if err != nil {
		return Trace{}, err
	}
	if from.status.Phase != task.Running {
		return Trace{}, netd.Errorf(netd.ErrUnavailable, "task %q does not run here now; 'docker service ps' tells why, or trace from another one", from.endpoint.Name)
	}
	k, err := s.Kernel(ctx)
	if err != nil {
		return Trace{}, fmt.Errorf("read the kernel: %w", err)
	}
	t := Trace{From: from.endpoint.Name, To: fmt.Sprintf("%s:%d", service, port)}
	answer, err := s.Lookup(ctx, from.status.NetNS, service)
	t.Hops = append(t.Hops, dnsHop(to, answer, err))
	t.Hops = append(t.Hops, walk(f, k, from, to)...)
	for i := range t.Hops {
		if h := &t.Hops[i]; h.Layer == f.Balancer {
			h.Object = objects(s.Explain(ctx, h.Object, to.VIP)) + " in " + h.Object
		}
	}
	target := netip.AddrPortFrom(to.VIP, uint16(port))
	if to.VIP.IsValid() {
		err := s.Dial(ctx, from.status.NetNS, target)
		t.Hops = append(t.Hops, Hop{OK: err == nil, Layer: layerProbe, Text: said(err, "a TCP connection to "+target.String()+" opens"), Object: from.status.NetNS})
		t.judge()
		if i := t.broken(); i >= 0 && t.Hops[i].Layer == layerProbe && errors.Is(err, syscall.ECONNREFUSED) {
			t.Verdict = fmt.Sprintf("the way is open, but the connection is refused by the backend: is %s listening on port %d?", to.Name, port)
		}
		return t, nil
	}
	t.judge()
	return t, nil
}

const layerProbe = "probe"

// maxObjects of the balancer are shown: a service may have thousands of backends.
const maxObjects = 8

// objects words what Explain found.
func objects(lines []string, err error) string {
	switch {
	case err != nil:
		return err.Error()
	case len(lines) == 0:
		return "no object for the VIP"
	case len(lines) > maxObjects:
		return fmt.Sprintf("%s; and %d more", strings.Join(lines[:maxObjects], "; "), len(lines)-maxObjects)
	}
	return strings.Join(lines, "; ")
}

func said(err error, fine string) string {
	if err != nil {
		return err.Error()
	}
	return fine
}

// find resolves the two names. The task must be on this node, for its packets
// cross this node's router in both directions.
func find(f Facts, taskRef, service string) (origin, netd.Service, error) {
	var from *netd.Endpoint
	networks := map[netd.NetworkID]bool{}
	for i, e := range f.Snapshot.Endpoints {
		if string(e.Task) == taskRef || e.Name == taskRef || strings.HasPrefix(e.Name, taskRef+".") || len(taskRef) >= 4 && strings.HasPrefix(string(e.Task), taskRef) {
			networks[e.Network] = true
			if from == nil || from.Leaving && !e.Leaving {
				from = &f.Snapshot.Endpoints[i]
			}
		}
	}
	if from == nil {
		return origin{}, netd.Service{}, netd.Errorf(netd.ErrNotFound, "no task %q is known on this node's networks; 'docker service ps SERVICE' lists names like web.1", taskRef)
	}
	if from.Node != f.ID {
		return origin{}, netd.Service{}, netd.Errorf(netd.ErrInvalid, "task %q runs on node %s: run netd trace there, its packets cross that node's router", taskRef, nodeName(f, from.Node))
	}
	for _, n := range f.Snapshot.Networks {
		if n.Ingress { // no name is resolved there
			delete(networks, n.ID)
		}
	}
	i := slices.IndexFunc(f.Snapshot.Services, func(s netd.Service) bool { return s.Name == service && networks[s.Network] })
	if i < 0 {
		return origin{}, netd.Service{}, netd.Errorf(netd.ErrNotFound, "no service %q on the networks of task %q; a task reaches only services that share a network with it", service, taskRef)
	}
	to := f.Snapshot.Services[i]
	o := origin{endpoint: *from}
	for _, e := range f.Snapshot.Endpoints {
		if e.Task == from.Task && e.Network == to.Network {
			o.endpoint = e
		}
	}
	for _, n := range f.Snapshot.Networks {
		if n.ID == to.Network {
			o.network = n
		}
	}
	for _, st := range f.Tasks {
		if st.ID == string(from.Task) {
			o.status = st
		}
	}
	return o, to, nil
}

func nodeName(f Facts, id netd.NodeID) string {
	for _, n := range f.Snapshot.Nodes {
		if n.ID == id {
			return n.Name
		}
	}
	return string(id)
}

func dnsHop(to netd.Service, answer []netip.Addr, err error) Hop {
	h := Hop{Layer: "dns", Object: "resolver " + netd.RouterAddr.String() + ":53"}
	switch {
	case err != nil:
		h.Text = err.Error()
	case to.VIP.IsValid() && !slices.Contains(answer, to.VIP):
		h.Text = fmt.Sprintf("%q → %v, which is not the VIP %s", to.Name, answer, to.VIP)
	default:
		h.OK, h.Text = true, fmt.Sprintf("%q → %v", to.Name, answer)
	}
	return h
}

// walk gives the hops between the name and the backends from what the kernel
// holds. Pure.
func walk(f Facts, k Kernel, from origin, to netd.Service) []Hop {
	i := slices.IndexFunc(k.Overlay.Networks, func(n vxlan.Network) bool { return n.VNI == from.network.VNI })
	if i < 0 {
		return []Hop{{Layer: "router", Text: "no router namespace for network " + from.network.Name, Object: "netns"}}
	}
	n := k.Overlay.Networks[i]
	hops := []Hop{linkHop(n, from)}
	backends := []balancer.Backend{}
	if to.VIP.IsValid() {
		local := slices.Contains(n.Addrs, to.VIP)
		text := fmt.Sprintf("%s is a local address of the router", to.VIP)
		if !local {
			text = fmt.Sprintf("%s is no local address of the router, so that nothing balances it", to.VIP)
		}
		hops = append(hops, Hop{OK: local, Layer: "vip", Text: text, Object: "lo in " + n.Router})
		hop, found := balancerHop(f, k, n.Router, to)
		hops, backends = append(hops, hop), found
	}
	for _, b := range backends {
		hops = append(hops, pathHop(f, n, b.Addr))
	}
	return hops
}

func linkHop(n vxlan.Network, from origin) Hop {
	h := Hop{Layer: "link", Object: n.Router}
	for _, p := range n.Ports {
		if p.Addr.Addr() == from.endpoint.Addr {
			h.OK = true
			h.Text = fmt.Sprintf("%s %s → router (source address checked, mtu %d)", p.Iface, p.Addr, n.MTU)
			h.Object = "veth " + p.Name + " in " + n.Router
			return h
		}
	}
	h.Text = fmt.Sprintf("no interface with %s ends in the router", from.endpoint.Addr)
	return h
}

func balancerHop(f Facts, k Kernel, router string, to netd.Service) (Hop, []balancer.Backend) {
	h := Hop{Layer: f.Balancer, Object: router}
	for _, r := range k.Balancer.Routers {
		if r.NetNS != router {
			continue
		}
		for _, s := range r.Services {
			if s.VIP != to.VIP {
				continue
			}
			texts := make([]string, 0, len(s.Backends))
			for _, b := range s.Backends {
				texts = append(texts, fmt.Sprintf("%s %s", b.Addr, b.State))
				h.OK = h.OK || b.State == balancer.Ready
			}
			h.Text = strings.Join(texts, " | ")
			if len(texts) == 0 {
				h.Text = "no backend: connections are refused; is a task of " + to.Name + " running and healthy?"
			}
			return h, s.Backends
		}
	}
	h.Text = fmt.Sprintf("no service for VIP %s", to.VIP)
	return h, nil
}

// pathHop explains how the router reaches one backend.
func pathHop(f Facts, n vxlan.Network, backend netip.Addr) Hop {
	for _, p := range n.Ports {
		if p.Addr.Addr() == backend {
			return Hop{OK: true, Layer: "local", Text: backend.String() + " is on this node", Object: "route dev " + p.Name + " in " + n.Router}
		}
	}
	h := Hop{Layer: "vxlan"}
	for _, r := range n.Remotes {
		if r.Addr != backend {
			continue
		}
		h.Object = fmt.Sprintf("route, neighbour and FDB entry of vx (vni %d) in %s", n.VNI, n.Router)
		name, alive := member(f, r.VTEP)
		peer := slices.IndexFunc(n.Peers, func(p vxlan.Peer) bool { return p.VTEP == r.VTEP })
		switch {
		case peer < 0:
			h.Text = fmt.Sprintf("%s via %s, but the kernel has no neighbour or FDB entry for it", backend, r.VTEP)
		case !alive:
			h.Text = fmt.Sprintf("%s via %s (%s), which does not answer gossip", backend, r.VTEP, name)
		default:
			h.OK = true
			h.Text = fmt.Sprintf("%s via %s (%s), its router is %s", backend, r.VTEP, name, netd.MAC(n.Peers[peer].MAC))
		}
		return h
	}
	h.Text, h.Object = fmt.Sprintf("no route to backend %s", backend), n.Router
	return h
}

func member(f Facts, vtep netip.Addr) (name string, alive bool) {
	for _, n := range f.Snapshot.Nodes {
		if n.Addr == vtep && f.View != nil {
			return n.Name, f.View.Members[n.ID].Alive
		}
	}
	return vtep.String(), false
}

// broken is the first hop that lets nothing through; -1 if all are open.
func (t *Trace) broken() int { return slices.IndexFunc(t.Hops, func(h Hop) bool { return !h.OK }) }

func (t *Trace) judge() {
	if i := t.broken(); i >= 0 {
		h := t.Hops[i]
		t.Verdict = fmt.Sprintf("packets end at hop %d (%s): %s.   look: netd drift, netd status", i+1, h.Layer, h.Text)
		return
	}
	t.OK, t.Verdict = true, "the way is open; replies cross the same router, which puts the VIP back as their source"
}

// Print writes t for a person, one line for each hop.
func (t Trace) Print(w io.Writer) {
	fmt.Fprintf(w, "%s → %s\n", t.From, t.To)
	for i, h := range t.Hops {
		mark := "ok  "
		if !h.OK {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%2d %s %-9s %s   [%s]\n", i+1, mark, h.Layer, h.Text, h.Object)
	}
	fmt.Fprintln(w, "verdict:", t.Verdict)
}
