package api_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/netd/api"
)

// fake is a whole swarm in memory: small, but it keeps Docker's rules wherever the
// API depends on them. Tasks move one state on each time that tasks are listed.
type fake struct {
	mu       sync.Mutex
	seq      int
	index    uint64
	nodeID   string
	role     swarm.NodeRole // empty while in no swarm
	cluster  swarm.Swarm
	nodes    []swarm.Node
	networks []swarm.Network
	services []swarm.Service
	tasks    []swarm.Task
	// failure, if set, is what every operation answers.
	failure error
	// restless: a service's version grows as soon as it was read.
	restless bool
}

type swarmService = swarm.Service

// newFake returns a node that is in no swarm.
func newFake() *fake { return &fake{} }

// newSwarm returns the manager of a swarm with two workers.
func newSwarm(t *testing.T) *fake {
	t.Helper()
	f := newFake()
	if _, err := f.Init(t.Context(), swarm.InitRequest{ListenAddr: "0.0.0.0:2377"}); err != nil {
		t.Fatal(err)
	}
	f.addNode("n2", swarm.NodeRoleWorker)
	f.addNode("n3", swarm.NodeRoleWorker)
	return f
}

// handler serves the fake, with netd/echo as an image of its own.
func handler(f *fake, log io.Writer) http.Handler {
	return api.NewHandler(api.Config{
		Local: f, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Images: []string{"netd/echo"},
		Extra: map[string]http.Handler{"/netd/v1/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.URL.Path)
		})},
	})
}

// id makes a 25-character ID, whose prefixes differ.
func (f *fake) id(kind string) string {
	f.seq++
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", kind, f.seq))
	return fmt.Sprintf("%x", sum)[:25]
}

func (f *fake) meta(created time.Time) swarm.Meta {
	f.index++
	if created.IsZero() {
		created = time.Now()
	}
	return swarm.Meta{Version: swarm.Version{Index: f.index}, CreatedAt: created, UpdatedAt: time.Now()}
}

func (f *fake) addNode(name string, role swarm.NodeRole) string {
	n := swarm.Node{
		ID: f.id("node"), Meta: f.meta(time.Time{}),
		Spec: swarm.NodeSpec{Role: role, Availability: swarm.NodeAvailabilityActive},
		Description: swarm.NodeDescription{
			Hostname: name, Platform: swarm.Platform{Architecture: "x86_64", OS: "linux"},
			Resources: swarm.Resources{NanoCPUs: 2e9, MemoryBytes: 4 << 30}, Engine: swarm.EngineDescription{EngineVersion: "0.1.0"},
			TLSInfo: swarm.TLSInfo{TrustRoot: "-----BEGIN CERTIFICATE-----\n", CertIssuerSubject: []byte("s"), CertIssuerPublicKey: []byte("k")},
		},
		Status: swarm.NodeStatus{State: swarm.NodeStateReady, Addr: fmt.Sprintf("10.99.0.%d", len(f.nodes)+1)},
	}
	if role == swarm.NodeRoleManager {
		n.ManagerStatus = &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: n.Status.Addr + ":2377"}
	}
	f.nodes = append(f.nodes, n)
	return n.ID
}

func (f *fake) Status() api.LocalStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := api.LocalStatus{NodeName: "n1", Version: "0.1.0", State: swarm.LocalNodeStateInactive}
	if f.role != "" {
		st.NodeID, st.NodeAddr, st.State = f.nodeID, "10.99.0.1", swarm.LocalNodeStateActive
		st.ControlAvailable = f.role == swarm.NodeRoleManager
		st.Managers = []swarm.Peer{{NodeID: f.nodeID, Addr: "10.99.0.1:2377"}}
		st.ClusterID = f.cluster.ID
	}
	return st
}

func (f *fake) Control() (api.Control, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch f.role {
	case "":
		return nil, netd.Errorf(netd.ErrUnavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	case swarm.NodeRoleWorker:
		return nil, netd.Errorf(netd.ErrUnavailable, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	}
	return f, nil
}

func (f *fake) Init(_ context.Context, req swarm.InitRequest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.role != "" {
		return "", netd.Errorf(netd.ErrUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	}
	f.role = swarm.NodeRoleManager
	f.nodeID = f.addNode("n1", f.role)
	f.cluster = swarm.Swarm{
		ClusterInfo: swarm.ClusterInfo{
			ID: f.id("cluster"), Meta: f.meta(time.Time{}), Spec: req.Spec, DataPathPort: 4789, SubnetSize: 24,
			DefaultAddrPool: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, TLSInfo: f.nodes[0].Description.TLSInfo,
		},
		JoinTokens: swarm.JoinTokens{Worker: "SWMTKN-1-root-worker1", Manager: "SWMTKN-1-root-manager1"},
	}
	f.cluster.Spec.CAConfig.SigningCAKey = "secret key"
	f.addNetwork(network.CreateRequest{Name: "ingress", Driver: "overlay", Ingress: true})
	return f.nodeID, nil
}

func (f *fake) Join(_ context.Context, req swarm.JoinRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.role != "" {
		return netd.Errorf(netd.ErrUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	}
	if req.JoinToken != "SWMTKN-1-root-worker1" {
		return netd.Errorf(netd.ErrInvalid, "A valid join token is necessary to join this cluster")
	}
	f.role = swarm.NodeRoleWorker
	f.nodeID = f.addNode("n1", f.role)
	return nil
}

func (f *fake) Leave(_ context.Context, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.role == "":
		return netd.Errorf(netd.ErrUnavailable, "This node is not part of a swarm")
	case f.role == swarm.NodeRoleManager && !force:
		return netd.Errorf(netd.ErrUnavailable, "You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
	}
	f.role, f.nodes, f.networks, f.services, f.tasks = "", nil, nil, nil, nil
	return nil
}

func (f *fake) Swarm(context.Context) (swarm.Swarm, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cluster, f.failure
}

func (f *fake) UpdateSwarm(_ context.Context, version uint64, spec swarm.Spec, rotateWorker, rotateManager bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if version != f.cluster.Version.Index {
		return outOfSequence()
	}
	f.cluster.Spec, f.cluster.Meta = spec, f.meta(f.cluster.CreatedAt)
	if rotateWorker {
		f.cluster.JoinTokens.Worker += "x"
	}
	if rotateManager {
		f.cluster.JoinTokens.Manager += "x"
	}
	return f.failure
}

func outOfSequence() error {
	return netd.Errorf(netd.ErrOutOfSequence, "rpc error: code = Unknown desc = update out of sequence")
}

// find looks a reference up as the managers do.
func find[T any](kind, ref string, list []T, id, name func(T) string) (int, error) {
	if i := slices.IndexFunc(list, func(v T) bool { return id(v) == ref }); i >= 0 {
		return i, nil
	}
	if i := slices.IndexFunc(list, func(v T) bool { return name(v) == ref }); i >= 0 {
		return i, nil
	}
	found := []int{}
	for i, v := range list {
		if strings.HasPrefix(id(v), ref) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 0:
		return 0, netd.Errorf(netd.ErrNotFound, "%s %s not found", kind, ref)
	case 1:
		return found[0], nil
	}
	return 0, netd.Errorf(netd.ErrInvalid, "%s %s is ambiguous (%d matches found)", kind, ref, len(found))
}

func (f *fake) findNode(ref string) (int, error) {
	return find("node", ref, f.nodes, func(n swarm.Node) string { return n.ID }, func(n swarm.Node) string { return n.Description.Hostname })
}

func (f *fake) ListNodes(context.Context) ([]swarm.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.nodes), f.failure
}

func (f *fake) GetNode(_ context.Context, ref string) (swarm.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findNode(ref)
	if err != nil {
		return swarm.Node{}, err
	}
	return f.nodes[i], f.failure
}

func (f *fake) UpdateNode(_ context.Context, ref string, version uint64, spec swarm.NodeSpec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findNode(ref)
	switch {
	case err != nil:
		return err
	case f.nodes[i].Version.Index != version:
		return outOfSequence()
	}
	f.nodes[i].Spec, f.nodes[i].Meta = spec, f.meta(f.nodes[i].CreatedAt)
	return f.failure
}

func (f *fake) RemoveNode(_ context.Context, ref string, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findNode(ref)
	switch {
	case err != nil:
		return err
	case f.nodes[i].ManagerStatus != nil:
		return netd.Errorf(netd.ErrInvalid, "rpc error: code = FailedPrecondition desc = node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", f.nodes[i].ID)
	case f.nodes[i].Status.State != swarm.NodeStateDown && !force:
		return netd.Errorf(netd.ErrInvalid, "rpc error: code = FailedPrecondition desc = node %s is not down and can't be removed", f.nodes[i].ID)
	}
	f.nodes = slices.Delete(f.nodes, i, i+1)
	return f.failure
}

func (f *fake) findNetwork(ref string) (int, error) {
	return find("network", ref, f.networks, func(n swarm.Network) string { return n.ID }, func(n swarm.Network) string { return n.Spec.Name })
}

func (f *fake) ListNetworks(context.Context) ([]swarm.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.networks), f.failure
}

func (f *fake) GetNetwork(_ context.Context, ref string) (swarm.Network, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findNetwork(ref)
	if err != nil {
		return swarm.Network{}, err
	}
	return f.networks[i], f.failure
}

func (f *fake) CreateNetwork(_ context.Context, req network.CreateRequest) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return "", f.failure
	}
	if req.Name == "" {
		return "", netd.Errorf(netd.ErrInvalid, "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component")
	}
	if _, err := f.findNetwork(req.Name); err == nil {
		return "", netd.Errorf(netd.ErrExists, "network with name %s already exists", req.Name)
	}
	return f.addNetwork(req), nil
}

func (f *fake) addNetwork(req network.CreateRequest) string {
	n := swarm.Network{ID: f.id("network"), Meta: f.meta(time.Time{}), Spec: swarm.NetworkSpec{
		Annotations: swarm.Annotations{Name: req.Name, Labels: req.Labels}, Attachable: req.Attachable, Internal: req.Internal, Ingress: req.Ingress,
		DriverConfiguration: &swarm.Driver{Name: req.Driver, Options: req.Options}, Scope: "swarm",
	}}
	k := byte(len(f.networks))
	n.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}, Configs: []swarm.IPAMConfig{{
		Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, k, 0}), 24), Gateway: netip.AddrFrom4([4]byte{10, 0, k, 1}),
	}}}
	n.DriverState = swarm.Driver{Name: "overlay", Options: map[string]string{"com.docker.network.driver.overlay.vxlanid_list": fmt.Sprint(4096 + int(k))}}
	f.networks = append(f.networks, n)
	return n.ID
}

func (f *fake) RemoveNetwork(_ context.Context, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findNetwork(ref)
	if err != nil {
		return err
	}
	for _, s := range f.services {
		for _, n := range s.Spec.TaskTemplate.Networks {
			if n.Target == f.networks[i].ID {
				return netd.Errorf(netd.ErrInvalid, "rpc error: code = FailedPrecondition desc = network %s is in use by service %s", n.Target, s.ID)
			}
		}
	}
	f.networks = slices.Delete(f.networks, i, i+1)
	return f.failure
}
