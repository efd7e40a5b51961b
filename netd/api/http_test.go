package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

// request sends one request to a handler. A body goes as JSON.
func request(t *testing.T, h http.Handler, method, target, body string) *httptest.ResponseRecorder {
	t.Helper()
	var r *http.Request
	if body == "" {
		r = httptest.NewRequestWithContext(t.Context(), method, target, nil)
	} else {
		r = httptest.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// answer sends a request that must give the status, and decodes its body.
func answer[T any](t *testing.T, h http.Handler, status int, method, target, body string) T {
	t.Helper()
	w := request(t, h, method, target, body)
	if w.Code != status {
		t.Fatalf("%s %s: status %d, want %d: %s", method, target, w.Code, status, w.Body)
	}
	var out T
	if w.Body.Len() > 0 {
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, target, err, w.Body)
		}
	}
	return out
}

// message sends a request that must be refused, and returns Docker's error text.
func message(t *testing.T, h http.Handler, status int, method, target, body string) string {
	t.Helper()
	w := request(t, h, method, target, body)
	var out map[string]string
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || len(out) != 1 || out["message"] == "" {
		t.Errorf("%s %s: body %q is no error", method, target, w.Body)
	}
	if w.Code != status || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%s %s: status %d (%s), want %d: %s", method, target, w.Code, w.Header().Get("Content-Type"), status, out["message"])
	}
	return out["message"]
}

func query(filters string) string { return "?filters=" + url.QueryEscape(filters) }

// Every response, also an error, says what the daemon is and which API it speaks.
func TestHeaders(t *testing.T) {
	h := handler(newFake(), io.Discard)
	for _, target := range []string{"/_ping", "/v1.24/version", "/nodes", "/nowhere", "/v1.99/info"} {
		header := request(t, h, "GET", target, "").Header()
		for name, want := range map[string]string{"Api-Version": "1.56", "Server": "Docker/0.1.0 (linux)", "Ostype": "linux", "Docker-Experimental": "false"} {
			if got := header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", target, name, got, want)
			}
		}
	}
}

// Old versions are never refused, newer ones than ours are, in Docker's words.
func TestVersions(t *testing.T) {
	h := handler(newFake(), io.Discard)
	for target, want := range map[string]int{
		"/_ping": 200, "/v1.0/_ping": 200, "/v1.24/_ping": 200, "/v1.41/_ping": 200, "/v1.56/_ping": 200, "/v0.9/_ping": 200,
		"/v1.57/_ping": 400, "/v2.0/_ping": 400, "/v1.99999999999999999999/_ping": 400,
		"/v1/_ping": 404, "/v1.41": 404, "/v1.41/": 404, "/v1.41.1/_ping": 404, "/vx.y/_ping": 404, "/v1.41//_ping": 404, "/v1.41/v1.41/_ping": 404,
	} {
		w := request(t, h, "GET", target, "")
		if w.Code != want {
			t.Errorf("GET %s: status %d, want %d", target, w.Code, want)
		}
		if want == 400 && !strings.Contains(w.Body.String(), "is too new. Maximum supported API version is 1.56") {
			t.Errorf("GET %s: %s", target, w.Body)
		}
	}
}

// A ping says OK and where the node stands; HEAD says it without a body.
func TestPing(t *testing.T) {
	f := newFake()
	h := handler(f, io.Discard)
	for _, step := range []struct {
		role   swarm.NodeRole
		header string
	}{{"", "inactive"}, {swarm.NodeRoleWorker, "active/worker"}, {swarm.NodeRoleManager, "active/manager"}} {
		f.role = step.role
		get, head := request(t, h, "GET", "/_ping", ""), request(t, h, "HEAD", "/_ping", "")
		if get.Body.String() != "OK" || head.Body.Len() != 0 || get.Code+head.Code != 400 {
			t.Errorf("GET %d %q, HEAD %d %q", get.Code, get.Body, head.Code, head.Body)
		}
		for _, header := range []http.Header{get.Header(), head.Header()} {
			if header.Get("Swarm") != step.header || header.Get("Pragma") != "no-cache" || !strings.HasPrefix(header.Get("Content-Type"), "text/plain") {
				t.Errorf("ping of %q: %v", step.role, header)
			}
		}
	}
}

// What netd does not know at all is a page that is not found, as JSON; what only
// an engine can do is refused with the reason.
func TestNoSuchPage(t *testing.T) {
	h := handler(newSwarm(t), io.Discard)
	for _, page := range []string{"GET /", "GET /nowhere", "POST /info", "PATCH /services", "GET /services/", "GET /services/a/b/c", "GET /networks/../info", "GET /distribution/x", "OPTIONS *"} {
		method, target, _ := strings.Cut(page, " ")
		if got := message(t, h, 404, method, target, ""); got != "page not found" {
			t.Errorf("%s: %q", page, got)
		}
	}
	for page, status := range map[string]int{
		"POST /containers/create?name=x": 501, "POST /images/create?fromImage=x": 501, "POST /build": 501, "POST /volumes/create": 501,
		"POST /session": 501, "POST /auth": 501, "POST /networks/ingress/connect": 501, "POST /networks/ingress/disconnect": 501, "POST /plugins/pull": 501,
		"GET /containers/x/json": 404, "POST /containers/x/start": 404, "DELETE /containers/x": 404, "POST /exec/x/start": 404, "GET /containers/x/logs": 404,
		"GET /images/a/b:c/json": 404, "DELETE /images/x": 404, "POST /images/x/push": 404, "GET /volumes/x": 404, "GET /plugins/x/y/json": 404,
		"GET /distribution/busybox:latest/json": 501,
	} {
		method, target, _ := strings.Cut(page, " ")
		if got := message(t, h, status, method, target, ""); !strings.Contains(got, "no Docker Engine is attached") {
			t.Errorf("%s: %q does not say why", page, got)
		}
	}
	if got := message(t, h, 404, "GET", "/images/netd/echo:1/json", ""); !strings.HasPrefix(got, "No such image: netd/echo:1 ") {
		t.Errorf("image name: %q", got)
	}
}

// The nodes' own image needs no registry: the answer has no digest, so that the
// client keeps the name and does not warn.
func TestDistribution(t *testing.T) {
	h := handler(newFake(), io.Discard)
	for _, image := range []string{"netd/echo", "netd/echo:latest", "docker.io/netd/echo:latest"} {
		got := answer[map[string]json.RawMessage](t, h, 200, "GET", "/v1.30/distribution/"+image+"/json", "")
		if string(got["Platforms"]) != "[]" || strings.Contains(string(got["Descriptor"]), "sha256") {
			t.Errorf("%s: %s", image, got)
		}
	}
	message(t, h, 501, "GET", "/distribution/netd/echo:2/json", "")
	message(t, h, 400, "GET", "/distribution/UPPER/json", "")
}

// Handlers of others are mounted, with and without a version, and stay streams.
func TestExtra(t *testing.T) {
	h := handler(newFake(), io.Discard)
	for _, target := range []string{"/netd/v1/status", "/v1.41/netd/v1/status", "/netd/v1/"} {
		if w := request(t, h, "GET", target, ""); w.Code != 200 || !strings.HasPrefix(w.Body.String(), "/netd/v1/") {
			t.Errorf("%s: %d %s", target, w.Code, w.Body)
		}
	}
}

// Lists and maps are never null, in any list that the API has, whether the node
// is in a swarm or not.
func TestListsAreNeverNull(t *testing.T) {
	inactive, empty, full := newFake(), newFake(), newSwarm(t)
	h := handler(full, io.Discard)
	answer[any](t, handler(empty, io.Discard), 200, "POST", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`)
	answer[any](t, h, 201, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"}}}`)
	for _, f := range []*fake{inactive, empty, full} {
		h := handler(f, io.Discard)
		for _, target := range []string{
			"/nodes", "/services", "/services?status=true", "/tasks", "/networks", "/v1.24/networks", "/secrets", "/configs",
			"/containers/json", "/images/json", "/plugins", "/volumes", "/info", "/v1.24/info", "/swarm", "/system/df", "/networks" + query(`{"name":["nothing"]}`),
		} {
			w := request(t, h, "GET", target, "")
			if w.Code == 503 {
				continue
			}
			var body any
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || w.Code != 200 {
				t.Errorf("GET %s: %d %v", target, w.Code, err)
			}
			for _, path := range nulls(body, "") {
				t.Errorf("GET %s: %s is null", target, path)
			}
		}
	}
}

// nulls returns the paths of all nulls in a JSON value. An engine itself shows
// IPAM.Options, a map, so.
func nulls(v any, path string) []string {
	var out []string
	switch v := v.(type) {
	case nil:
		if !strings.HasSuffix(path, ".IPAM.Options") {
			return []string{path}
		}
	case []any:
		for i, e := range v {
			out = append(out, nulls(e, fmt.Sprintf("%s[%d]", path, i))...)
		}
	case map[string]any:
		for k, e := range v {
			out = append(out, nulls(e, path+"."+k)...)
		}
	}
	return out
}

// What the API completes for the wire it completes in a copy: the store's objects
// are shared and stay as they are.
func TestSharedObjectsStayUntouched(t *testing.T) {
	f := newSwarm(t)
	h := handler(f, io.Discard)
	answer[any](t, h, 201, "POST", "/networks/create", `{"Name":"app","Driver":"overlay"}`)
	answer[any](t, h, 201, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"},"Networks":[{"Target":"app"}]}}`)
	for range 5 { // until the tasks have come to rest
		answer[any](t, h, 200, "GET", "/tasks", "")
	}
	before, _ := json.Marshal([]any{f.cluster, f.nodes, f.networks, f.services, f.tasks})
	for _, target := range []string{"/swarm", "/nodes", "/nodes/n2", "/networks", "/networks/app?verbose=true", "/services?status=1", "/services/web", "/services/web?insertDefaults=true", "/tasks", "/tasks/" + f.tasks[0].ID, "/info"} {
		answer[any](t, h, 200, "GET", target, "")
	}
	if after, _ := json.Marshal([]any{f.cluster, f.nodes, f.networks, f.services, f.tasks}); !bytes.Equal(before, after) {
		t.Errorf("reading changed the store:\n%s\n%s", before, after)
	}
}

// The swarm is shown without the CA's key, changed, and its tokens are rotated.
func TestSwarm(t *testing.T) {
	f := newFake()
	h := handler(f, io.Discard)
	if id := answer[string](t, h, 200, "POST", "/v1.41/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DataPathPort":4789}`); id != f.nodeID {
		t.Errorf("init answers %q", id)
	}
	w := request(t, h, "GET", "/swarm", "")
	if strings.Contains(w.Body.String(), "secret key") {
		t.Error("the CA's key is shown")
	}
	got := answer[swarm.Swarm](t, h, 200, "GET", "/swarm", "")
	if got.JoinTokens.Worker == "" || got.Spec.Name != "default" {
		t.Errorf("swarm: %+v", got)
	}
	target := fmt.Sprintf("/swarm/update?version=%d&rotateWorkerToken=true&rotateManagerToken=false", got.Version.Index)
	answer[any](t, h, 200, "POST", target, `{"Name":"default","Labels":{}}`)
	if now := f.cluster.JoinTokens; now.Worker == got.JoinTokens.Worker || now.Manager != got.JoinTokens.Manager {
		t.Errorf("tokens after the rotation of one: %+v", now)
	}
	if got := message(t, h, 500, "POST", target, `{}`); !strings.Contains(got, "update out of sequence") {
		t.Errorf("stale version: %q", got)
	}
	if key := answer[swarm.UnlockKeyResponse](t, h, 200, "GET", "/swarm/unlockkey", ""); key.UnlockKey != "" {
		t.Error("there is an unlock key")
	}
	if got := message(t, h, 409, "POST", "/swarm/unlock", `{"UnlockKey":"x"}`); got != "swarm is not locked" {
		t.Errorf("unlock: %q", got)
	}
	answer[any](t, h, 200, "POST", "/swarm/leave?force=1", "")
}

// A service comes back as it went in: nothing is filled in, what is nil stays nil
// and what is empty stays empty. insertDefaults is what fills in.
func TestServiceRoundTrip(t *testing.T) {
	f := newSwarm(t)
	h := handler(f, io.Discard)
	var sent swarm.ServiceSpec
	body := `{"Name":"web","Labels":{"a":"<b>&"},"TaskTemplate":{"ContainerSpec":{"Image":"netd/echo","Args":[],"Env":["A=1"],"DNSConfig":{"Nameservers":["10.0.0.53"]},"StopGracePeriod":1},
		"RestartPolicy":{"Delay":0},"ForceUpdate":7},"Mode":{"Replicated":{"Replicas":2}},"EndpointSpec":{"Ports":[{"TargetPort":80,"PublishedPort":8080}]}}`
	if err := json.Unmarshal([]byte(body), &sent); err != nil {
		t.Fatal(err)
	}
	created := answer[swarm.ServiceCreateResponse](t, h, 201, "POST", "/services/create", body)
	got := answer[swarm.Service](t, h, 200, "GET", "/services/"+created.ID[:6], "")
	want, _ := json.Marshal(sent)
	if back, _ := json.Marshal(got.Spec); !bytes.Equal(back, want) {
		t.Errorf("sent %s\n got %s", want, back)
	}
	if w := request(t, h, "GET", "/services/web", ""); !strings.Contains(w.Body.String(), "<b>&") {
		t.Error("the text is escaped for HTML")
	}
	if got.Spec.UpdateConfig != nil || answer[swarm.Service](t, h, 200, "GET", "/services/web?insertDefaults=true", "").Spec.UpdateConfig == nil {
		t.Error("defaults are inserted when they should not be, or not when they should")
	}
	list := answer[[]swarm.Service](t, h, 200, "GET", "/services?status=true", "")
	if list[0].ServiceStatus == nil || list[0].ServiceStatus.DesiredTasks != 2 || answer[[]swarm.Service](t, h, 200, "GET", "/v1.40/services?status=true", "")[0].ServiceStatus != nil {
		t.Error("the status is missing, or there for a client that does not know it")
	}
	if w := request(t, h, "DELETE", "/services/web", ""); w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("delete: %d %s", w.Code, w.Body)
	}
}

// Clients older than 1.44 may give a service's networks at the top of the spec;
// what an old client cannot know is dropped.
func TestOldClients(t *testing.T) {
	f := newSwarm(t)
	h := handler(f, io.Discard)
	answer[network.CreateResponse](t, h, 201, "POST", "/v1.24/networks/create", `{"Name":"app","Driver":"overlay","CheckDuplicate":true}`)
	body := func(name string) string {
		return `{"Name":"` + name + `","Networks":[{"Target":"app"}],"Mode":{"Replicated":{}},"TaskTemplate":{"ContainerSpec":{"Image":"netd/echo","CapabilityAdd":["X"],"Sysctls":{"a":"b"},
			"Privileges":{"NoNewPrivileges":true},"Healthcheck":{"StartInterval":5},"OomScoreAdj":3,"Mounts":[{"TmpfsOptions":{"Options":[["a"]]}}]},
			"Placement":{"MaxReplicas":2},"Resources":{"SwapBytes":1,"Limits":{"Pids":9}}}}`
	}
	answer[any](t, h, 201, "POST", "/v1.39/services/create", body("old"))
	answer[any](t, h, 201, "POST", "/v1.56/services/create", body("new"))
	old, recent := f.services[0].Spec.TaskTemplate, f.services[1].Spec.TaskTemplate
	if len(old.Networks) != 1 || len(recent.Networks) != 0 {
		t.Errorf("networks: old %v, new %v", old.Networks, recent.Networks)
	}
	c := old.ContainerSpec
	if c.CapabilityAdd != nil || c.Sysctls != nil || c.Privileges.NoNewPrivileges || c.Healthcheck.StartInterval != 0 || c.OomScoreAdj != 0 ||
		c.Mounts[0].TmpfsOptions.Options != nil || old.Placement.MaxReplicas != 0 || old.Resources.Limits.Pids != 0 || old.Resources.SwapBytes != nil {
		t.Errorf("an old client stored what it cannot know: %+v", old)
	}
	c = recent.ContainerSpec
	if c.CapabilityAdd == nil || c.Sysctls == nil || !c.Privileges.NoNewPrivileges || c.OomScoreAdj != 3 || recent.Placement.MaxReplicas != 2 || *recent.Resources.SwapBytes != 1 {
		t.Errorf("a new client lost something: %+v", recent)
	}
	if got := answer[map[string]any](t, h, 200, "GET", "/v1.41/info", ""); got["BridgeNfIptables"] != true || got["RuncCommit"].(map[string]any)["Expected"] != "none" {
		t.Error("docker info lacks what old clients read")
	}
	if got := answer[map[string]any](t, h, 200, "GET", "/info", ""); got["BridgeNfIptables"] != nil {
		t.Error("docker info has fields that the newest API has not")
	}
}

// docker info never fails, and never lacks the Cluster of a manager: not even
// when the managers do not answer.
func TestInfoWithoutQuorum(t *testing.T) {
	f := newSwarm(t)
	f.failure = fmt.Errorf("no leader")
	info := answer[system.Info](t, handler(f, io.Discard), 200, "GET", "/info", "")
	if s := info.Swarm; !s.ControlAvailable || s.Cluster == nil || s.Error != "no leader" || s.Cluster.ID != f.cluster.ID {
		t.Errorf("swarm: %+v", info.Swarm)
	}
	if info.MemTotal == 0 || info.NCPU == 0 || info.KernelVersion == "" || info.Architecture == "" || info.OperatingSystem == "" || !slices.Contains(info.Plugins.Network, "overlay") {
		t.Errorf("the machine: %+v", info)
	}
}
