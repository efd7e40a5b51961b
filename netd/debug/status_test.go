package debug

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"go.uber.org/goleak"

	"netd"
	"netd/balancer"
	"netd/gossip"
	"netd/netd/task"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var addr = netip.MustParseAddr

// healthy is a worker on which all is well: a service with a backend here and one
// on n2.
func healthy() Facts {
	return Facts{
		Version: "1.0", Name: "one", ID: "n1", State: swarm.LocalNodeStateActive, Up: 61*time.Second + 400*time.Millisecond,
		Balancer: "nftables", BalancerWhy: "the kernel has no ip_vs", Connected: true, Generation: 7, Applied: 2 * time.Second,
		Took: 3 * time.Millisecond, MTU: 1450, GossipPort: 7947, Managers: []string{"192.0.2.8:4000", "192.0.2.9:4001"},
		Snapshot: netd.Snapshot{
			Nodes:    []netd.Node{{ID: "n1", Name: "one", Addr: addr("192.0.2.1")}, {ID: "n2", Name: "two", Addr: addr("192.0.2.2")}},
			Networks: []netd.Network{{ID: "shop", Name: "shop", VNI: 4097, Subnet: netip.MustParsePrefix("10.0.9.0/24")}},
			Services: []netd.Service{{ID: "web", Network: "shop", Name: "web", VIP: addr("10.0.9.2")}, {ID: "rr", Network: "shop", Name: "rr"}},
			Endpoints: []netd.Endpoint{
				{Network: "shop", Task: "client00001", Name: "client.1.client00001", Service: "client", Node: "n1", Addr: addr("10.0.9.4")},
				{Network: "shop", Task: "web00000001", Name: "web.1.web00000001", Service: "web", Node: "n1", Addr: addr("10.0.9.5")},
				{Network: "shop", Task: "web00000002", Name: "web.2.web00000002", Service: "web", Node: "n2", Addr: addr("10.0.9.6")},
			},
		},
		View: &gossip.View{Members: map[netd.NodeID]gossip.Member{"n1": {Alive: true, Version: 1}, "n2": {Alive: true, Version: 1}}},
		Tasks: []task.Status{
			{ID: "client00001", Phase: task.Running, NetNS: "/ns/task-client00001"}, {ID: "web00000001", Phase: task.Running}, {ID: "old", Phase: task.Exited},
		},
		Wanted: balancer.Config{Routers: []balancer.Router{{NetNS: "/ns/net-shop", Services: []balancer.Service{{
			VIP: addr("10.0.9.2"), Backends: []balancer.Backend{{Addr: addr("10.0.9.5"), State: balancer.Ready}, {Addr: addr("10.0.9.6"), State: balancer.Draining}},
		}}}}},
	}
}

// Each thing that can be wrong has its verdict and a reason that says what to do;
// the worst one decides, and no reason hides another.
func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		change   func(*Facts)
		drift    []string
		driftErr error
		verdict  Verdict
		reasons  []string // each must be in the reason of its place
	}{
		"all well":      {func(*Facts) {}, nil, nil, Healthy, nil},
		"in no swarm":   {func(f *Facts) { f.State = swarm.LocalNodeStateInactive }, nil, nil, Inactive, []string{"swarm init"}},
		"ended":         {func(f *Facts) { f.State, f.Error = swarm.LocalNodeStateError, "port 7946 is in use" }, nil, nil, Broken, []string{"port 7946 is in use"}},
		"not applied":   {func(f *Facts) { f.ApplyError = "no such device" }, nil, nil, Broken, []string{"no such device; see 'netd drift'"}},
		"no manager":    {func(f *Facts) { f.Connected = false }, nil, nil, Degraded, []string{"no manager answers at 192.0.2.8:4000 or 192.0.2.9:4001; tasks"}},
		"peer silent":   {func(f *Facts) { f.View.Members["n2"] = gossip.Member{} }, nil, nil, Degraded, []string{"node two does not answer gossip; its backends get no new connections; check TCP and UDP port 7947"}},
		"self silent":   {func(f *Facts) { f.View.Members["n1"] = gossip.Member{} }, nil, nil, Healthy, nil},
		"no gossip yet": {func(f *Facts) { f.View = nil }, nil, nil, Healthy, nil},
		"drift":         {func(*Facts) {}, []string{"a", "b"}, nil, Degraded, []string{"2 kernel objects differ"}},
		"drift unread":  {func(*Facts) {}, nil, errors.New("no netlink"), Degraded, []string{"drift could not be read: no netlink"}},
		"broken first": {func(f *Facts) { f.Error, f.Connected = "gone", false }, []string{"a"}, nil, Broken,
			[]string{"gone", "no manager", "1 kernel object"}},
		"broken last": {func(f *Facts) { f.Connected, f.ApplyError = false, "x" }, nil, nil, Broken, []string{"x", "no manager"}},
	} {
		f := healthy()
		c.change(&f)
		got := Judge(f, c.drift, c.driftErr)
		fits := len(got.Reasons) == len(c.reasons)
		for i := range c.reasons {
			fits = fits && strings.Contains(got.Reasons[i], c.reasons[i])
		}
		if got.Verdict != c.verdict || !fits {
			t.Errorf("%s: got %s %q, want %s %q", name, got.Verdict, got.Reasons, c.verdict, c.reasons)
		}
	}
}

// The exit status tells a script how the node is.
func TestCode(t *testing.T) {
	for verdict, want := range map[Verdict]int{Healthy: 0, Inactive: 0, Degraded: 1, Broken: 2} {
		if got := (Status{Verdict: verdict}).Code(); got != want {
			t.Errorf("%s: got %d, want %d", verdict, got, want)
		}
	}
}

// A node is a worker, a manager or the leader, or what keeps it from being one.
func TestRole(t *testing.T) {
	for want, f := range map[string]Facts{
		"worker":          {State: swarm.LocalNodeStateActive},
		"manager":         {State: swarm.LocalNodeStateActive, Manager: true},
		"manager, leader": {State: swarm.LocalNodeStateActive, Manager: true, Leader: true},
		"error":           {State: swarm.LocalNodeStateError, Manager: true},
	} {
		if got := role(f); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A person reads one verdict and a line for each part.
func TestStatusPrint(t *testing.T) {
	f := healthy()
	f.Connected, f.Changes = false, 4
	var out bytes.Buffer
	Judge(f, []string{"x"}, nil).Print(&out)
	want := `netd 1.0 · node one (worker) · up 1m1s  DEGRADED
  why: no manager answers at 192.0.2.8:4000 or 192.0.2.9:4001; tasks and names go on as they were; check that this TCP port can be reached from here
  why: 1 kernel objects differ from what is wanted and will be mended within seconds; see 'netd drift'
control  no session with a manager; assignment 7 is kept
gossip   2/2 members alive
data     1 networks here, mtu 1450
lb       nftables (the kernel has no ip_vs): 1 VIPs, 1 backends ready, 1 draining, 0 VIPs empty
tasks    2 running
drift    1 objects; 4 changed since the daemon's start
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
	f = healthy()
	f.Wanted.Routers[0].Services[0].Backends = nil
	lines := Judge(f, nil, nil).Lines
	if i := slices.IndexFunc(lines, func(l Line) bool { return l.Part == "lb" }); !strings.Contains(lines[i].Text, "1 VIPs empty") {
		t.Errorf("a VIP without backends: %q", lines[i].Text)
	}
	if i := slices.IndexFunc(lines, func(l Line) bool { return l.Part == "control" }); lines[i].Text != "session open, assignment 7 applied 2s ago in 3ms" {
		t.Errorf("got %q", lines[i].Text)
	}
}
