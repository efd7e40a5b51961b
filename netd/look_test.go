package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Flags may stand before, between and after the arguments.
func TestLookParse(t *testing.T) {
	for _, c := range []struct {
		args string
		rest []string
		want look
	}{
		{"", nil, look{"/run/netd/netd.sock", false}},
		{"web.1 api:80", []string{"web.1", "api:80"}, look{"/run/netd/netd.sock", false}},
		{"--json web.1 api:80", []string{"web.1", "api:80"}, look{"/run/netd/netd.sock", true}},
		{"web.1 --json api:80", []string{"web.1", "api:80"}, look{"/run/netd/netd.sock", true}},
		{"web.1 api:80 --json", []string{"web.1", "api:80"}, look{"/run/netd/netd.sock", true}},
		{"--socket a web.1 --json api:80 --socket b", []string{"web.1", "api:80"}, look{"b", true}},
	} {
		var l look
		rest, err := l.parse("trace", strings.Fields(c.args))
		if err != nil || !slices.Equal(rest, c.rest) || l != c.want {
			t.Errorf("%q: got %q %+v, %v; want %q %+v", c.args, rest, l, err, c.rest, c.want)
		}
	}
}

// answering serves fixed answers on a socket, by path.
func answering(t *testing.T, answers map[string]string, status int) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "netd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(answers[r.URL.RequestURI()]))
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
	return socket
}

// The looks print text or the answer as it came, and their exit status tells a
// script how things are.
func TestLooks(t *testing.T) {
	const (
		fine     = `{"Verdict":"HEALTHY","Version":"1","Node":"n1","Role":"worker"}`
		degraded = `{"Verdict":"DEGRADED","Reasons":["no manager answers"]}`
		broken   = `{"Verdict":"BROKEN","Reasons":["port 7946 is in use"]}`
		open     = `{"From":"web.1","To":"api:80","OK":true,"Verdict":"the way is open"}`
		shut     = `{"From":"web.1","To":"api:80","Hops":[{"Layer":"dns","Text":"no such name"}],"Verdict":"packets end at hop 1"}`
	)
	trace := "/netd/v1/trace?port=80&service=api&task=web.1"
	for _, c := range []struct {
		args, path, answer string
		status             int
		out                string
	}{
		{"status", "/netd/v1/status", fine, 0, "HEALTHY"},
		{"status", "/netd/v1/status", degraded, 1, "why: no manager answers"},
		{"status", "/netd/v1/status", broken, 2, "why: port 7946 is in use"},
		{"status --json", "/netd/v1/status", broken, 2, broken},
		{"drift", "/netd/v1/drift", `{"Objects":[]}`, 0, "0 objects differ"},
		{"drift", "/netd/v1/drift", `{"Objects":["ip link add x"]}`, 1, "ip link add x\n1 objects differ"},
		{"trace web.1 api:80", trace, open, 0, "verdict: the way is open"},
		{"trace web.1 api:80", trace, shut, 2, "FAIL dns"},
		{"trace web.1 api", "/netd/v1/trace?port=&service=api&task=web.1", open, 0, "the way is open"},
	} {
		socket := answering(t, map[string]string{c.path: c.answer}, http.StatusOK)
		var out, errOut bytes.Buffer
		status := run(append(strings.Fields(c.args), "--socket", socket), &out, &errOut)
		if status != c.status || !strings.Contains(out.String(), c.out) || errOut.Len() > 0 {
			t.Errorf("netd %s: status %d, %q, errors %q; want %d with %q", c.args, status, &out, &errOut, c.status, c.out)
		}
	}
}

// A refusal is the daemon's own sentence, on one line; an answer that is none is
// an error too.
func TestLookErrors(t *testing.T) {
	for answer, want := range map[string]string{
		`{"message":"This node is not part of a swarm"}`: "netd drift: This node is not part of a swarm\n",
		"not found\n": "netd drift: not found\n",
	} {
		socket := answering(t, map[string]string{"/netd/v1/drift": answer}, http.StatusServiceUnavailable)
		var out, errOut bytes.Buffer
		if status := run([]string{"drift", "--socket", socket}, &out, &errOut); status != 1 || errOut.String() != want {
			t.Errorf("got %d %q, want %q", status, &errOut, want)
		}
	}
	socket := answering(t, map[string]string{"/x": "no JSON"}, http.StatusOK)
	l := look{socket: socket}
	var v any
	if _, err := l.get(context.Background(), "/x", &v, &bytes.Buffer{}); err == nil {
		t.Error("an answer that is no JSON was taken")
	}
}
