package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"netd"
)

// service is a create's body with one part replaced.
func service(part string) string {
	return `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"}}` + part + `}`
}

// bad is a request that must be refused.
type bad struct {
	status             int
	page, body, expect string
}

// Bad input gets the status and the words that Docker gives it, and changes
// nothing.
func TestBadInput(t *testing.T) {
	f := newSwarm(t)
	h := handler(f, io.Discard)
	answer[any](t, h, 201, "POST", "/services/create", `{"Name":"taken","TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"}}}`)
	answer[any](t, h, 201, "POST", "/networks/create", `{"Name":"taken","Driver":"overlay"}`)
	before, _ := json.Marshal([]any{f.cluster, f.nodes, f.networks, f.services})
	for _, c := range slices.Concat(badJSON(), badServices(), badNetworks(), badSwarm(), badFilters()) {
		method, target, _ := strings.Cut(c.page, " ")
		if got := message(t, h, c.status, method, target, c.body); !strings.Contains(got, c.expect) {
			t.Errorf("%s %.80s: %q, want %q", c.page, c.body, got, c.expect)
		}
	}
	if after, _ := json.Marshal([]any{f.cluster, f.nodes, f.networks, f.services}); !bytes.Equal(before, after) {
		t.Errorf("something changed:\n%s\n%s", before, after)
	}
}

func badJSON() []bad {
	return []bad{
		{400, "POST /services/create", `{"Name":`, "invalid JSON: unexpected EOF"},
		{400, "POST /services/create", `{"Name":"web"} x`, "unexpected content after JSON"},
		{400, "POST /services/create", `{"Name":"web"}]`, "unexpected content after JSON"},
		{400, "POST /services/create", ` `, "invalid JSON: got EOF while reading request body"},
		{400, "POST /services/create", `{"Name":5}`, "invalid JSON: json: cannot unmarshal number into Go struct field"},
		{400, "POST /services/create", `[]`, "invalid JSON: json: cannot unmarshal array"},
		{400, "POST /services/create", service(`,"Mode":{"Replicated":{"Replicas":-1}}`), "cannot unmarshal number -1 into Go struct field"},
		{400, "POST /services/create", service(`,"Mode":{"Replicated":{"Replicas":18446744073709551616}}`), "cannot unmarshal number 18446744073709551616"},
		{400, "POST /services/create", service(`,"EndpointSpec":{"Ports":[{"TargetPort":"x"}]}`), "cannot unmarshal string"},
		{400, "POST /services/create", service(`,"EndpointSpec":{"Ports":[{"TargetPort":4294967296}]}`), "cannot unmarshal number"},
		{400, "POST /services/create", service(`,"EndpointSpec":{"Ports":[{"TargetPort":70000}]}`), "port out of range"},
		{400, "POST /services/create", strings.Repeat("[", 20000), "invalid JSON"},
		{400, "POST /services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x","DNSConfig":{"Nameservers":["not an address"]}}}}`, "invalid JSON: invalid IP address: not an address"},
		{413, "POST /services/create", `{"Name":"` + strings.Repeat("a", 5<<20) + `"}`, "request body too large"},
		{413, "POST /services/create", `{"Name":"web"}` + strings.Repeat(" ", 5<<20), "request body too large"},
	}
}

func badServices() []bad {
	return []bad{
		{400, "POST /services/create", `null`, "name must be valid as a DNS name component"},
		{400, "POST /services/create", `{"Name":"web"}`, "image reference must be provided"},
		{400, "POST /services/create", `{"Name":"w.b","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}`, "name must be valid"},
		{409, "POST /services/create", `{"Name":"taken","TaskTemplate":{"ContainerSpec":{"Image":"netd/echo"}}}`, "name conflicts with an existing object: service taken already exists"},
		{404, "POST /services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x"},"Networks":[{"Target":"nope"}]}}`, "network nope not found"},
		{501, "POST /services/create", `{"Name":"web","TaskTemplate":{"Runtime":"plugin","PluginSpec":{}}}`, "no engine plugins"},
		{400, "POST /services/create", `{"Name":"web","TaskTemplate":{"Runtime":"attachment"}}`, `invalid task spec: spec type "attachment" not supported`},
		{400, "POST /services/create", `{"Name":"web","TaskTemplate":{"Runtime":"magic"}}`, `unsupported runtime type: "magic"`},
		{400, "POST /services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{},"PluginSpec":{}}}`, "mismatched runtime"},
		{400, "POST /services/taken/update", `{}`, "invalid service version ''"},
		{400, "POST /services/taken/update?version=x", `{}`, "invalid service version 'x'"},
		{400, "POST /services/taken/update?version=-1", `{}`, "invalid service version '-1'"},
		{500, "POST /services/taken/update?version=1", `{}`, "update out of sequence"},
		{400, "POST /services/taken/update?version=1&rollback=next", `{}`, "unrecognized rollback option next"},
		{400, "POST /services/taken/update?version=1&registryAuthFrom=x", `{}`, "unsupported registryAuthFrom value"},
		{404, "POST /services/nope/update?version=1", `{}`, "service nope not found"},
		{404, "GET /services/nope", "", "service nope not found"},
		{404, "DELETE /services/nope", "", "service nope not found"},
		{404, "GET /services/nope/logs?stdout=1", "", "service nope not found"},
		{404, "GET /tasks/nope/logs?stdout=1", "", "task nope not found"},
		{501, "GET /services/taken/logs?stdout=1", "", "logs of service taken"},
		{400, "GET /services/taken?insertDefaults=maybe", "", "invalid value for insertDefaults: maybe"},
		{400, "GET /services?status=maybe", "", "invalid value for status: maybe"},
	}
}

func badNetworks() []bad {
	return []bad{
		{409, "POST /networks/create", `{"Name":"taken","Driver":"overlay"}`, "network with name taken already exists"},
		{400, "POST /networks/create", `{"Name":"n","Driver":"overlay","IPAM":{"Config":[{"Subnet":"10.0.0.0"}]}}`, "invalid JSON: invalid CIDR address: 10.0.0.0"},
		{400, "POST /networks/create", `{"Name":"n","Driver":"overlay","IPAM":{"Config":[{"Gateway":"x"}]}}`, "invalid JSON: invalid IP address: x"},
		{400, "POST /networks/create", `{"Driver":"overlay"}`, "name must be valid"},
		{501, "POST /networks/create", `{"Name":"n"}`, `driver "bridge" needs a Docker Engine`},
		{501, "POST /networks/create", `{"Name":"n","Driver":"macvlan"}`, `driver "macvlan" needs a Docker Engine`},
		{400, "POST /networks/create", `{"Name":"n","Driver":"overlay","Scope":"local"}`, "has scope swarm"},
		{501, "POST /networks/create", `{"Name":"n","Driver":"overlay","ConfigOnly":true}`, "config-only"},
		{501, "POST /networks/create", `{"Name":"n","Driver":"overlay","EnableIPv4":false}`, "without IPv4"},
		{403, "POST /networks/create", `{"Name":"bridge","Driver":"overlay"}`, "predefined bridge network"},
		{404, "GET /networks/nope", "", "network nope not found"},
		{404, "GET /networks/taken?scope=local", "", "network taken not found"},
		{404, "DELETE /networks/nope", "", "network nope not found"},
		{400, "GET /networks/taken?verbose=maybe", "", "invalid value for verbose: maybe"},
	}
}

func badSwarm() []bad {
	return []bad{
		{404, "GET /nodes/nope", "", "node nope not found"},
		{400, "DELETE /nodes/n2", "", "is not down and can't be removed"},
		{400, "POST /nodes/n2/update?version=x", `{}`, "invalid node version 'x'"},
		{500, "POST /nodes/n2/update?version=1", `{}`, "update out of sequence"},
		{400, "POST /swarm/update", `{}`, "invalid swarm version ''"},
		{400, "POST /swarm/update?version=1&rotateWorkerToken=maybe", `{}`, "invalid value for rotateWorkerToken: maybe"},
		{400, "POST /swarm/update?version=1&rotateManagerToken=maybe", `{}`, "invalid value for rotateManagerToken: maybe"},
		{400, "POST /swarm/update?version=1&rotateManagerUnlockKey=maybe", `{}`, "invalid value for rotateManagerUnlockKey: maybe"},
		{501, "POST /swarm/update?version=1&rotateManagerUnlockKey=1", `{}`, "autolock is not supported"},
		{501, "POST /swarm/update?version=1", `{"EncryptionConfig":{"AutoLockManagers":true}}`, "autolock is not supported"},
		{400, "POST /swarm/update?version=1", `{"Name":"mine"}`, `swarm spec must be named "default"`},
		{503, "POST /swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`, "This node is already part of a swarm"},
		{503, "POST /swarm/join", `{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":["10.0.0.1:2377"]}`, "This node is already part of a swarm"},
		{503, "POST /swarm/leave", "", "participating as a manager"},
		{404, "GET /secrets/nope", "", "secret nope not found"},
		{501, "POST /configs/create", `{}`, "configs are not supported"},
	}
}

func badFilters() []bad {
	return []bad{
		{400, "GET /services" + query(`{"colour":["red"]}`), "", "invalid filter 'colour'"},
		{400, "GET /services" + query(`{"name":"web"}`), "", "invalid filter"},
		{400, "GET /services" + query(`nonsense`), "", "invalid filter"},
		{400, "GET /nodes" + query(`{"role":["boss"]}`), "", "Invalid role filter: 'boss'"},
		{400, "GET /nodes" + query(`{"membership":["x"]}`), "", "Invalid membership filter: 'x'"},
		{400, "GET /tasks" + query(`{"desired-state":["x"]}`), "", "Invalid desired-state filter: 'x'"},
		{404, "GET /tasks" + query(`{"service":["nope"]}`), "", "service nope not found"},
		{404, "GET /tasks" + query(`{"node":{"nope":true}}`), "", "node nope not found"},
		{400, "GET /networks" + query(`{"type":["x"]}`), "", "invalid filter: 'type'='x'"},
		{400, "GET /networks" + query(`{"dangling":["x"]}`), "", "invalid filter 'dangling=[x]'"},
		{400, "GET /networks" + query(`{"x":[]}`), "", "invalid filter 'x'"},
		{400, "POST /networks/prune" + query(`{"until":["yesterday"]}`), "", "failed to parse value as time or duration"},
		{400, "GET /events" + query(`{"x":["y"]}`), "", "invalid filter 'x'"},
		{400, "GET /events?since=yesterday", "", "failed to parse value as time or duration"},
		{400, "GET /events?since=20&until=10", "", "cannot be after `until` time"},
	}
}

// What is wrong with an init or a join is said before the node is touched.
func TestBadInit(t *testing.T) {
	f := newFake()
	h := handler(f, io.Discard)
	for _, c := range []bad{
		{400, "/swarm/init", "", `invalid ListenAddr "": invalid empty address`},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","Spec":{"Name":"mine"}}`, `swarm spec must be named "default"`},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DataPathPort":80}`, "Datapath port number is not in valid range (1024-49151) : 80"},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","Availability":"maybe"}`, `invalid Availability: "maybe"`},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":["10.0.0.0"]}`, "invalid CIDR address: 10.0.0.0"},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":["fd00::/48"]}`, "want an IPv4 prefix"},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":["10.0.0.0/8","10.1.0.0/16"]}`, "overlaps with"},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DefaultAddrPool":["10.0.0.0/16"],"SubnetSize":8}`, "Subnet size is too small for pool: 8"},
		{400, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","SubnetSize":31}`, "subnet size is out of range: 31"},
		{501, "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","AutoLockManagers":true}`, "autolock is not supported"},
		{400, "/swarm/join", `{"RemoteAddrs":["10.0.0.1"]}`, `invalid ListenAddr ""`},
		{400, "/swarm/join", `{"ListenAddr":"0.0.0.0:2377"}`, "at least 1 RemoteAddr is required to join"},
		{400, "/swarm/join", `{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":[""]}`, `invalid remoteAddr ""`},
		{400, "/swarm/join", `{"ListenAddr":"0.0.0.0:2377","RemoteAddrs":["10.0.0.1"],"JoinToken":"x"}`, "A valid join token is necessary to join this cluster"},
		{503, "/swarm/leave", "", "This node is not part of a swarm"},
		{503, "/swarm/unlock", `{}`, "This node is not a swarm manager"},
	} {
		if got := message(t, h, c.status, "POST", c.page, c.body); !strings.Contains(got, c.expect) {
			t.Errorf("%s %s: %q, want %q", c.page, c.body, got, c.expect)
		}
	}
	if f.role != "" {
		t.Error("the node is in a swarm now")
	}
	// What came in with a version and what the client could not know is dropped.
	answer[string](t, h, 200, "POST", "/v1.30/swarm/init", `{"ListenAddr":"0.0.0.0:2377","DataPathPort":80,"SubnetSize":99}`)
}

// A node that is no manager refuses every call of the managers with 503, lists no
// networks, and finds none.
func TestNoManager(t *testing.T) {
	h := handler(newFake(), io.Discard)
	for _, page := range []string{
		"GET /swarm", "POST /swarm/update?version=1", "GET /swarm/unlockkey", "GET /nodes", "GET /nodes/x", "DELETE /nodes/x", "POST /nodes/x/update?version=1",
		"GET /services", "POST /services/create", "GET /services/x", "DELETE /services/x", "POST /services/x/update?version=1", "GET /services/x/logs",
		"GET /tasks", "GET /tasks/x", "GET /tasks/x/logs", "DELETE /networks/x", "GET /secrets", "GET /configs/x", "POST /secrets/create",
	} {
		method, target, _ := strings.Cut(page, " ")
		if got := message(t, h, 503, method, target, ""); !strings.HasPrefix(got, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join"`) {
			t.Errorf("%s: %q", page, got)
		}
	}
	message(t, h, 503, "POST", "/networks/create", `{"Name":"app","Driver":"overlay"}`)
	message(t, h, 404, "GET", "/networks/app", "")
	if got := answer[[]any](t, h, 200, "GET", "/networks", ""); len(got) != 0 {
		t.Errorf("networks: %v", got)
	}
	answer[any](t, h, 200, "POST", "/networks/prune", "")
}

// Each kind of error has its status, also inside another error.
func TestErrorStatus(t *testing.T) {
	f := newSwarm(t)
	h := handler(f, io.Discard)
	for kind, status := range map[error]int{
		netd.ErrInvalid: 400, netd.ErrForbidden: 403, netd.ErrNotFound: 404, netd.ErrExists: 409, netd.ErrUnavailable: 503, netd.ErrUnsupported: 501,
		netd.ErrOutOfSequence: 500, errors.New("anything"): 500, context.DeadlineExceeded: 503,
	} {
		for _, f.failure = range []error{netd.Errorf(kind, "the <reason> & more"), fmt.Errorf("list nodes: %w", kind)} {
			if got := message(t, h, status, "GET", "/nodes", ""); !strings.Contains(got, f.failure.Error()) {
				t.Errorf("%v: %q", f.failure, got)
			}
		}
	}
}

// Only JSON is taken for JSON.
func TestContentType(t *testing.T) {
	h := handler(newSwarm(t), io.Discard)
	for given, want := range map[string]string{
		"": "malformed Content-Type header ()", "text/plain": "unsupported Content-Type header (text/plain): must be 'application/json'",
		"a b": "malformed Content-Type header (a b)", "application/json; charset=utf-8": "",
	} {
		r := httptest.NewRequestWithContext(t.Context(), "POST", "/networks/create", strings.NewReader(`{"Name":"`+strings.ReplaceAll(given, " ", "")+`n","Driver":"overlay"}`))
		if given != "" {
			r.Header.Set("Content-Type", given)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if want == "" && w.Code != 201 || want != "" && (w.Code != 400 || !strings.Contains(w.Body.String(), want)) {
			t.Errorf("%q: %d %s", given, w.Code, w.Body)
		}
	}
}

// A panic of a handler is a 500 and a log line, and the next request is answered.
func TestPanic(t *testing.T) {
	f, log := newSwarm(t), &bytes.Buffer{}
	h := handler(f, log)
	f.services = append(f.services, swarmService{ID: "x"}) // has neither mode: the fake's count of it panics
	if got := message(t, h, 500, "GET", "/services?status=true", ""); !strings.Contains(got, "internal error") || strings.Contains(got, "nil pointer") {
		t.Errorf("message %q", got)
	}
	for _, part := range []string{"api handler panicked", "nil pointer", "path=/services", "stack="} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("%q is not in the log: %s", part, log)
		}
	}
	if w := request(t, h, "GET", "/_ping", ""); w.Code != http.StatusOK {
		t.Errorf("after the panic: %d", w.Code)
	}
}
