package scheduler_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"netd/orchestrator/scheduler"
	"pgregory.net/rapid"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// node is a ready linux/amd64 node with 4 CPUs and 1 GiB, changed by the edits.
func node(id string, edits ...func(*swarm.Node)) *swarm.Node {
	n := &swarm.Node{ID: id}
	n.Spec.Availability = swarm.NodeAvailabilityActive
	n.Spec.Role = swarm.NodeRoleWorker
	n.Status = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: "192.0.2.1"}
	n.Description.Hostname = "host-" + id
	n.Description.Platform = swarm.Platform{OS: "linux", Architecture: "x86_64"}
	n.Description.Resources = swarm.Resources{NanoCPUs: 4e9, MemoryBytes: 1 << 30}
	for _, edit := range edits {
		edit(n)
	}
	return n
}

func label(key, value string) func(*swarm.Node) {
	return func(n *swarm.Node) {
		if n.Spec.Labels == nil {
			n.Spec.Labels = map[string]string{}
		}
		n.Spec.Labels[key] = value
	}
}

func down(n *swarm.Node)   { n.Status.State = swarm.NodeStateDown }
func paused(n *swarm.Node) { n.Spec.Availability = swarm.NodeAvailabilityPause }

// pending is a task of the service that waits for a node.
func pending(service string, placement *swarm.Placement) *swarm.Task {
	t := &swarm.Task{ServiceID: service, DesiredState: swarm.TaskStateRunning}
	t.Status.State = swarm.TaskStatePending
	t.Spec.Placement = placement
	return t
}

func placed(service, node string, state, desired swarm.TaskState) *swarm.Task {
	t := pending(service, nil)
	t.NodeID, t.Status.State, t.DesiredState = node, state, desired
	t.Status.Timestamp = now.Add(-time.Minute)
	return t
}

func running(service, node string) *swarm.Task {
	return placed(service, node, swarm.TaskStateRunning, swarm.TaskStateRunning)
}

func reserve(t *swarm.Task, cpus, memory int64) *swarm.Task {
	t.Spec.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: cpus, MemoryBytes: memory}}
	return t
}

func constrain(expressions ...string) *swarm.Placement {
	return &swarm.Placement{Constraints: expressions}
}

// Each rule decides as Swarm does, and a refusal has the text that Swarm's users know.
func TestPlace(t *testing.T) {
	spreadZones := &swarm.Placement{Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}}
	zones := []*swarm.Node{node("a", label("zone", "x")), node("b", label("zone", "x")), node("c", label("zone", "y"))}
	var flaky []*swarm.Task
	for range 5 {
		flaky = append(flaky, placed("web", "a", swarm.TaskStateFailed, swarm.TaskStateShutdown))
	}
	for _, tt := range []struct {
		name  string
		nodes []*swarm.Node
		tasks []*swarm.Task
		task  *swarm.Task
		want  string
	}{
		{"the node with fewest tasks of the service", []*swarm.Node{node("a"), node("b")},
			[]*swarm.Task{running("web", "a"), running("db", "b"), running("db", "b")}, pending("web", nil), "b"},
		{"then the one with fewest tasks", []*swarm.Node{node("a"), node("b")},
			[]*swarm.Task{running("db", "a")}, pending("web", nil), "b"},
		{"a task that is to stop is no share", []*swarm.Node{node("a"), node("b")},
			[]*swarm.Task{placed("web", "a", swarm.TaskStateRunning, swarm.TaskStateShutdown), running("web", "b")}, pending("web", nil), "a"},
		{"a node where the service keeps failing comes last", []*swarm.Node{node("a"), node("b")},
			append(flaky, running("web", "b")), pending("web", nil), "b"},
		{"a preference comes before the ranking", zones,
			[]*swarm.Task{running("web", "a"), running("web", "c"), running("db", "b")}, pending("web", spreadZones), "b"},
		{"a preference takes the emptier group", zones,
			[]*swarm.Task{running("web", "a"), running("db", "c"), running("db", "c")}, pending("web", spreadZones), "c"},
		{"no node", nil, nil, pending("web", nil), "no suitable node"},
		{"down and paused", []*swarm.Node{node("a", down), node("b", paused)}, nil, pending("web", nil),
			"no suitable node (2 nodes not available for new tasks)"},
		{"constraints, with the rarer reason after", []*swarm.Node{node("a"), node("b"), node("c", down)}, nil, pending("web", constrain("node.labels.zone==x")),
			"no suitable node (scheduling constraints not satisfied on 2 nodes; 1 node not available for new tasks)"},
		{"reservations", []*swarm.Node{node("a")}, []*swarm.Task{reserve(running("db", "a"), 3e9, 0)}, reserve(pending("web", nil), 2e9, 0),
			"no suitable node (insufficient resources on 1 node)"},
		{"a stopping task still holds its memory", []*swarm.Node{node("a")},
			[]*swarm.Task{reserve(placed("db", "a", swarm.TaskStateRunning, swarm.TaskStateShutdown), 0, 1<<30)}, reserve(pending("web", nil), 0, 1),
			"no suitable node (insufficient resources on 1 node)"},
		{"platform", []*swarm.Node{node("a")}, nil, pending("web", &swarm.Placement{Platforms: []swarm.Platform{{OS: "linux", Architecture: "arm64"}}}),
			"no suitable node (unsupported platform on 1 node)"},
		{"platform under its other name", []*swarm.Node{node("a")}, nil, pending("web", &swarm.Placement{Platforms: []swarm.Platform{{OS: "linux", Architecture: "amd64"}}}), "a"},
		{"max replicas", []*swarm.Node{node("a")}, []*swarm.Task{running("web", "a")}, pending("web", &swarm.Placement{MaxReplicas: 1}),
			"no suitable node (max replicas per node limit exceed)"},
		{"its own node only", []*swarm.Node{node("a"), node("b")}, []*swarm.Task{running("web", "b")},
			placed("web", "b", swarm.TaskStatePending, swarm.TaskStateRunning), "b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := scheduler.New(scheduler.State{Nodes: tt.nodes, Tasks: tt.tasks}, now).Place(tt.task)
			if got.Node+got.Why != tt.want || got.Node != "" && got.Why != "" {
				t.Errorf("got %+v, want %q", got, tt.want)
			}
		})
	}
}

// A port bound on the node itself is given to one task of a node.
func TestHostPorts(t *testing.T) {
	s := scheduler.New(scheduler.State{
		Nodes:     []*swarm.Node{node("a"), node("b")},
		HostPorts: map[string][]swarm.PortConfig{"web": {{Protocol: "tcp", PublishedPort: 80}}, "dns": {{Protocol: "udp", PublishedPort: 80}}},
	}, now)
	var got []string
	for _, service := range []string{"web", "web", "web", "dns"} {
		d := s.Place(pending(service, nil))
		got = append(got, d.Node+d.Why)
	}
	want := []string{"a", "b", "no suitable node (host-mode port already in use on 2 nodes)", "a"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Constraints compare as Docker documents: exactly, without regard to case; a
// missing label fails == and passes !=.
func TestConstraints(t *testing.T) {
	n := node("n1", label("zone", "East"))
	n.Description.Engine.Labels = map[string]string{"disk": "ssd"}
	for expression, want := range map[string]string{
		"node.id==n1":                "yes",
		"node.id == N1":              "yes",
		"node.hostname!=host-n1":     "no",
		"node.role==worker":          "yes",
		"node.role==manager":         "no",
		"node.platform.os==linux":    "yes",
		"node.platform.arch==amd64":  "yes",
		"node.platform.arch==x86_64": "yes",
		"node.ip==192.0.2.1":         "yes",
		"node.ip==192.0.2.0/24":      "yes",
		"node.ip!=192.0.2.0/24":      "no",
		"node.ip==east":              "no",
		"node.labels.zone==east":     "yes",
		"node.labels.zone!=east":     "no",
		"node.labels.Zone==east":     "no",
		"node.labels.rack==1":        "no",
		"node.labels.rack!=1":        "yes",
		"engine.labels.disk==ssd":    "yes",
		"node.colour==red":           "no",
		"node.labels.zone=east":      "constraint expected one operator from ==, !=",
		"==east":                     "key '' is invalid",
		"node.id==":                  "value '' is invalid",
		"node.id==a>b":               "value 'a>b' is invalid",
	} {
		got := "no"
		if cs, err := scheduler.ParseConstraints([]string{expression}); err != nil {
			got = err.Error()
		} else if cs.Match(n) {
			got = "yes"
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", expression, got, want)
		}
	}
}

// Whatever the nodes, tasks and demands: no placement breaks a constraint, a
// reservation, a replica limit or a node's state; a task stays unplaced only when
// every node would break one; and spreading keeps a service's tasks level.
func TestPlaceProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []*swarm.Node
		for i := range rapid.IntRange(0, 6).Draw(t, "nodes") {
			n := node(fmt.Sprintf("n%d", i), label("zone", rapid.SampledFrom([]string{"x", "y"}).Draw(t, "zone")))
			n.Description.Resources.NanoCPUs = int64(rapid.IntRange(0, 4).Draw(t, "cpus"))
			if rapid.IntRange(0, 4).Draw(t, "health") == 0 {
				down(n)
			}
			nodes = append(nodes, n)
		}
		limits := map[string]uint64{"web": rapid.Uint64Range(0, 3).Draw(t, "limit"), "db": 0}
		zones := map[string]string{"web": rapid.SampledFrom([]string{"", "x", "y", "z"}).Draw(t, "constraint"), "db": ""}
		free, count := map[string]int64{}, map[string]int{}
		for _, n := range nodes {
			free[n.ID] = n.Description.Resources.NanoCPUs
		}
		s := scheduler.New(scheduler.State{Nodes: nodes}, now)
		for range rapid.IntRange(0, 20).Draw(t, "tasks") {
			service := rapid.SampledFrom([]string{"web", "db"}).Draw(t, "service")
			cpus := int64(rapid.IntRange(0, 2).Draw(t, "reserve"))
			task := reserve(pending(service, &swarm.Placement{MaxReplicas: limits[service]}), cpus, 0)
			if zones[service] != "" {
				task.Spec.Placement.Constraints = []string{"node.labels.zone==" + zones[service]}
			}
			var allowed []string
			for _, n := range nodes {
				if n.Status.State == swarm.NodeStateReady && (zones[service] == "" || n.Spec.Labels["zone"] == zones[service]) &&
					free[n.ID] >= cpus && (limits[service] == 0 || uint64(count[service+n.ID]) < limits[service]) {
					allowed = append(allowed, n.ID)
				}
			}
			d := s.Place(task)
			if (d.Node == "") != (len(allowed) == 0) || d.Node != "" && !slices.Contains(allowed, d.Node) || (d.Why == "") != (d.Node != "") {
				t.Fatalf("%s: got %+v, allowed %v", service, d, allowed)
			}
			if d.Node == "" {
				continue
			}
			for _, other := range allowed {
				if count[service+other] < count[service+d.Node] {
					t.Fatalf("%s on %s with %d, but %s has %d", service, d.Node, count[service+d.Node], other, count[service+other])
				}
			}
			free[d.Node] -= cpus
			count[service+d.Node]++
		}
	})
}
