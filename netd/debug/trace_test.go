package debug

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/balancer"
	"netd/gossip"
	"netd/netd/task"
	"netd/vxlan"
)

// source is a daemon that says what a test wants.
type source struct {
	facts             Facts
	kernel            Kernel
	answer            []netip.Addr
	drift             []string
	driftErr, readErr error
	lookErr, dialErr  error
	explained         []string
	explainErr        error
	dialled           netip.AddrPort
}

func (s *source) Facts() Facts                            { return s.facts }
func (s *source) Drift(context.Context) ([]string, error) { return s.drift, s.driftErr }
func (s *source) Kernel(context.Context) (Kernel, error)  { return s.kernel, s.readErr }
func (s *source) Lookup(_ context.Context, netns, name string) ([]netip.Addr, error) {
	if netns != "/ns/task-client00001" || name == "" {
		return nil, fmt.Errorf("looked %q up in %q", name, netns)
	}
	return s.answer, s.lookErr
}

func (s *source) Explain(_ context.Context, router string, vip netip.Addr) ([]string, error) {
	if router != "/ns/net-shop" || vip != addr("10.0.9.2") {
		return nil, fmt.Errorf("asked %q for %s", router, vip)
	}
	return s.explained, s.explainErr
}

func (s *source) Dial(_ context.Context, _ string, to netip.AddrPort) error {
	s.dialled = to
	return s.dialErr
}

// shop is a source on which every hop from the client to web is open.
func shop() *source {
	return &source{
		facts: healthy(), answer: []netip.Addr{addr("10.0.9.2")},
		kernel: Kernel{
			Overlay: vxlan.Config{Networks: []vxlan.Network{{
				Router: "/ns/net-shop", VNI: 4097, MTU: 1450, Addrs: []netip.Addr{addr("10.0.9.1"), addr("10.0.9.2"), netd.RouterAddr},
				Peers:   []vxlan.Peer{{VTEP: addr("192.0.2.2"), MAC: vxlan.MAC{2, 0, 0, 0, 0, 2}}},
				Remotes: []vxlan.Remote{{Addr: addr("10.0.9.6"), VTEP: addr("192.0.2.2")}},
				Ports: []vxlan.Port{
					{Name: "nd-client", Iface: "eth0", Addr: netip.MustParsePrefix("10.0.9.4/24")}, {Name: "nd-web1", Iface: "eth0", Addr: netip.MustParsePrefix("10.0.9.5/24")},
				},
			}}},
			Balancer: balancer.Config{Routers: []balancer.Router{{NetNS: "/ns/net-other"}, {NetNS: "/ns/net-shop", Services: []balancer.Service{
				{VIP: addr("10.0.9.3")},
				{VIP: addr("10.0.9.2"), Backends: []balancer.Backend{{Addr: addr("10.0.9.5"), State: balancer.Ready}, {Addr: addr("10.0.9.6"), State: balancer.Ready}}},
			}}}},
		},
	}
}

// hops writes each hop as "ok|FAIL layer", for comparison.
func hops(t Trace) string {
	var out []string
	for _, h := range t.Hops {
		mark := "ok "
		if !h.OK {
			mark = "FAIL "
		}
		out = append(out, mark+h.Layer)
	}
	return strings.Join(out, ", ")
}

// The balancer's hop names the objects that the renderer in use has in the kernel,
// not more than a person can read.
func TestTraceObjects(t *testing.T) {
	many := []string{"map a", "map b", "map c", "map d", "map e", "map f", "map g", "map h", "map i", "map j"}
	for name, c := range map[string]struct {
		lines []string
		err   error
		want  string
	}{
		"some":       {[]string{"nft map vips { 1 }", "nft map backends { 2 }"}, nil, "nft map vips { 1 }; nft map backends { 2 } in /ns/net-shop"},
		"none":       {nil, nil, "no object for the VIP in /ns/net-shop"},
		"many":       {many, nil, "map g; map h; and 2 more in /ns/net-shop"},
		"unreadable": {nil, errors.New("cannot read"), "cannot read in /ns/net-shop"},
	} {
		s := shop()
		s.explained, s.explainErr = c.lines, c.err
		got, err := trace(t.Context(), s, "client.1", "web", "")
		if err != nil || !strings.HasSuffix(got.Hops[3].Object, c.want) {
			t.Errorf("%s: got %+v, %v; want %s", name, got.Hops, err, c.want)
		}
	}
}

// Each hop is judged by what the kernel holds, and the verdict names the first
// one that does not let packets through.
func TestTrace(t *testing.T) {
	network := func(s *source) *vxlan.Network { return &s.kernel.Overlay.Networks[0] }
	for name, c := range map[string]struct {
		change  func(*source)
		hops    string
		verdict string // is in the verdict
	}{
		"open": {func(*source) {}, "ok dns, ok link, ok vip, ok nftables, ok local, ok vxlan, ok probe", "the way is open"},
		"no name": {func(s *source) { s.lookErr = errors.New("no such host") },
			"FAIL dns, ok link, ok vip, ok nftables, ok local, ok vxlan, ok probe", "hop 1 (dns): no such host"},
		"wrong name": {func(s *source) { s.answer = []netip.Addr{addr("10.0.9.9")} },
			"FAIL dns, ok link, ok vip, ok nftables, ok local, ok vxlan, ok probe", "which is not the VIP 10.0.9.2"},
		"no router": {func(s *source) { s.kernel.Overlay.Networks = nil },
			"ok dns, FAIL router, ok probe", "no router namespace for network shop"},
		"unplugged": {func(s *source) { network(s).Ports = network(s).Ports[1:] },
			"ok dns, FAIL link, ok vip, ok nftables, ok local, ok vxlan, ok probe", "no interface with 10.0.9.4 ends in the router"},
		"no VIP": {func(s *source) { network(s).Addrs = nil },
			"ok dns, ok link, FAIL vip, ok nftables, ok local, ok vxlan, ok probe", "10.0.9.2 is no local address of the router"},
		"not balanced": {func(s *source) { s.kernel.Balancer = balancer.Config{} },
			"ok dns, ok link, ok vip, FAIL nftables, ok probe", "no service for VIP 10.0.9.2"},
		"no backend": {func(s *source) { s.kernel.Balancer.Routers[1].Services[1].Backends = nil },
			"ok dns, ok link, ok vip, FAIL nftables, ok probe", "is a task of web running and healthy?"},
		"draining only": {func(s *source) {
			b := s.kernel.Balancer.Routers[1].Services[1].Backends
			b[0].State, b[1].State = balancer.Draining, balancer.Draining
		}, "ok dns, ok link, ok vip, FAIL nftables, ok local, ok vxlan, ok probe", "10.0.9.5 draining | 10.0.9.6 draining"},
		"no neighbour": {func(s *source) { network(s).Peers = nil },
			"ok dns, ok link, ok vip, ok nftables, ok local, FAIL vxlan, ok probe", "no neighbour or FDB entry"},
		"no route": {func(s *source) { network(s).Remotes = nil },
			"ok dns, ok link, ok vip, ok nftables, ok local, FAIL vxlan, ok probe", "no route to backend 10.0.9.6"},
		"peer silent": {func(s *source) { s.facts.View.Members["n2"] = gossip.Member{} },
			"ok dns, ok link, ok vip, ok nftables, ok local, FAIL vxlan, ok probe", "192.0.2.2 (two), which does not answer gossip"},
		"peer unknown": {func(s *source) { s.facts.Snapshot.Nodes = nil },
			"ok dns, ok link, ok vip, ok nftables, ok local, FAIL vxlan, ok probe", "does not answer gossip"},
		"port shut": {func(s *source) {
			s.dialErr = &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		},
			"ok dns, ok link, ok vip, ok nftables, ok local, ok vxlan, FAIL probe", "refused by the backend: is web listening on port 8080?"},
		"no answer": {func(s *source) { s.dialErr = errors.New("i/o timeout") },
			"ok dns, ok link, ok vip, ok nftables, ok local, ok vxlan, FAIL probe", "hop 7 (probe): i/o timeout.   look: netd drift"},
	} {
		s := shop()
		c.change(s)
		got, err := trace(t.Context(), s, "client.1", "web", "8080")
		if err != nil || hops(got) != c.hops || !strings.Contains(got.Verdict, c.verdict) || got.OK != (name == "open") {
			t.Errorf("%s: got %s\n%q, %v; want %s\n%q", name, hops(got), got.Verdict, err, c.hops, c.verdict)
		}
		if s.dialled != netip.MustParseAddrPort("10.0.9.2:8080") {
			t.Errorf("%s: dialled %s", name, s.dialled)
		}
	}
}

// A service without a VIP is followed to its name only: nothing balances it.
func TestTraceWithoutVIP(t *testing.T) {
	s := shop()
	s.answer = []netip.Addr{addr("10.0.9.5")}
	got, err := trace(t.Context(), s, "client.1", "rr", "")
	if err != nil || hops(got) != "ok dns, ok link" || !got.OK || got.To != "rr:80" || s.dialled.IsValid() {
		t.Errorf("got %+v, dialled %s, %v", got, s.dialled, err)
	}
}

// A task is found by its ID, the start of it, its name or service.number; on two
// networks it is the one that it shares with the service.
func TestFind(t *testing.T) {
	f := healthy()
	for _, ref := range []string{"client00001", "clie", "client.1", "client.1.client00001"} {
		if from, to, err := find(f, ref, "web"); err != nil || from.endpoint.Task != "client00001" || to.ID != "web" || from.status.NetNS == "" || from.network.ID != "shop" {
			t.Errorf("%q: got %+v, %+v, %v", ref, from, to, err)
		}
	}
	f.Snapshot.Endpoints = append(f.Snapshot.Endpoints, netd.Endpoint{Network: "vault", Task: "client00001", Name: "client.1.client00001", Node: "n1", Addr: addr("10.0.8.4")})
	f.Snapshot.Services = append(f.Snapshot.Services, netd.Service{ID: "db", Network: "vault", Name: "db", VIP: addr("10.0.8.2")})
	if from, _, err := find(f, "client.1", "db"); err != nil || from.endpoint.Addr != addr("10.0.8.4") {
		t.Errorf("on the other network: got %+v, %v", from, err)
	}
	// A task that was replaced is still there while it ends; the new one is meant.
	f = healthy()
	f.Snapshot.Endpoints[0].Leaving = true
	f.Snapshot.Endpoints = append(f.Snapshot.Endpoints, netd.Endpoint{Network: "shop", Task: "client00002", Name: "client.1.client00002", Node: "n1", Addr: addr("10.0.9.8")})
	if from, _, err := find(f, "client.1", "web"); err != nil || from.endpoint.Task != "client00002" {
		t.Errorf("while the old one ends: got %+v, %v", from, err)
	}
}

// A question that makes no sense is refused with the command that would.
func TestFindErrors(t *testing.T) {
	for _, c := range []struct {
		task, service, port string
		kind                error
		text                string
	}{
		{"", "web", "", netd.ErrInvalid, "netd trace TASK SERVICE[:PORT]"},
		{"client.1", "", "", netd.ErrInvalid, "netd trace TASK SERVICE[:PORT]"},
		{"client.1", "web", "http", netd.ErrInvalid, `port "http"`},
		{"client.1", "web", "0", netd.ErrInvalid, `port "0"`},
		{"client.1", "web", "65536", netd.ErrInvalid, `port "65536"`},
		{"nobody.1", "web", "", netd.ErrNotFound, "docker service ps"},
		{"cli", "web", "", netd.ErrNotFound, `no task "cli"`},
		{"client.1", "nothing", "", netd.ErrNotFound, `no service "nothing" on the networks of task "client.1"`},
		{"web.2", "web", "", netd.ErrInvalid, "runs on node two"},
	} {
		_, err := trace(t.Context(), shop(), c.task, c.service, c.port)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: got %v", c, err)
		}
	}
	s := shop()
	s.readErr = errors.New("no netlink")
	if _, err := trace(t.Context(), s, "client.1", "web", ""); err == nil || !strings.Contains(err.Error(), "read the kernel: no netlink") {
		t.Errorf("got %v", err)
	}
}

// A task that does not run is told as such, not as a broken network.
func TestTraceOfATaskThatDoesNotRun(t *testing.T) {
	s := shop()
	s.facts.Tasks[0].Phase = task.Exited
	_, err := trace(t.Context(), s, "client.1", "web", "")
	if !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("got %v", err)
	}
}

// A person reads one line for each hop, with the kernel object that decided.
func TestTracePrint(t *testing.T) {
	s := shop()
	s.dialErr = errors.New("connection refused")
	got, err := trace(t.Context(), s, "client.1", "web", "")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	got.Print(&out)
	for _, want := range []string{
		"client.1.client00001 → web:80\n", " 1 ok   dns ", "[resolver 169.254.1.1:53]", "[veth nd-client in /ns/net-shop]", "[no object for the VIP in /ns/net-shop]",
		"[route dev nd-web1 in /ns/net-shop]", "its router is 02:00:00:00:00:02", " 7 FAIL probe ", "verdict: packets end at hop 7 (probe): connection refused",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &out)
		}
	}
}

// The handler answers JSON always, with the status of the error's kind.
func TestHandler(t *testing.T) {
	for _, c := range []struct {
		path   string
		change func(*source)
		status int
		want   string
	}{
		{"/netd/v1/status", func(*source) {}, 200, `"Verdict":"HEALTHY"`},
		{"/netd/v1/status", func(s *source) { s.driftErr = errors.New("no netlink") }, 200, `"Verdict":"DEGRADED"`},
		{"/netd/v1/status", func(s *source) { s.facts.State = swarm.LocalNodeStateInactive; s.driftErr = errors.New("in no swarm") }, 200, `"Verdict":"INACTIVE"`},
		{"/netd/v1/drift", func(*source) {}, 200, `{"Objects":[]}`},
		{"/netd/v1/drift", func(s *source) { s.drift = []string{"ip link add x"} }, 200, `{"Objects":["ip link add x"]}`},
		{"/netd/v1/drift", func(s *source) { s.driftErr = netd.Errorf(netd.ErrUnavailable, "in no swarm") }, 503, `{"message":"in no swarm"}`},
		{"/netd/v1/drift", func(s *source) { s.driftErr = errors.New("no netlink") }, 500, `{"message":"no netlink"}`},
		{"/netd/v1/trace?task=client.1&service=web", func(*source) {}, 200, `"OK":true`},
		{"/netd/v1/trace?task=client.1", func(*source) {}, 400, `{"message":"trace needs a task`},
		{"/netd/v1/trace?task=x&service=web", func(*source) {}, 404, `{"message":"no task`},
		{"/netd/v1/nothing", func(*source) {}, 404, ""},
	} {
		s := shop()
		c.change(s)
		w := httptest.NewRecorder()
		NewHandler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path, nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: got %d %s, want %d %s", c.path, w.Code, w.Body, c.status, c.want)
		}
		if c.want != "" && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %q is no JSON", c.path, w.Body)
		}
	}
	w := httptest.NewRecorder()
	NewHandler(shop()).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/netd/v1/status", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d", w.Code)
	}
}
