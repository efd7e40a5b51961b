package node

import (
	"net/netip"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/dispatch"
	"netd/netd/task"
)

// spec words an assigned task for the runtime; the error is for the user. Pure.
func spec(t *swarm.Task, a *dispatch.Assignment, node string) (task.Spec, error) {
	c := t.Spec.ContainerSpec
	if c == nil {
		c = &swarm.ContainerSpec{}
	}
	name := taskName(t, a.ServiceNames[t.ServiceID])
	s := task.Spec{
		ID: t.ID, Name: name, Image: c.Image, Command: c.Command, Args: c.Args,
		Env: append([]string{"NETD_TASK=" + name, "NETD_NODE=" + node}, c.Env...),
		Dir: c.Dir, Hostname: c.Hostname, Labels: labels(t, c, a, name),
		StopSignal: c.StopSignal, Hosts: c.Hosts,
		DNS: []netip.Addr{netd.RouterAddr}, DNSOptions: []string{"ndots:0"},
	}
	if s.Hostname == "" {
		s.Hostname = t.ID[:min(len(t.ID), 12)]
	}
	if c.StopGracePeriod != nil {
		if s.StopGrace = *c.StopGracePeriod; s.StopGrace == 0 {
			s.StopGrace = -1 // none at all, where zero is the default
		}
	}
	if c.DNSConfig != nil {
		s.DNSSearch = c.DNSConfig.Search
		s.DNSOptions = append(s.DNSOptions, c.DNSConfig.Options...)
	}
	if h := c.Healthcheck; h != nil {
		s.Health = &task.HealthCheck{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, StartInterval: h.StartInterval, Retries: h.Retries}
	}
	if r := t.Spec.Resources; r != nil && r.Limits != nil {
		s.MemoryLimit, s.NanoCPUs, s.PidsLimit = r.Limits.MemoryBytes, r.Limits.NanoCPUs, r.Limits.Pids
	}
	err := placeholdersOf(t, a, name, node).fill(&s)
	return s, err
}

// taskName is the task's name in the swarm and in DNS: service.slot.id, or
// service.node.id for a task of a global service.
func taskName(t *swarm.Task, service string) string {
	if t.Annotations.Name != "" {
		return t.Annotations.Name
	}
	return service + "." + slot(t) + "." + t.ID
}

func slot(t *swarm.Task) string {
	if t.Slot == 0 {
		return t.NodeID
	}
	return strconv.Itoa(t.Slot)
}

// labels are those of the spec and the ones that Docker tools look for.
func labels(t *swarm.Task, c *swarm.ContainerSpec, a *dispatch.Assignment, name string) map[string]string {
	out := map[string]string{}
	for k, v := range c.Labels {
		out[k] = v
	}
	const prefix = "com.docker.swarm."
	out[prefix+"task"] = ""
	out[prefix+"task.id"] = t.ID
	out[prefix+"task.name"] = name
	out[prefix+"node.id"] = t.NodeID
	out[prefix+"service.id"] = t.ServiceID
	out[prefix+"service.name"] = a.ServiceNames[t.ServiceID]
	return out
}
