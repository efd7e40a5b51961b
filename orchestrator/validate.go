package orchestrator

import (
	"net/netip"
	"regexp"
	"slices"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/scheduler"
	"netd/orchestrator/store"
)

const (
	maxNameLength = 63
	// maxReplicas bounds a service: more would only fill the store with tasks
	// that no network has addresses for.
	maxReplicas = 10_000
	// The least that swarmkit lets a task ask for.
	minCPU    = 1_000_000 // billionths of a CPU
	minMemory = 4 << 20
)

var dnsName = regexp.MustCompile(`^[a-zA-Z0-9](?:[-_]*[A-Za-z0-9]+)*$`)

func checkName(name string) error {
	switch {
	case name == "":
		return invalid("meta: name must be provided")
	case !dnsName.MatchString(name):
		return invalid("name must be valid as a DNS name component")
	case len(name) > maxNameLength:
		return invalid("name must be %d characters or fewer", maxNameLength)
	}
	return nil
}

// checkService refuses a spec that can never run, and fills in the two fields
// that Docker fills in too: the mode and the number of replicas. Everything else
// is stored as it came.
func checkService(spec swarm.ServiceSpec) (swarm.ServiceSpec, error) {
	if spec.Name != "" {
		if err := checkName(spec.Name); err != nil {
			return spec, err
		}
	}
	mode, err := checkMode(spec.Mode)
	if err != nil {
		return spec, err
	}
	spec.Mode = mode
	for _, check := range []error{
		checkTask(spec.TaskTemplate),
		checkUpdateConfig(spec.UpdateConfig, "update"),
		checkUpdateConfig(spec.RollbackConfig, "rollback"),
		checkEndpoint(spec.EndpointSpec),
	} {
		if check != nil {
			return spec, check
		}
	}
	spec.Labels = labels(spec.Labels)
	return spec, nil
}

func checkMode(m swarm.ServiceMode) (swarm.ServiceMode, error) {
	n := 0
	for _, set := range []bool{m.Replicated != nil, m.Global != nil, m.ReplicatedJob != nil, m.GlobalJob != nil} {
		if set {
			n++
		}
	}
	switch {
	case n > 1:
		return m, netd.Errorf(netd.ErrInvalid, "must specify only one service mode")
	case m.ReplicatedJob != nil, m.GlobalJob != nil:
		return m, netd.Errorf(netd.ErrUnsupported, "job services are not supported yet: use the mode replicated or global, with a restart condition of none or on-failure")
	case m.Global != nil:
		return m, nil
	}
	count := uint64(1)
	if m.Replicated != nil && m.Replicated.Replicas != nil {
		count = *m.Replicated.Replicas
	}
	if int64(count) < 0 {
		return m, invalid("Number of replicas must be non-negative")
	}
	if count > maxReplicas {
		return m, invalid("Number of replicas must be at most %d: %d were asked for", maxReplicas, count)
	}
	return swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &count}}, nil
}

func checkTask(t swarm.TaskSpec) error {
	switch {
	case t.Runtime != "" && t.Runtime != swarm.RuntimeContainer, t.PluginSpec != nil, t.NetworkAttachmentSpec != nil:
		return netd.Errorf(netd.ErrUnsupported, "runtime %q is not supported: services run containers", t.Runtime)
	case t.ContainerSpec == nil:
		return invalid("TaskSpec: missing runtime")
	case t.ContainerSpec.Image == "":
		return invalid("ContainerSpec: image reference must be provided")
	case len(t.ContainerSpec.Secrets) > 0:
		return netd.Errorf(netd.ErrUnsupported, "secrets are not supported yet: create the service without --secret")
	case len(t.ContainerSpec.Configs) > 0:
		return netd.Errorf(netd.ErrUnsupported, "configs are not supported yet: create the service without --config")
	}
	if _, err := reference.ParseNormalizedNamed(t.ContainerSpec.Image); err != nil {
		return invalid("ContainerSpec: %q is not a valid repository/tag", t.ContainerSpec.Image)
	}
	if g := t.ContainerSpec.StopGracePeriod; g != nil && *g < 0 {
		return invalid("ContainerSpec: stop-grace-period cannot be negative")
	}
	if err := checkResources(t.Resources); err != nil {
		return err
	}
	if r := t.RestartPolicy; r != nil {
		switch {
		case !slices.Contains([]swarm.RestartPolicyCondition{"", swarm.RestartPolicyConditionAny, swarm.RestartPolicyConditionNone, swarm.RestartPolicyConditionOnFailure}, r.Condition):
			return invalid("TaskSpec: invalid restart condition %q", r.Condition)
		case r.Delay != nil && *r.Delay < 0:
			return invalid("TaskSpec: restart-delay cannot be negative")
		case r.Window != nil && *r.Window < 0:
			return invalid("TaskSpec: restart-window cannot be negative")
		}
	}
	if t.Placement != nil {
		if _, err := scheduler.ParseConstraints(t.Placement.Constraints); err != nil {
			return invalid("%v", err)
		}
	}
	return nil
}

func checkResources(r *swarm.ResourceRequirements) error {
	if r == nil {
		return nil
	}
	var limit, reserve swarm.Resources
	if r.Limits != nil {
		limit = swarm.Resources{NanoCPUs: r.Limits.NanoCPUs, MemoryBytes: r.Limits.MemoryBytes}
	}
	if r.Reservations != nil {
		reserve = *r.Reservations
	}
	if len(reserve.GenericResources) > 0 {
		return netd.Errorf(netd.ErrUnsupported, "generic resources are not supported yet: create the service without --generic-resource")
	}
	for _, want := range []swarm.Resources{limit, reserve} {
		if want.NanoCPUs != 0 && want.NanoCPUs < minCPU {
			return invalid("invalid cpu value %g: Must be at least %g", float64(want.NanoCPUs)/1e9, minCPU/1e9)
		}
		if want.MemoryBytes != 0 && want.MemoryBytes < minMemory {
			return invalid("invalid memory value %d: Must be at least 4MiB", want.MemoryBytes)
		}
	}
	return nil
}

func checkUpdateConfig(c *swarm.UpdateConfig, which string) error {
	if c == nil {
		return nil
	}
	actions := []swarm.FailureAction{"", swarm.UpdateFailureActionPause, swarm.UpdateFailureActionContinue}
	if which == "update" {
		actions = append(actions, swarm.UpdateFailureActionRollback)
	}
	switch {
	case c.Delay < 0:
		return invalid("TaskSpec: %s-delay cannot be negative", which)
	case c.Monitor < 0:
		return invalid("TaskSpec: %s-monitor cannot be negative", which)
	case !(c.MaxFailureRatio >= 0 && c.MaxFailureRatio <= 1): // NaN too
		return invalid("TaskSpec: %s-maxfailureratio cannot be less than 0 or bigger than 1", which)
	case !slices.Contains(actions, c.FailureAction):
		return netd.Errorf(netd.ErrInvalid, "unrecognized %s failure action %s", which, c.FailureAction)
	case !slices.Contains([]swarm.UpdateOrder{"", swarm.UpdateOrderStopFirst, swarm.UpdateOrderStartFirst}, c.Order):
		return netd.Errorf(netd.ErrInvalid, "unrecognized %s order %s", which, c.Order)
	}
	return nil
}

func checkEndpoint(e *swarm.EndpointSpec) error {
	if e == nil {
		return nil
	}
	if !slices.Contains([]swarm.ResolutionMode{"", swarm.ResolutionModeVIP, swarm.ResolutionModeDNSRR}, e.Mode) {
		return netd.Errorf(netd.ErrInvalid, "invalid resolution mode: %q", e.Mode)
	}
	type key struct {
		port     uint32
		protocol network.IPProtocol
		mode     swarm.PortConfigPublishMode
	}
	seen := map[key]bool{}
	for _, p := range e.Ports {
		switch {
		case p.TargetPort == 0 || p.TargetPort > 65535:
			return invalid("EndpointSpec: invalid target port %d: must be between 1 and 65535", p.TargetPort)
		case p.PublishedPort > 65535:
			return invalid("EndpointSpec: invalid published port %d: must be between 1 and 65535, or 0 for one that is chosen", p.PublishedPort)
		case !slices.Contains([]network.IPProtocol{"", network.TCP, network.UDP, network.SCTP}, p.Protocol):
			return netd.Errorf(netd.ErrInvalid, "invalid protocol: %q", p.Protocol)
		case p.PublishMode != "" && p.PublishMode != swarm.PortConfigPublishModeIngress && p.PublishMode != swarm.PortConfigPublishModeHost:
			return netd.Errorf(netd.ErrInvalid, "invalid publish mode: %q", p.PublishMode)
		case e.Mode == swarm.ResolutionModeDNSRR && published(p):
			return invalid("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
		}
		if p.PublishedPort == 0 {
			continue
		}
		k := key{p.PublishedPort, protocolOf(p), p.PublishMode}
		if seen[k] {
			return invalid("EndpointSpec: duplicate published ports provided")
		}
		seen[k] = true
	}
	return nil
}

func protocolOf(p swarm.PortConfig) network.IPProtocol {
	if p.Protocol == "" {
		return network.TCP
	}
	return p.Protocol
}

// resolve replaces what the spec names by what the store knows, and refuses what
// clashes with it. It changes s only, not what its old spec shares.
func resolve(tx *store.Tx, s *swarm.Service) error {
	if err := checkPorts(tx, s); err != nil {
		return err
	}
	nets := slices.Clone(s.Spec.TaskTemplate.Networks)
	for i, a := range nets {
		n, err := findNetwork(tx, a.Target)
		switch {
		case err == nil && n.Spec.Ingress:
			return invalid("Service cannot be explicitly attached to the ingress network %q", n.Spec.Name)
		case err == nil:
			nets[i].Target = n.ID
		case slices.Contains([]string{network.NetworkHost, network.NetworkBridge, network.NetworkNone, network.NetworkDefault}, a.Target):
			return netd.Errorf(netd.ErrForbidden, "The network %s cannot be used with services. Only networks scoped to the swarm can be used, such as those created with the overlay driver.", a.Target)
		default:
			return err
		}
	}
	s.Spec.TaskTemplate.Networks = nets
	return nil
}

// checkPorts refuses a port that another service has published, or the swarm itself
// uses: the nodes would no longer reach each other.
func checkPorts(tx *store.Tx, s *swarm.Service) error {
	if s.Spec.EndpointSpec == nil {
		return nil
	}
	own := ownPorts(tx)
	for _, p := range s.Spec.EndpointSpec.Ports {
		if use := own[hostPort{protocolOf(p), p.PublishedPort}]; use != "" {
			return invalid("port '%d' is already in use by the swarm itself for %s: choose another published port", p.PublishedPort, use)
		}
		for _, other := range tx.Services() {
			for _, q := range other.Endpoint.Ports {
				if other.ID == s.ID || p.PublishedPort == 0 || p.PublishedPort != q.PublishedPort || protocolOf(p) != protocolOf(q) {
					continue
				}
				switch {
				case published(q):
					return invalid("port '%d' is already in use by service '%s' (%s) as an ingress port", p.PublishedPort, other.Spec.Name, other.ID)
				case published(p):
					return invalid("port '%d' is already in use by service '%s' (%s) as a host-published port", p.PublishedPort, other.Spec.Name, other.ID)
				}
			}
		}
	}
	return nil
}

// withDefaults fills in what the spec leaves open, as swarmkit does, without
// changing what it shares.
func withDefaults(spec swarm.ServiceSpec) swarm.ServiceSpec {
	t := &spec.TaskTemplate
	if c := t.ContainerSpec; c != nil {
		filled := *c
		if filled.StopGracePeriod == nil {
			filled.StopGracePeriod = ptr(defaultGracePeriod)
		}
		if filled.DNSConfig == nil {
			filled.DNSConfig = &swarm.DNSConfig{}
		}
		t.ContainerSpec = &filled
	}
	if t.Resources == nil {
		t.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{}, Reservations: &swarm.Resources{}}
	}
	restart := swarm.RestartPolicy{}
	if t.RestartPolicy != nil {
		restart = *t.RestartPolicy
	}
	if restart.Condition == "" {
		restart.Condition = swarm.RestartPolicyConditionAny
	}
	if restart.Delay == nil {
		restart.Delay = ptr(defaultRestartDelay)
	}
	if restart.MaxAttempts == nil {
		restart.MaxAttempts = ptr(uint64(0))
	}
	t.RestartPolicy = &restart
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	spec.UpdateConfig = ptr(configDefaults(spec.UpdateConfig))
	spec.RollbackConfig = ptr(configDefaults(spec.RollbackConfig))
	if spec.EndpointSpec == nil {
		spec.EndpointSpec = &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP}
	}
	return spec
}

func ptr[T time.Duration | uint64 | swarm.UpdateConfig](v T) *T { return &v }

// ownPorts are what the swarm's nodes listen on, and what for.
func ownPorts(tx *store.Tx) map[hostPort]string {
	own := map[hostPort]string{
		{network.TCP, gossipPort}: "gossip",
		{network.UDP, gossipPort}: "gossip",
	}
	if c := tx.Cluster(); c != nil {
		own[hostPort{network.UDP, c.DataPathPort}] = "its overlay networks"
	}
	for _, n := range tx.Nodes() {
		if n.ManagerStatus == nil {
			continue
		}
		if at, err := netip.ParseAddrPort(n.ManagerStatus.Addr); err == nil {
			own[hostPort{network.TCP, uint32(at.Port())}] = "its managers"
		}
	}
	return own
}
