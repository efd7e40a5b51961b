package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sys/unix"

	"netd"
	"netd/dispatch"
	"netd/netd/api"
	"netd/orchestrator/store"
	"netd/pki"
)

// Docker's own words, which clients look for (daemon/cluster/cluster.go).
const (
	textInSwarm    = `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`
	textEnded      = "this node's part in the swarm has ended: %v"
	textNoSwarm    = `This node is not part of a swarm`
	textNotManager = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	textIsWorker   = `This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.`
	textLeaveLast  = `You are attempting to leave the swarm on a node that is participating as a manager. Removing the last manager erases all current state of the swarm. Use ` + "`--force`" + ` to ignore this message. `
)

// startTimeout bounds how long a new manager may take to lead.
const startTimeout = 15 * time.Second

// defaultPool is where subnets are cut from unless init says otherwise.
var defaultPool = netip.MustParsePrefix("10.0.0.0/8")

// Status implements api.Local.
func (d *Daemon) Status() api.LocalStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := api.LocalStatus{NodeName: d.NodeName, Version: version, State: swarm.LocalNodeStateInactive}
	if d.member == nil {
		return s
	}
	id := d.member.id
	s.NodeID, s.NodeAddr, s.ClusterID, s.State = string(id.NodeID), id.Advertise.String(), id.ClusterID, swarm.LocalNodeStateActive
	if d.failed != nil {
		s.State, s.Error = swarm.LocalNodeStateError, d.failed.Error()
		return s
	}
	s.ControlAvailable = d.member.control != nil
	if a := d.member.assigned.Load(); a != nil {
		s.Managers = managerPeers(a)
	}
	return s
}

// managerPeers lists the managers with their nodes, which an assignment that was
// kept by an older netd does not name.
func managerPeers(a *dispatch.Assignment) []swarm.Peer {
	var peers []swarm.Peer
	for i, addr := range a.Managers {
		p := swarm.Peer{Addr: addr}
		if len(a.ManagerIDs) == len(a.Managers) {
			p.NodeID = string(a.ManagerIDs[i])
		}
		peers = append(peers, p)
	}
	return peers
}

// Control implements api.Local.
func (d *Daemon) Control() (api.Control, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.member == nil:
		return nil, netd.Errorf(netd.ErrUnavailable, textNotManager)
	case d.failed != nil:
		return nil, netd.Errorf(netd.ErrUnavailable, textEnded, d.failed)
	case d.member.control == nil:
		return nil, netd.Errorf(netd.ErrUnavailable, textIsWorker)
	}
	return d.member.control, nil
}

// current returns the membership, nil in no swarm.
func (d *Daemon) current() *member {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.member
}

// Init implements api.Local: it begins a swarm with this node as its manager.
func (d *Daemon) Init(ctx context.Context, r swarm.InitRequest) (string, error) {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.current() != nil {
		return "", netd.Errorf(netd.ErrUnavailable, textInSwarm)
	}
	if r.ForceNewCluster {
		return "", netd.Errorf(netd.ErrUnsupported, "--force-new-cluster is not supported yet: this node holds no swarm to recover")
	}
	id, err := d.newIdentity(r.ListenAddr, r.AdvertiseAddr, r.DataPathAddr)
	if err != nil {
		return "", err
	}
	ca, caKey, err := pki.NewCA(time.Now())
	if err != nil {
		return "", fmt.Errorf("make the root certificate: %w", err)
	}
	key, csr, err := pki.NewKey()
	if err != nil {
		return "", fmt.Errorf("make the node's key: %w", err)
	}
	id.NodeID, id.ClusterID, id.Role, id.CA = netd.NodeID(pki.NewID()), pki.NewID(), pki.Manager, ca.CertPEM
	id.Managers = []string{id.manager()}
	id.Certificate, err = ca.Sign(csr, pki.Subject{Node: id.NodeID, Role: pki.Manager, Cluster: id.ClusterID}, r.Spec.CAConfig.NodeCertExpiry, time.Now())
	if err != nil { // for a lifetime that is too short
		return "", netd.Errorf(netd.ErrInvalid, "sign the node's certificate: %w", err)
	}
	cluster, err := d.newCluster(r, id, ca, caKey)
	if err != nil {
		return "", err
	}
	found := func(ctx context.Context, m *member) error { return m.found(ctx, cluster, r.Availability) }
	return string(id.NodeID), d.enter(ctx, id, key, found)
}

// newIdentity resolves the addresses of a membership to be.
func (d *Daemon) newIdentity(listen, advertise, dataPath string) (*identity, error) {
	if advertise == "" {
		advertise = d.Advertise
	}
	bind, port, err := listenAddress(listen)
	if err != nil {
		return nil, err
	}
	addr, advertisedPort, err := advertised(advertise)
	if err != nil {
		return nil, err
	}
	if advertisedPort != 0 {
		port = advertisedPort
	}
	data, err := vtep(dataPath, addr)
	if err == nil {
		err = cmp.Or(checkOwn("advertise", addr), checkOwn("data path", data))
	}
	if err != nil {
		return nil, err
	}
	return &identity{Advertise: addr, DataPath: data, Listen: bind, Port: port, Boot: 1}, nil
}

func (d *Daemon) newCluster(r swarm.InitRequest, id *identity, ca pki.CA, caKey []byte) (store.Cluster, error) {
	gossipKey := make([]byte, 32)
	rand.Read(gossipKey) //nolint:errcheck // crypto/rand never fails since Go 1.24
	c := store.Cluster{
		ID: id.ClusterID, Spec: r.Spec, CACert: ca.CertPEM, CAKey: caKey, GossipKeys: [][]byte{gossipKey},
		DefaultAddrPool: r.DefaultAddrPool, SubnetSize: r.SubnetSize, DataPathPort: r.DataPathPort,
	}
	if len(c.DefaultAddrPool) == 0 {
		c.DefaultAddrPool = []netip.Prefix{defaultPool}
	}
	if c.SubnetSize == 0 {
		c.SubnetSize = 24
	}
	if c.DataPathPort == 0 {
		c.DataPathPort = uint32(d.DataPathPort)
	}
	var err, werr error
	c.JoinTokens.Worker, werr = pki.NewToken(ca)
	c.JoinTokens.Manager, err = pki.NewToken(ca)
	return c, errors.Join(werr, err)
}

// found writes the swarm's first objects once this manager leads.
func (m *member) found(ctx context.Context, c store.Cluster, availability swarm.NodeAvailability) error {
	if err := m.store.Bootstrap(); err != nil {
		return fmt.Errorf("begin the raft log: %w", err)
	}
	changed := m.store.Watch(ctx)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !m.store.Leading() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait to lead: %w", context.Cause(ctx))
		case <-changed:
		case <-tick.C:
		}
	}
	if availability == "" {
		availability = swarm.NodeAvailabilityActive
	}
	return m.control.Init(ctx, c, swarm.Node{
		ID:            string(m.id.NodeID),
		Spec:          swarm.NodeSpec{Role: swarm.NodeRoleManager, Availability: availability},
		Description:   *description(m.options, m.id),
		Status:        swarm.NodeStatus{State: swarm.NodeStateUnknown, Addr: m.id.DataPath.String()},
		ManagerStatus: &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: m.id.manager()},
	})
}

// Join implements api.Local: it enters a swarm that another node began.
func (d *Daemon) Join(ctx context.Context, r swarm.JoinRequest) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.current() != nil {
		return netd.Errorf(netd.ErrUnavailable, textInSwarm)
	}
	if len(r.RemoteAddrs) == 0 {
		return netd.Errorf(netd.ErrInvalid, "at least 1 RemoteAddr is required to join")
	}
	id, err := d.newIdentity(r.ListenAddr, r.AdvertiseAddr, r.DataPathAddr)
	if err != nil {
		return err
	}
	key, csr, err := pki.NewKey()
	if err != nil {
		return fmt.Errorf("make the node's key: %w", err)
	}
	request := dispatch.JoinRequest{
		Token: r.JoinToken, CSR: csr, Description: *description(d.options, id), Addr: id.DataPath,
		Availability: r.Availability, ListenAddr: id.manager(),
	}
	reply, err := askToJoin(ctx, r.RemoteAddrs, request)
	if err != nil {
		return err
	}
	id.NodeID, id.ClusterID, id.Managers = reply.NodeID, reply.ClusterID, reply.Managers
	id.Role, id.CA, id.Certificate = pki.Worker, reply.CA, reply.Certificate
	return d.enter(ctx, id, key, nil)
}

// enter keeps the identity and begins the membership. What fails is undone.
func (d *Daemon) enter(ctx context.Context, id *identity, key []byte, found func(context.Context, *member) error) error {
	err := errors.Join(d.files.saveKey(key), d.files.save(id))
	if err == nil {
		err = d.begin(ctx, id, key, found)
	}
	if err != nil {
		if m := d.current(); m != nil {
			m.stop(err)
			d.set(nil, nil)
		}
		return errors.Join(err, d.files.remove())
	}
	return nil
}

// Leave implements api.Local: the node stops its tasks, takes everything of ours
// out of its kernel, and forgets the swarm.
func (d *Daemon) Leave(ctx context.Context, force bool) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	m := d.current()
	if m == nil {
		return netd.Errorf(netd.ErrUnavailable, textNoSwarm)
	}
	if m.control != nil && !force {
		return netd.Errorf(netd.ErrUnavailable, textLeaveLast)
	}
	m.farewell(ctx)
	m.stop(errLeft)
	if err := clearHost(context.WithoutCancel(ctx), d.options, d.log); err != nil {
		err = fmt.Errorf("leave the swarm: %w; run 'docker swarm leave --force' again, or stop the daemon and run 'netd cleanup'", err)
		d.set(m, err)
		return err
	}
	if err := d.files.remove(); err != nil {
		err = fmt.Errorf("forget the swarm: %w; run 'docker swarm leave --force' again", err)
		d.set(m, err)
		return err
	}
	d.set(nil, nil)
	return nil
}

// description is what this host tells the managers of itself.
func description(o options, id *identity) *swarm.NodeDescription {
	var info unix.Sysinfo_t
	memory := int64(0)
	if unix.Sysinfo(&info) == nil {
		memory = int64(info.Totalram) * int64(info.Unit)
	}
	return &swarm.NodeDescription{
		Hostname:  o.NodeName,
		Platform:  swarm.Platform{Architecture: architecture(), OS: runtime.GOOS},
		Resources: swarm.Resources{NanoCPUs: int64(runtime.NumCPU()) * 1e9, MemoryBytes: memory},
		Engine:    swarm.EngineDescription{EngineVersion: version},
		TLSInfo:   swarm.TLSInfo{TrustRoot: string(id.CA)},
	}
}

// architecture is the machine's name as uname and Docker give it.
func architecture() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}
