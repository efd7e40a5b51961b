package api

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"netd"
)

func (s *server) networkRoutes() {
	s.handle("GET /networks", s.listNetworks)
	s.handle("POST /networks/create", s.createNetwork)
	s.handle("POST /networks/prune", s.pruneNetworks)
	s.handle("GET /networks/{id}", s.getNetwork)
	s.handle("DELETE /networks/{id}", s.managed(removeNetwork))
	s.handle("POST /networks/{id}/connect", s.noContainers("connect a container to a network"))
	s.handle("POST /networks/{id}/disconnect", s.noContainers("disconnect a container from a network"))
}

// listNetworks answers with the swarm's networks, and on a node that is no
// manager with none: Docker lists there what the node itself has.
func (s *server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := networkFilters(r)
	if err != nil {
		return err
	}
	out := []network.Inspect{}
	c, err := s.Local.Control()
	if err != nil && !errors.Is(err, netd.ErrUnavailable) {
		return err
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		if out, err = f.list(ctx, c); err != nil {
			return err
		}
	}
	if versionOf(r) < 28 {
		return writeJSON(w, http.StatusOK, out)
	}
	summaries := make([]network.Summary, len(out))
	for i, n := range out {
		summaries[i] = network.Summary{Network: n.Network}
	}
	return writeJSON(w, http.StatusOK, summaries)
}

type networkFilter struct {
	filters
	dangling, byUse bool
}

func networkFilters(r *http.Request) (networkFilter, error) {
	f, err := readFilters(r, "driver", "id", "label", "name", "scope", "type", "dangling", "idOrName")
	if err != nil {
		return networkFilter{}, err
	}
	for _, value := range f["type"] {
		if value != "custom" && value != "builtin" {
			return networkFilter{}, netd.Errorf(netd.ErrInvalid, "invalid filter: 'type'='%s'", value)
		}
	}
	dangling, byUse, err := f.flag("dangling")
	return networkFilter{filters: f, dangling: dangling, byUse: byUse}, err
}

func (f networkFilter) list(ctx context.Context, c Control) ([]network.Inspect, error) {
	networks, err := c.ListNetworks(ctx)
	if err != nil {
		return nil, err
	}
	var used map[string]bool
	if f.byUse {
		if used, err = usedNetworks(ctx, c); err != nil {
			return nil, err
		}
	}
	out := []network.Inspect{}
	for _, swarmNet := range networks {
		n := shownNetwork(swarmNet)
		if f.byUse && f.dangling == (used[n.ID] || n.Ingress) {
			continue
		}
		if f.exact("driver", n.Driver) && f.match("name", n.Name) && f.match("id", n.ID) && f.labels("label", n.Labels) &&
			f.exact("scope", n.Scope) && f.exact("type", "custom") &&
			(len(f.filters["idOrName"]) == 0 || f.exact("idOrName", n.Name) || f.prefix("idOrName", n.ID)) {
			out = append(out, network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}})
		}
	}
	return out, nil
}

// usedNetworks are those that a service wants.
func usedNetworks(ctx context.Context, c ServiceControl) (map[string]bool, error) {
	services, err := c.ListServices(ctx)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, s := range services {
		for _, n := range s.Spec.TaskTemplate.Networks {
			used[n.Target] = true
		}
	}
	return used, nil
}

// shownNetwork gives a network of the swarm the shape in which the API shows
// networks of any kind.
func shownNetwork(n swarm.Network) network.Network {
	out := network.Network{
		Name: n.Spec.Name, ID: n.ID, Created: n.CreatedAt, Scope: "swarm", Driver: n.DriverState.Name,
		EnableIPv4: true, EnableIPv6: n.Spec.IPv6Enabled, Internal: n.Spec.Internal, Attachable: n.Spec.Attachable,
		Ingress: n.Spec.Ingress, Options: n.DriverState.Options, Labels: orNone(n.Spec.Labels),
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
	}
	if d := n.Spec.DriverConfiguration; d != nil {
		out.Driver = cmp.Or(out.Driver, d.Name)
		if out.Options == nil {
			out.Options = d.Options
		}
	}
	out.Driver = cmp.Or(out.Driver, "overlay")
	out.Options = orNone(out.Options)
	if n.Spec.ConfigFrom != nil {
		out.ConfigFrom = *n.Spec.ConfigFrom
	}
	if ipam := cmp.Or(n.IPAMOptions, n.Spec.IPAMOptions); ipam != nil {
		out.IPAM.Driver = cmp.Or(ipam.Driver.Name, out.IPAM.Driver)
		out.IPAM.Options = ipam.Driver.Options
		for _, c := range ipam.Configs {
			out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: c.Subnet, IPRange: c.Range, Gateway: c.Gateway})
		}
	}
	return out
}

// getNetwork finds a network by reference. Where there is no manager to ask there
// is no network either, and the answer is 404: docker inspect goes on to look for
// other kinds of object then.
func (s *server) getNetwork(w http.ResponseWriter, r *http.Request) error {
	verbose, err := boolParam(r.URL.Query(), "verbose")
	if err != nil {
		return err
	}
	ref := r.PathValue("id")
	scope := r.URL.Query().Get("scope")
	c, err := s.Local.Control()
	switch {
	case err != nil && errors.Is(err, netd.ErrUnavailable):
		return netd.Errorf(netd.ErrNotFound, "network %s not found on this node: %w", ref, err)
	case err != nil:
		return err
	case scope != "" && scope != "swarm":
		return netd.Errorf(netd.ErrNotFound, "network %s not found", ref)
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	n, err := c.GetNetwork(ctx, ref)
	if err != nil {
		return err
	}
	out := network.Inspect{Network: shownNetwork(n), Containers: map[string]network.EndpointResource{}}
	if err := s.fillNetwork(ctx, c, &out, verbose); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

// fillNetwork adds the endpoints of this node, and if verbose each service with
// all of its tasks and the nodes that they are on.
func (s *server) fillNetwork(ctx context.Context, c Control, n *network.Inspect, verbose bool) error {
	tasks, err := c.ListTasks(ctx)
	if err != nil {
		return err
	}
	services, err := servicesByID(ctx, c)
	if err != nil {
		return err
	}
	self := s.Local.Status().NodeID
	onNetwork := slices.DeleteFunc(slices.Clone(tasks), func(t swarm.Task) bool {
		return t.Status.State != swarm.TaskStateRunning || !addressOn(t, n.ID).IsValid()
	})
	for _, t := range onNetwork {
		if t.NodeID == self {
			n.Containers[containerID(t)] = network.EndpointResource{
				Name: taskName(t, services[t.ServiceID]), EndpointID: t.ID, IPv4Address: addressOn(t, n.ID),
			}
		}
	}
	if !verbose {
		return nil
	}
	nodes, err := c.ListNodes(ctx)
	if err != nil {
		return err
	}
	addServices(n, onNetwork, services, nodes)
	return nil
}

// addServices fills what docker network inspect --verbose shows.
func addServices(n *network.Inspect, tasks []swarm.Task, services map[string]swarm.Service, nodes []swarm.Node) {
	n.Services = map[string]network.ServiceInfo{}
	for _, svc := range services {
		for _, vip := range svc.Endpoint.VirtualIPs {
			if vip.NetworkID == n.ID {
				n.Services[svc.Spec.Name] = network.ServiceInfo{VIP: vip.Addr.Addr(), Ports: []string{}, Tasks: []network.Task{}}
			}
		}
	}
	addrs := map[string]string{}
	for _, node := range nodes {
		addrs[node.ID] = node.Status.Addr
	}
	holds := map[string]bool{}
	for _, t := range tasks {
		name := services[t.ServiceID].Spec.Name
		info := n.Services[name]
		info.Ports = orEmpty(info.Ports)
		info.Tasks = append(info.Tasks, network.Task{
			Name: taskName(t, services[t.ServiceID]), EndpointID: t.ID, EndpointIP: addressOn(t, n.ID).Addr(),
			Info: map[string]string{"Host IP": addrs[t.NodeID]},
		})
		n.Services[name] = info
		holds[t.NodeID] = true
	}
	for _, node := range nodes {
		if ip, err := netip.ParseAddr(node.Status.Addr); err == nil && holds[node.ID] {
			n.Peers = append(n.Peers, network.PeerInfo{Name: node.ID, IP: ip})
		}
	}
}

// addressOn returns the task's address on the network, or the zero Prefix.
func addressOn(t swarm.Task, networkID string) netip.Prefix {
	for _, a := range t.NetworksAttachments {
		if a.Network.ID == networkID && len(a.Addresses) > 0 {
			return a.Addresses[0]
		}
	}
	return netip.Prefix{}
}

func containerID(t swarm.Task) string {
	if s := t.Status.ContainerStatus; s != nil && s.ContainerID != "" {
		return s.ContainerID
	}
	return t.ID
}

func (s *server) createNetwork(w http.ResponseWriter, r *http.Request) error {
	var req network.CreateRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if versionOf(r) < 48 {
		req.EnableIPv4 = nil
	}
	if err := checkNetwork(req); err != nil {
		return err
	}
	return s.managed(func(w http.ResponseWriter, r *http.Request, c Control) error {
		id, err := c.CreateNetwork(r.Context(), req)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: id})
	})(w, r)
}

// checkNetwork refuses what netd never makes: every kind but an overlay.
func checkNetwork(req network.CreateRequest) error {
	switch req.Name {
	case network.NetworkBridge, network.NetworkHost, network.NetworkNone, network.NetworkDefault:
		return netd.Errorf(netd.ErrForbidden, "operation is not permitted on predefined %s network", req.Name)
	}
	switch {
	case req.Driver != "overlay":
		return netd.Errorf(netd.ErrUnsupported, "network %q: driver %q needs a Docker Engine, and none is attached to this node; netd makes overlay networks: docker network create --driver overlay %s",
			req.Name, cmp.Or(req.Driver, "bridge"), req.Name)
	case req.Scope != "" && req.Scope != "swarm":
		return netd.Errorf(netd.ErrInvalid, "network %q: an overlay network has scope swarm, not %q", req.Name, req.Scope)
	case req.ConfigOnly || req.ConfigFrom != nil && req.ConfigFrom.Network != "":
		return netd.Errorf(netd.ErrUnsupported, "network %q: config-only networks are not supported; give the subnet and options to the network itself", req.Name)
	case req.EnableIPv4 != nil && !*req.EnableIPv4:
		return netd.Errorf(netd.ErrUnsupported, "network %q: an overlay network without IPv4 is not supported", req.Name)
	}
	return nil
}

func removeNetwork(w http.ResponseWriter, r *http.Request, c Control) error {
	if err := c.RemoveNetwork(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// pruneNetworks removes every network that nothing uses. One that cannot be
// removed just then stays, as in Docker.
func (s *server) pruneNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := readFilters(r, "until", "label", "label!")
	if err != nil {
		return err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return err
	}
	report := network.PruneReport{NetworksDeleted: []string{}}
	c, err := s.Local.Control()
	if err != nil {
		return writeJSON(w, http.StatusOK, report)
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	unused, err := networkFilter{dangling: true, byUse: true}.list(ctx, c)
	if err != nil {
		return err
	}
	for _, n := range unused {
		excluded := slices.ContainsFunc(f["label!"], func(l string) bool { return hasLabel(n.Labels, l) })
		if excluded || !f.labels("label", n.Labels) || !until.IsZero() && n.Created.After(until) {
			continue
		}
		if err := c.RemoveNetwork(ctx, n.ID); err != nil {
			s.Log.InfoContext(ctx, "network not pruned", "network", n.Name, "err", err)
			continue
		}
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	return writeJSON(w, http.StatusOK, report)
}
