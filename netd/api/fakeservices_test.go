package api_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

var serviceName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

func (f *fake) findService(ref string) (int, error) {
	return find("service", ref, f.services, func(s swarm.Service) string { return s.ID }, func(s swarm.Service) string { return s.Spec.Name })
}

func (f *fake) ListServices(context.Context) ([]swarm.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.services), f.failure
}

func (f *fake) ServiceStatuses(context.Context) (map[string]swarm.ServiceStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]swarm.ServiceStatus{}
	for _, s := range f.services {
		st := swarm.ServiceStatus{DesiredTasks: uint64(len(f.slots(s)))}
		for _, t := range f.tasks {
			if t.ServiceID == s.ID && t.Status.State == swarm.TaskStateRunning && t.DesiredState == swarm.TaskStateRunning {
				st.RunningTasks++
			}
		}
		out[s.ID] = st
	}
	return out, f.failure
}

func (f *fake) GetService(_ context.Context, ref string, insertDefaults bool) (swarm.Service, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findService(ref)
	if err != nil {
		return swarm.Service{}, err
	}
	s := f.services[i]
	if f.restless {
		f.services[i].Meta = f.meta(s.CreatedAt)
	}
	if insertDefaults && s.Spec.UpdateConfig == nil {
		s.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, FailureAction: "pause", Monitor: 5 * time.Second, Order: "stop-first"}
	}
	return s, f.failure
}

// accept checks a spec as far as the tests of the API need it, and gives its
// networks by ID.
func (f *fake) accept(spec *swarm.ServiceSpec) error {
	switch {
	case !serviceName.MatchString(spec.Name):
		return netd.Errorf(netd.ErrInvalid, "rpc error: code = InvalidArgument desc = name must be valid as a DNS name component")
	case spec.TaskTemplate.ContainerSpec == nil || spec.TaskTemplate.ContainerSpec.Image == "":
		return netd.Errorf(netd.ErrInvalid, "rpc error: code = InvalidArgument desc = ContainerSpec: image reference must be provided")
	case spec.Mode.ReplicatedJob != nil || spec.Mode.GlobalJob != nil:
		return netd.Errorf(netd.ErrUnsupported, "jobs are not supported")
	}
	if spec.EndpointSpec != nil {
		for _, p := range spec.EndpointSpec.Ports {
			if p.TargetPort == 0 || p.TargetPort > 65535 || p.PublishedPort > 65535 {
				return netd.Errorf(netd.ErrInvalid, "rpc error: code = InvalidArgument desc = EndpointSpec: port out of range")
			}
		}
	}
	nets := slices.Clone(spec.TaskTemplate.Networks)
	for k, n := range nets {
		i, err := f.findNetwork(n.Target)
		if err != nil {
			return err
		}
		nets[k].Target = f.networks[i].ID
	}
	spec.TaskTemplate.Networks = nets
	if spec.Mode.Global == nil && (spec.Mode.Replicated == nil || spec.Mode.Replicated.Replicas == nil) {
		one := uint64(1)
		spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &one}
	}
	return nil
}

func (f *fake) CreateService(_ context.Context, spec swarm.ServiceSpec) (string, []string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return "", nil, f.failure
	}
	if err := f.accept(&spec); err != nil {
		return "", nil, err
	}
	if _, err := f.findService(spec.Name); err == nil {
		return "", nil, netd.Errorf(netd.ErrExists, "rpc error: code = AlreadyExists desc = name conflicts with an existing object: service %s already exists", spec.Name)
	}
	s := swarm.Service{ID: f.id("service"), Meta: f.meta(time.Time{}), Spec: spec}
	f.endpoint(&s)
	f.services = append(f.services, s)
	f.reconcile(&f.services[len(f.services)-1])
	return s.ID, nil, nil
}

func (f *fake) endpoint(s *swarm.Service) {
	s.Endpoint = swarm.Endpoint{}
	if s.Spec.EndpointSpec != nil {
		s.Endpoint.Spec, s.Endpoint.Ports = *s.Spec.EndpointSpec, slices.Clone(s.Spec.EndpointSpec.Ports)
	}
	for _, n := range s.Spec.TaskTemplate.Networks {
		i, _ := f.findNetwork(n.Target)
		subnet := f.networks[i].IPAMOptions.Configs[0].Subnet
		s.Endpoint.VirtualIPs = append(s.Endpoint.VirtualIPs, swarm.EndpointVirtualIP{NetworkID: n.Target, Addr: netip.PrefixFrom(subnet.Addr().Next().Next(), 24)})
	}
}

func (f *fake) UpdateService(_ context.Context, ref string, version uint64, spec swarm.ServiceSpec, rollback bool) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findService(ref)
	if err != nil {
		return nil, err
	}
	s := &f.services[i]
	state := swarm.UpdateStateUpdating
	switch {
	case s.Version.Index != version:
		return nil, outOfSequence()
	case rollback && s.PreviousSpec == nil:
		return nil, netd.Errorf(netd.ErrInvalid, "rpc error: code = FailedPrecondition desc = service %s does not have a previous spec", s.ID)
	case rollback:
		spec, state = *s.PreviousSpec, swarm.UpdateStateRollbackStarted
	}
	if err := f.accept(&spec); err != nil {
		return nil, err
	}
	if spec.Name != s.Spec.Name {
		return nil, netd.Errorf(netd.ErrUnsupported, "rpc error: code = Unimplemented desc = renaming services is not supported")
	}
	previous, now := s.Spec, time.Now()
	s.PreviousSpec, s.Spec, s.Meta = &previous, spec, f.meta(s.CreatedAt)
	s.UpdateStatus = &swarm.UpdateStatus{State: state, StartedAt: &now, Message: "update in progress"}
	f.endpoint(s)
	f.reconcile(s)
	return nil, f.failure
}

func (f *fake) RemoveService(_ context.Context, ref string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findService(ref)
	if err != nil {
		return err
	}
	id := f.services[i].ID
	f.services = slices.Delete(f.services, i, i+1)
	f.tasks = slices.DeleteFunc(f.tasks, func(t swarm.Task) bool { return t.ServiceID == id })
	return f.failure
}

// slot is where a task is wanted: a number, or a node in mode global.
type slot struct {
	number int
	node   string
}

func (f *fake) slots(s swarm.Service) []slot {
	var out []slot
	if s.Spec.Mode.Global != nil {
		for _, n := range f.nodes {
			out = append(out, slot{node: n.ID})
		}
		return out
	}
	for i := range int(*s.Spec.Mode.Replicated.Replicas) {
		out = append(out, slot{number: i + 1, node: f.nodes[i%len(f.nodes)].ID})
	}
	return out
}

func (f *fake) reconcile(s *swarm.Service) {
	want := f.slots(*s)
	for i := range f.tasks {
		t := &f.tasks[i]
		if t.ServiceID != s.ID || t.DesiredState != swarm.TaskStateRunning {
			continue
		}
		at := slices.IndexFunc(want, func(w slot) bool { return w.number == t.Slot && (w.number != 0 || w.node == t.NodeID) })
		if at < 0 || !upToDate(*t, *s) {
			t.DesiredState = swarm.TaskStateShutdown
			continue
		}
		want = slices.Delete(want, at, at+1)
	}
	for _, w := range want {
		t := swarm.Task{
			ID: f.id("task"), Meta: f.meta(time.Time{}), Spec: s.Spec.TaskTemplate, ServiceID: s.ID, Slot: w.number, NodeID: w.node,
			Status: swarm.TaskStatus{Timestamp: time.Now(), State: swarm.TaskStateNew, Message: "created"}, DesiredState: swarm.TaskStateRunning,
		}
		for _, vip := range s.Endpoint.VirtualIPs {
			i, _ := f.findNetwork(vip.NetworkID)
			addr := vip.Addr.Addr().As4()
			addr[3] = byte(10 + len(f.tasks))
			t.NetworksAttachments = append(t.NetworksAttachments, swarm.NetworkAttachment{
				Network: f.networks[i], Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(addr), 24)},
			})
		}
		f.tasks = append(f.tasks, t)
	}
}

func upToDate(t swarm.Task, s swarm.Service) bool {
	a, _ := json.Marshal(t.Spec)
	b, _ := json.Marshal(s.Spec.TaskTemplate)
	return string(a) == string(b)
}

// step moves every task one state on.
func (f *fake) step() {
	next := map[swarm.TaskState]swarm.TaskState{
		swarm.TaskStateNew: swarm.TaskStateAssigned, swarm.TaskStateAssigned: swarm.TaskStatePreparing,
		swarm.TaskStatePreparing: swarm.TaskStateRunning,
	}
	for i := range f.tasks {
		t := &f.tasks[i]
		state := next[t.Status.State]
		if t.DesiredState == swarm.TaskStateShutdown {
			state = swarm.TaskStateShutdown
		}
		if state != "" && state != t.Status.State {
			t.Status = swarm.TaskStatus{Timestamp: time.Now(), State: state, Message: string(state), ContainerStatus: &swarm.ContainerStatus{ContainerID: "c" + t.ID, PID: 100 + i}}
		}
	}
	for i := range f.services {
		s := &f.services[i]
		if s.UpdateStatus == nil || s.UpdateStatus.CompletedAt != nil || slices.ContainsFunc(f.tasks, func(t swarm.Task) bool {
			return t.ServiceID == s.ID && t.DesiredState == swarm.TaskStateRunning && t.Status.State != swarm.TaskStateRunning
		}) {
			continue
		}
		now, done := time.Now(), *s.UpdateStatus
		done.State, done.CompletedAt, done.Message = map[swarm.UpdateState]swarm.UpdateState{
			swarm.UpdateStateUpdating: swarm.UpdateStateCompleted, swarm.UpdateStateRollbackStarted: swarm.UpdateStateRollbackCompleted,
		}[done.State], &now, "update completed"
		s.UpdateStatus, s.Meta = &done, f.meta(s.CreatedAt)
	}
}

func (f *fake) ListTasks(context.Context) ([]swarm.Task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.step()
	return slices.Clone(f.tasks), f.failure
}

func (f *fake) GetTask(_ context.Context, ref string) (swarm.Task, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := find("task", ref, f.tasks, func(t swarm.Task) string { return t.ID }, func(swarm.Task) string { return "" })
	if err != nil {
		return swarm.Task{}, err
	}
	return f.tasks[i], f.failure
}

func (f *fake) UpToDate(_ context.Context, t swarm.Task) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.findService(t.ServiceID)
	return err == nil && upToDate(t, f.services[i])
}
