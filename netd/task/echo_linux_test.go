//go:build linux

package task

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// The flags of netd echo, and what is wrong with others.
func TestParseEcho(t *testing.T) {
	for args, want := range map[string]string{
		"":                                       "[80] 7 false 0s 0s",
		"--port 9000 --port=9001":                "[9000 9001] 7 false 0s 0s",
		"--tcp-port 0 --check":                   "[80] 0 true 0s 0s",
		"-delay 1s -fail-after 2s -tcp-port=700": "[80] 700 false 1s 2s",
	} {
		o, err := parseEcho(strings.Fields(args))
		if got := fmt.Sprint(o.ports, o.tcpPort, o.check, o.delay, o.failAfter); err != nil || got != want {
			t.Errorf("%q: got %s, %v, want %s", args, got, err, want)
		}
	}
	for args, want := range map[string]string{
		"--port 0": "from 1 to 65535", "--port x": "from 1 to 65535", "--tcp-port 70000": "at most 65535",
		"extra": `no argument "extra"`, "--nonsense": "not defined",
	} {
		if _, err := parseEcho(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", args, err, want)
		}
	}
}

// serveEcho runs an echo server in a namespace of its own. The stop function
// begins its end; the channel then gives its error.
func serveEcho(t *testing.T, o echoOptions) (ns string, stop func(), end <-chan error) {
	t.Helper()
	ns = nettest.NS(t)
	var s *echo
	ctx, cancel := context.WithCancel(context.Background())
	err := netns.Do(ns, func() (err error) {
		s, err = listenEcho(ctx, o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.who = identityLine{"web.1", "n1"}
	ended := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { ended <- s.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return ns, cancel, ended
}

// in returns a client whose connections begin in the namespace.
func in(ns string) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			return nettest.Dial(ns, network, "", addr)
		},
	}}
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Every port and protocol answers with who serves whom.
func TestRootEchoAnswers(t *testing.T) {
	ns, _, _ := serveEcho(t, echoOptions{ports: []uint16{80, 9000}, tcpPort: 7})
	c := in(ns)
	for _, port := range []int{80, 9000} {
		got := get(t, c, fmt.Sprintf("http://127.0.0.1:%d/", port))
		if !strings.HasPrefix(got, "task=web.1 node=n1 client=127.0.0.1:") || !strings.HasSuffix(got, "\n") {
			t.Errorf("HTTP on %d: got %q", port, got)
		}
		if got, err := nettest.Ask(ns, "udp", "", fmt.Sprintf("127.0.0.1:%d", port)); err != nil || !strings.HasPrefix(got, "task=web.1 node=n1 client=127.0.0.1:") || !strings.HasSuffix(got, " ?") {
			t.Errorf("UDP on %d: got %q, %v", port, got, err)
		}
	}
	var fields map[string]string
	if err := json.Unmarshal([]byte(get(t, c, "http://127.0.0.1/json")), &fields); err != nil || fields["task"] != "web.1" || fields["host"] != "127.0.0.1" {
		t.Errorf("JSON: got %v, %v", fields, err)
	}
	conn, err := nettest.Dial(ns, "tcp", "", "127.0.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		if got, err := nettest.AskConn(conn); got != "?" || err != nil {
			t.Errorf("line: got %q, %v", got, err)
		}
	}
	fmt.Fprintln(conn, "who")
	buf := make([]byte, 100)
	if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "task=web.1 node=n1 client="+conn.LocalAddr().String()+"\n" {
		t.Errorf("who: got %q, %v", buf[:n], err)
	}
}

// The health question is answered by a server and refused by nobody.
func TestRootAskEcho(t *testing.T) {
	ns, stop, end := serveEcho(t, echoOptions{ports: []uint16{80}})
	if err := askEcho(t.Context(), ns, 80); err != nil {
		t.Errorf("served: %v", err)
	}
	stop()
	if err := <-end; err != nil {
		t.Error(err)
	}
	if err := askEcho(t.Context(), ns, 80); !nettest.Refused(err) {
		t.Errorf("ended: %v", err)
	}
}

// /call counts what its own requests met, on new connections or on kept ones.
func TestRootEchoCall(t *testing.T) {
	r, _ := newNode(t).runs(t)
	s := Spec{ID: taskID(t, 0), Name: "web.1", Image: "netd/echo", Env: []string{"NETD_NODE=n1"}, Hosts: []string{"127.0.0.1 web"}}
	st := begins(t, r, s)
	until(t, r, s.ID, func(s Status) bool { return s.Health == HealthHealthy })
	c := in(st.NetNS)
	for _, query := range []string{"url=http://web/&n=20", "url=http://127.0.0.1/slow%3Fms=1&n=20&parallel=4&keepalive=1"} {
		var got callReport
		if err := json.Unmarshal([]byte(get(t, c, "http://127.0.0.1/call?"+query)), &got); err != nil {
			t.Fatal(err)
		}
		if got.Requests != 20 || got.OK != 20 || got.Failed != 0 || got.Error != "" || got.Tasks["web.1"] != 20 || got.Nodes["n1"] != 20 || got.Clients["127.0.0.1"] != 20 {
			t.Errorf("%s: got %+v", query, got)
		}
	}
	var bad callReport
	if err := json.Unmarshal([]byte(get(t, c, "http://127.0.0.1/call?url=http://127.0.0.1:81/&n=3")), &bad); err != nil {
		t.Fatal(err)
	}
	if bad.OK != 0 || bad.Failed != 3 || !strings.Contains(bad.Error, "refused") {
		t.Errorf("no server: got %+v", bad)
	}
	if got := get(t, c, "http://127.0.0.1/resolve?name=web"); got != `{"name":"web","addrs":["127.0.0.1"]}`+"\n" {
		t.Errorf("resolve: got %s", got)
	}
	if got := get(t, c, "http://127.0.0.1/resolve?name=nothere."); !strings.Contains(got, `"error":"lookup nothere.`) {
		t.Errorf("resolve: got %s", got)
	}
	if got := get(t, c, "http://127.0.0.1/call?n=x"); !strings.Contains(got, "want a number") {
		t.Errorf("bad number: got %s", got)
	}
}

// A server that is stopped still takes connections for a moment, asks for kept
// ones to be closed, finishes its answers and ends without an error.
func TestRootEchoDrains(t *testing.T) {
	ns, stop, end := serveEcho(t, echoOptions{ports: []uint16{80}, tcpPort: 7})
	c := in(ns)
	get(t, c, "http://127.0.0.1/") // leaves an idle connection
	held, err := nettest.Dial(ns, "tcp", "", "127.0.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := nettest.AskConn(held); err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	slow := make(chan string, 1)
	var asking sync.WaitGroup
	defer asking.Wait()
	asking.Go(func() {
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{WroteRequest: func(httptrace.WroteRequestInfo) { close(asked) }})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1/slow?ms=700", nil)
		resp, err := in(ns).Do(req)
		if err != nil {
			slow <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		slow <- fmt.Sprint(string(body), err)
	})
	<-asked
	stop()
	resp, err := c.Get("http://127.0.0.1/")
	if err != nil || !resp.Close {
		t.Errorf("while it lingers: %v, close %t", err, resp != nil && resp.Close)
	} else {
		resp.Body.Close()
	}
	if err := <-end; err != nil {
		t.Errorf("end: %v", err)
	}
	if got := <-slow; !strings.HasPrefix(got, "task=web.1 ") || !strings.HasSuffix(got, "<nil>") {
		t.Errorf("answer under way: %q", got)
	}
	if _, err := nettest.Dial(ns, "tcp", "", "127.0.0.1:80"); !nettest.Refused(err) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := io.ReadAll(held); err != nil {
		t.Errorf("held connection: %v", err)
	}
}
