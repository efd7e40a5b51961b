package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/dispatch"
	"netd/netd/task"
)

// A task's spec reaches the runtime whole, with the names that Swarm gives it and
// the network's own resolver.
func TestSpec(t *testing.T) {
	grace := 3 * time.Second
	a := &dispatch.Assignment{ServiceNames: map[string]string{"s1": "web"}}
	got, err := spec(&swarm.Task{
		ID: "abcdefghijklmnop", ServiceID: "s1", NodeID: "n1", Slot: 2,
		Spec: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{
				Image: "netd/echo", Command: []string{"a"}, Args: []string{"b"}, Env: []string{"X=1"}, Dir: "/d",
				StopSignal: "SIGINT", StopGracePeriod: &grace, Hosts: []string{"192.0.2.1 h"}, Labels: map[string]string{"l": "1"},
				DNSConfig:   &swarm.DNSConfig{Search: []string{"s"}, Options: []string{"o"}},
				Healthcheck: &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: 1, Timeout: 2, StartPeriod: 3, StartInterval: 4, Retries: 5},
			},
			Resources: &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 6, NanoCPUs: 7, Pids: 8}},
		},
	}, a, "one")
	if err != nil {
		t.Fatal(err)
	}
	want := task.Spec{
		ID: "abcdefghijklmnop", Name: "web.2.abcdefghijklmnop", Image: "netd/echo", Command: []string{"a"}, Args: []string{"b"},
		Env: []string{"NETD_TASK=web.2.abcdefghijklmnop", "NETD_NODE=one", "X=1"}, Dir: "/d", Hostname: "abcdefghijkl",
		Labels: map[string]string{
			"l": "1", "com.docker.swarm.task": "", "com.docker.swarm.task.id": "abcdefghijklmnop", "com.docker.swarm.node.id": "n1",
			"com.docker.swarm.task.name": "web.2.abcdefghijklmnop", "com.docker.swarm.service.id": "s1", "com.docker.swarm.service.name": "web",
		},
		StopSignal: "SIGINT", StopGrace: grace, Hosts: []string{"192.0.2.1 h"},
		DNS: []netip.Addr{netd.RouterAddr}, DNSSearch: []string{"s"}, DNSOptions: []string{"ndots:0", "o"},
		Health:      &task.HealthCheck{Test: []string{"CMD", "x"}, Interval: 1, Timeout: 2, StartPeriod: 3, StartInterval: 4, Retries: 5},
		MemoryLimit: 6, NanoCPUs: 7, PidsLimit: 8,
	}
	if diff := cmp.Diff(want, got, netips); diff != "" {
		t.Error(diff)
	}
}

// What the spec leaves out has its default, and no grace at all is not the default.
func TestSpecDefaults(t *testing.T) {
	a := &dispatch.Assignment{ServiceNames: map[string]string{"s1": "web"}}
	none := time.Duration(0)
	for name, c := range map[string]struct {
		task           swarm.Task
		taskName, host string
		grace          time.Duration
	}{
		"of a global service": {swarm.Task{ID: "t1", ServiceID: "s1", NodeID: "n1"}, "web.n1.t1", "t1", 0},
		"named by itself":     {swarm.Task{ID: "t1", Annotations: swarm.Annotations{Name: "own"}}, "own", "t1", 0},
		"host and no grace": {swarm.Task{ID: "t1", ServiceID: "s1", Slot: 1, Spec: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Hostname: "h", StopGracePeriod: &none}}}, "web.1.t1", "h", -1},
	} {
		got, err := spec(&c.task, a, "one")
		if err != nil || got.Name != c.taskName || got.Hostname != c.host || got.StopGrace != c.grace || got.Health != nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// Placeholders in the hostname and in the environment's values are filled in as
// Docker does it; what cannot be filled in is a refusal that names it.
func TestSpecPlaceholders(t *testing.T) {
	a := &dispatch.Assignment{ServiceNames: map[string]string{"s1": "web"}}
	a.Node.Description.Platform.OS = "linux"
	env := []string{"S={{.Service.ID}} {{.Service.Name}}", "N={{.Node.ID}} {{.Node.Hostname}} {{.Node.Platform.OS}}",
		"T={{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}", `J={{join "-" .Task.Slot .Task.ID}}`, "{{.Key}}", "P=} plain {"}
	for slot, want := range map[int][]string{
		2: {"NETD_TASK=web.2.t1", "NETD_NODE=one", "S=s1 web", "N=n1 one linux", "T=t1 web.2.t1 2", "J=2-t1", "{{.Key}}", "P=} plain {"},
		0: {"NETD_TASK=web.n1.t1", "NETD_NODE=one", "S=s1 web", "N=n1 one linux", "T=t1 web.n1.t1 n1", "J=n1-t1", "{{.Key}}", "P=} plain {"},
	} {
		c := &swarm.ContainerSpec{Hostname: "{{.Service.Name}}-{{.Node.Hostname}}", Env: env}
		got, err := spec(&swarm.Task{ID: "t1", ServiceID: "s1", NodeID: "n1", Slot: slot, Spec: swarm.TaskSpec{ContainerSpec: c}}, a, "one")
		if diff := cmp.Diff(want, got.Env); err != nil || diff != "" || got.Hostname != "web-one" {
			t.Errorf("slot %d: got hostname %q, %v; %s", slot, got.Hostname, err, diff)
		}
	}
	for want, c := range map[string]*swarm.ContainerSpec{
		"hostname: template: template:1: unclosed action":      {Hostname: "{{.Task"},
		`environment variable "A": template`:                   {Env: []string{"A={{.Task.Colour}}"}},
		"no conditions and loops":                              {Env: []string{"A={{range 1000000000000}}{{end}}"}},
		"known are .Service.ID and .Name, .Node.ID, .Hostname": {Hostname: "{{.Service.Labels.x}}"},
	} {
		_, err := spec(&swarm.Task{ID: "t1", ServiceID: "s1", Spec: swarm.TaskSpec{ContainerSpec: c}}, a, "one")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
