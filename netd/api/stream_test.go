package api_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// dial returns a client of the API's socket.
func dial(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(socket, "unix://"))
	}}}
}

// An event stream begins at once, carries the media type of its API version, and
// ends when the client goes away or its time has come, leaving nothing behind.
func TestEvents(t *testing.T) {
	leftover := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leftover) }) // after the server's own clean-up
	client := dial(serve(t, newFake()))
	for _, c := range []struct{ target, accept, want string }{
		{"/v1.41/events", "", "application/json"},
		{"/v1.41/events", "application/x-ndjson", "application/json"},
		{"/events", "application/jsonl", "application/jsonl"},
		{"/v1.52/events", "text/html, application/json-seq;q=1", "application/json-seq"},
		{"/events", "nonsense;;", "application/json"},
	} {
		ctx, leave := context.WithCancel(t.Context())
		r, _ := http.NewRequestWithContext(ctx, "GET", "http://localhost"+c.target+query(`{"type":{"service":true}}`), nil)
		r.Header.Set("Accept", c.accept)
		resp, err := client.Do(r) // returns with the header, before any event
		if err != nil {
			t.Fatal(err)
		}
		if got := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || got != c.want {
			t.Errorf("%s: %d %q, want %q", c.target, resp.StatusCode, got, c.want)
		}
		leave()
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: the stream ended by itself", c.target)
		}
		_ = resp.Body.Close()
	}
	start := time.Now()
	for _, until := range []string{"0s", "10", "2020-01-01T00:00:00Z", "-100ms"} {
		r, _ := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/events?until="+until, nil)
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || len(body) != 0 {
			t.Errorf("until %s: %q %v", until, body, err)
		}
		_ = resp.Body.Close()
	}
	if took := time.Since(start); took < 100*time.Millisecond {
		t.Errorf("a stream until 100 ms from now ended after %s", took)
	}
}

// The log has one line for each request, at debug, without the query or any body:
// those may hold secrets.
func TestRequestLog(t *testing.T) {
	log := &bytes.Buffer{}
	h := handler(newFake(), log)
	request(t, h, "POST", "/v1.41/swarm/join?token=SECRET1", `{"JoinToken":"SECRET2"}`)
	line := log.String()
	if strings.Count(line, "\n") != 1 || strings.Contains(line, "SECRET") {
		t.Errorf("log: %s", line)
	}
	for _, part := range []string{"level=DEBUG", "method=POST", "path=/v1.41/swarm/join", "status=400", "took=", "err="} {
		if !strings.Contains(line, part) {
			t.Errorf("%q is missing in %s", part, line)
		}
	}
}
