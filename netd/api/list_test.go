package api_test

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"netd/netd/api"
)

// populated is a swarm with two services, one of them global, on one network of
// two; all tasks have come to rest.
func populated(t *testing.T) (*fake, http.Handler) {
	t.Helper()
	f := newSwarm(t)
	f.nodes[1].Description.Engine.Labels = map[string]string{"disk": "ssd"}
	f.nodes[2].Spec.Labels = map[string]string{"zone": "b"}
	h := handler(f, io.Discard)
	answer[any](t, h, 201, "POST", "/networks/create", `{"Name":"app","Driver":"overlay","Labels":{"tier":"front"}}`)
	answer[any](t, h, 201, "POST", "/networks/create", `{"Name":"apple","Driver":"overlay","Labels":{"keep":"yes"}}`)
	answer[any](t, h, 201, "POST", "/services/create", `{"Name":"web","Labels":{"team":"a"},"Mode":{"Replicated":{"Replicas":2}},"TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"},"Networks":[{"Target":"app"}]}}`)
	answer[any](t, h, 201, "POST", "/services/create", `{"Name":"agent","Labels":{"team":"b"},"Mode":{"Global":{}},"TaskTemplate":{"Runtime":"container","ContainerSpec":{"Image":"netd/echo"}}}`)
	for range 4 {
		answer[any](t, h, 200, "GET", "/tasks", "")
	}
	f.tasks[0].Spec.ForceUpdate = 9 // out of date
	f.tasks[0].DesiredState = swarm.TaskStateShutdown
	f.tasks[0].Labels = map[string]string{"own": ""}
	return f, h
}

// Each filter of each list keeps what it should.
func TestListFilters(t *testing.T) {
	f, h := populated(t)
	node2, service1, network1 := f.nodes[1].ID, f.services[0].ID, f.networks[1].ID
	for _, c := range []struct {
		target, filters string
		want            int
	}{
		{"/nodes", `{}`, 3},
		{"/nodes", `{"name":["n2","n3"]}`, 2},
		{"/nodes", `{"id":["` + node2[:4] + `"]}`, 1},
		{"/nodes", `{"label":["disk=ssd"]}`, 1},
		{"/nodes", `{"node.label":["zone"]}`, 1},
		{"/nodes", `{"role":["MANAGER"]}`, 1},
		{"/nodes", `{"role":["manager","worker"],"name":["n2"]}`, 1},
		{"/nodes", `{"membership":["accepted"]}`, 3},
		{"/nodes", `{"membership":["pending"]}`, 0},
		{"/services", `{"name":["w"]}`, 1},
		{"/services", `{"id":["` + service1 + `"],"name":["agent"]}`, 0},
		{"/services", `{"label":{"team=b":true}}`, 1},
		{"/services", `{"label":["team=a","team=b"]}`, 0},
		{"/services", `{"mode":["global"]}`, 1},
		{"/services", `{"mode":["replicated","global"]}`, 2},
		{"/services", `{"mode":["replicated-job"]}`, 0},
		{"/services", `{"runtime":["plugin"]}`, 0},
		{"/tasks", `{}`, 5},
		{"/tasks", `{"service":["web"]}`, 2},
		{"/tasks", `{"service":["` + service1[:5] + `","agent"]}`, 5},
		{"/tasks", `{"node":["n2"]}`, 2},
		{"/tasks", `{"node":["n2"],"service":["agent"]}`, 1},
		{"/tasks", `{"name":["web.2"]}`, 1},
		{"/tasks", `{"name":["agent.` + node2 + `"]}`, 1},
		{"/tasks", `{"id":["` + f.tasks[3].ID + `"]}`, 1},
		{"/tasks", `{"desired-state":["running"]}`, 4},
		{"/tasks", `{"desired-state":["Shutdown"]}`, 1},
		{"/tasks", `{"desired-state":["running","shutdown"]}`, 5},
		{"/tasks", `{"_up-to-date":["true"]}`, 4},
		{"/tasks", `{"label":["team=a"]}`, 2},
		{"/tasks", `{"label":["own"]}`, 1},
		{"/tasks", `{"label":["own","team=a"]}`, 1},
		{"/tasks", `{"runtime":["attachment"]}`, 0},
		{"/networks", `{}`, 3},
		{"/networks", `{"name":["app"]}`, 2},
		{"/networks", `{"name":["^app$"]}`, 1},
		{"/networks", `{"id":["` + network1 + `"]}`, 1},
		{"/networks", `{"idOrName":["` + network1[:9] + `"]}`, 1},
		{"/networks", `{"idOrName":["app"]}`, 1},
		{"/networks", `{"label":["tier=front"]}`, 1},
		{"/networks", `{"driver":["bridge"]}`, 0},
		{"/networks", `{"driver":["overlay"],"scope":["swarm"]}`, 3},
		{"/networks", `{"scope":["local"]}`, 0},
		{"/networks", `{"type":["builtin"]}`, 0},
		{"/networks", `{"type":["builtin","custom"]}`, 3},
		{"/networks", `{"dangling":["true"]}`, 1},
		{"/networks", `{"dangling":["0"]}`, 2},
	} {
		for _, version := range []string{"", "/v1.24"} {
			if got := answer[[]any](t, h, 200, "GET", version+c.target+query(c.filters), ""); len(got) != c.want {
				t.Errorf("%s%s %s: %d found, want %d", version, c.target, c.filters, len(got), c.want)
			}
		}
	}
}

// A prune takes what nothing uses, as far as its filters let it, and never the
// ingress network.
func TestPrune(t *testing.T) {
	f, h := populated(t)
	answer[any](t, h, 201, "POST", "/networks/create", `{"Name":"old","Driver":"overlay","Labels":{"age":"old"}}`)
	f.networks[3].CreatedAt = time.Now().Add(-time.Hour)
	for _, c := range []struct{ filters, want string }{
		{`{"until":["2h"]}`, ""},
		{`{"label":["age=new"]}`, ""},
		{`{"label!":["keep"],"until":["30m"]}`, "old"},
		{`{"label!":["keep=yes"]}`, ""},
		{`{}`, "apple"},
		{`{}`, ""},
	} {
		report := answer[network.PruneReport](t, h, 200, "POST", "/networks/prune"+query(c.filters), "")
		if got := strings.Join(report.NetworksDeleted, " "); got != c.want {
			t.Errorf("%s: pruned %q, want %q", c.filters, got, c.want)
		}
	}
	message(t, h, 400, "POST", "/networks/prune"+query(`{"until":["1h","2h"]}`), "")
	if len(f.networks) != 2 {
		t.Errorf("left: %+v", f.networks)
	}
}

// A network is shown with this node's endpoints, and on request with all services,
// tasks and peers, each with the addresses that it has there.
func TestNetworkInspect(t *testing.T) {
	f, h := populated(t)
	f.tasks[1].Status.ContainerStatus = nil
	f.tasks[1].NodeID = f.nodeID
	plain := answer[network.Inspect](t, h, 200, "GET", "/networks/app", "")
	if len(plain.Containers) != 1 || plain.Services != nil || plain.Peers != nil {
		t.Errorf("plain: %+v", plain)
	}
	if got := plain.Containers[f.tasks[1].ID]; got.Name != "web.2."+f.tasks[1].ID || got.IPv4Address.String() != "10.0.1.11/24" {
		t.Errorf("endpoint: %+v", got)
	}
	verbose := answer[network.Inspect](t, h, 200, "GET", "/networks/"+plain.ID[:10]+"?verbose=1&scope=swarm", "")
	web := verbose.Services["web"]
	if len(verbose.Services) != 1 || web.VIP.String() != "10.0.1.2" || len(web.Tasks) != 1 || web.Tasks[0].EndpointIP.String() != "10.0.1.11" ||
		web.Tasks[0].Info["Host IP"] != "10.99.0.1" || len(verbose.Peers) != 1 || verbose.Peers[0].IP.String() != "10.99.0.1" {
		t.Errorf("verbose: %+v", verbose)
	}
	if ipam := verbose.IPAM.Config; len(ipam) != 1 || ipam[0].Subnet.String() != "10.0.1.0/24" || ipam[0].Gateway.String() != "10.0.1.1" || verbose.Labels["tier"] != "front" {
		t.Errorf("shape: %+v", verbose.Network)
	}
	f.networks[1] = swarm.Network{ID: "bare", Spec: swarm.NetworkSpec{DriverConfiguration: &swarm.Driver{Name: "overlay", Options: map[string]string{"encrypted": ""}}}}
	bare := answer[network.Inspect](t, h, 200, "GET", "/networks/bare", "")
	if _, ok := bare.Options["encrypted"]; !ok || bare.Driver != "overlay" || bare.Scope != "swarm" || bare.IPAM.Driver != "default" {
		t.Errorf("without what the managers add: %+v", bare)
	}
}

// A handler of others can stream: what it flushes is at the client before it ends,
// found by type or through http.ResponseController; and it can take the connection.
func TestExtraStreams(t *testing.T) {
	hold := make(chan struct{})
	t.Cleanup(func() { close(hold) })
	ways := map[string]func(http.ResponseWriter){
		"flusher":    func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"controller": func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() },
		"hijack": func(w http.ResponseWriter) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
				_ = conn.Close()
			}
		},
	}
	client := dial(listen(t, api.NewHandler(api.Config{Local: newFake(), Log: slog.New(slog.DiscardHandler), Extra: map[string]http.Handler{
		"GET /netd/v1/{way}": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ways[r.PathValue("way")](w)
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}),
	}})))
	for way := range ways {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/netd/v1/"+way, nil)
		resp, err := client.Do(r)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %v %v", way, resp, err)
		}
		_ = resp.Body.Close()
	}
}

// What a list shows is what inspecting each of its objects shows.
func TestListsAgreeWithInspect(t *testing.T) {
	_, h := populated(t)
	for _, kind := range []string{"/nodes", "/services", "/tasks", "/networks"} {
		for _, listed := range answer[[]map[string]any](t, h, 200, "GET", kind, "") {
			id, _ := listed["ID"].(string)
			if kind == "/networks" {
				id, _ = listed["Id"].(string)
			}
			inspected := answer[map[string]any](t, h, 200, "GET", kind+"/"+id, "")
			delete(inspected, "Containers")
			a, _ := json.Marshal(listed)
			b, _ := json.Marshal(inspected)
			if !slices.Equal(a, b) {
				t.Errorf("%s/%s: listed %s\ninspected %s", kind, id, a, b)
			}
		}
	}
}
