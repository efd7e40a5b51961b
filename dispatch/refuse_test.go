package dispatch

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"netd"
	"netd/internal/nettest"
	"netd/pki"
)

// post does one raw call.
func post(t *testing.T, conf *tls.Config, to string, body io.Reader) (status int, message string, err error) {
	t.Helper()
	tr, closeConns := transport(conf, time.Second)
	defer closeConns()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, to, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var f failure
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK && strings.HasPrefix(string(text), "{") {
		err = json.Unmarshal(text, &f)
	}
	return resp.StatusCode, f.Message, err
}

// Every call but the join is refused to whoever shows no certificate, and none
// is done for a certificate of another swarm or an expired one.
func TestCertificates(t *testing.T) {
	h, other := newHub(t), newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	pinned, err := pki.PinnedTLS(h.token)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pathSession, pathRenew} {
		code, message, err := post(t, pinned, url(s.addr, path), strings.NewReader("{}"))
		if err != nil || code != http.StatusForbidden || !strings.Contains(message, "certificate") {
			t.Errorf("%s without a certificate: %d %q %v", path, code, message, err)
		}
	}
	foreign := pinned.Clone()
	foreign.Certificates = []tls.Certificate{other.cert(t, "n1", pki.Worker)}
	expired := pinned.Clone()
	key, csr, _ := pki.NewKey()
	cert, err := h.ca.Sign(csr, pki.Subject{Node: "n1", Role: pki.Worker, Cluster: cluster}, time.Hour, time.Now().Add(-2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pki.Certificate(cert, key, h.ca)
	if err != nil {
		t.Fatal(err)
	}
	expired.Certificates = []tls.Certificate{pair}
	for name, conf := range map[string]*tls.Config{"foreign": foreign, "expired": expired} {
		for _, path := range []string{pathSession, pathRenew, pathJoin} {
			if code, _, err := post(t, conf, url(s.addr, path), strings.NewReader("{}")); err == nil {
				t.Errorf("%s with a %s certificate: %d", path, name, code)
			}
		}
	}
	good := pki.ClientTLS(h.cert(t, "n1", pki.Worker), h.ca)
	for _, path := range []string{"/", "/v1/raft", "/v1/session/", "//v1/session", "/v1/tasks"} {
		if code, _, err := post(t, good, "https://"+s.addr+path, nil); err != nil || code/100 == 2 {
			t.Errorf("%s: %d %v", path, code, err)
		}
	}
}

// Raft's protocol is spoken with managers only; any other one, and none, with nobody.
func TestRaftIsForManagers(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	layer := s.RaftLayer()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := layer.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- conn
		}
	}()
	dial := func(cert *tls.Certificate, protos ...string) (net.Conn, error) {
		conf := pki.ClientTLS(tls.Certificate{}, h.ca)
		conf.Certificates = nil
		if cert != nil {
			conf.Certificates = []tls.Certificate{*cert}
		}
		conf.NextProtos = protos
		return tls.Dial("tcp", s.addr, conf)
	}
	worker, manager := h.cert(t, "n1", pki.Worker), h.cert(t, "m2", pki.Manager)
	for name, tc := range map[string]struct {
		cert   *tls.Certificate
		protos []string
	}{
		"worker":         {&worker, []string{"raft"}},
		"no certificate": {nil, []string{"raft"}},
		"no protocol":    {&manager, nil},
		"other protocol": {&manager, []string{"http/1.1"}},
	} {
		conn, err := dial(tc.cert, tc.protos...)
		if err != nil {
			continue
		}
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: read %d, %v", name, n, err)
		}
		conn.Close()
	}
	mine, err := layer.Dial("127.0.0.1:1", time.Second)
	if err == nil {
		mine.Close()
		t.Error("dialled a closed port")
	}
	up, err := dial(&manager, "raft")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	conn := <-accepted
	if _, err := io.WriteString(up, "hello"); err != nil {
		t.Error(err)
	}
	hello := make([]byte, 5)
	if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != "hello" {
		t.Errorf("%q %v", hello, err)
	}
	conn.Close()
	s.end(t)
	if err := layer.Close(); err != nil {
		t.Error(err)
	}
	if conn, open := <-accepted; open {
		t.Errorf("raft was given %v", conn.RemoteAddr())
	}
}

// A message that is too long is refused and not read to its end.
func TestOversize(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	pinned, err := pki.PinnedTLS(h.token)
	if err != nil {
		t.Fatal(err)
	}
	long := `{"Token":"` + strings.Repeat("x", maxCall) + `"}`
	code, message, err := post(t, pinned, url(s.addr, pathJoin), strings.NewReader(long))
	if err != nil || code != http.StatusRequestEntityTooLarge || message == "" {
		t.Errorf("long join: %d %q %v", code, message, err)
	}
	good := pki.ClientTLS(h.cert(t, "n1", pki.Worker), h.ca)
	endless := &zeroes{}
	if code, _, _ := post(t, good, url(s.addr, pathSession), endless); code != http.StatusOK {
		t.Errorf("endless report: %d", code)
	}
	if endless.n > 2*maxReport {
		t.Errorf("%d bytes of a report were read", endless.n)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reports) != 0 {
		t.Errorf("reports %v", h.reports)
	}
}

// zeroes is an endless line.
type zeroes struct{ n int }

func (z *zeroes) Read(p []byte) (int, error) {
	z.n += len(p)
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

// A node has one session: a newer one ends the older, and the manager never sees
// two at once.
func TestNewerSessionWins(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	old := h.worker(t, "n1", s.addr)
	old.wait(t, true)
	second := h.worker(t, "n1", s.addr)
	second.wait(t, true)
	old.end(t)
	second.wait(t, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(s.sessions) != 1 || h.overlap || h.attaches < 2 {
		t.Errorf("%d sessions now, %d in all, two at once: %t", len(s.sessions), h.attaches, h.overlap)
	}
}

// A node that falls silent loses its session, and with it its place on the
// manager, after three heartbeats.
func TestSilentNode(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	conf := pki.ClientTLS(h.cert(t, "n1", pki.Worker), h.ca)
	up, pipe := io.Pipe()
	defer pipe.Close()
	start := time.Now()
	code, _, err := post(t, conf, url(s.addr, pathSession), up)
	if code != http.StatusOK {
		t.Errorf("session: %d %v", code, err)
	}
	if took := time.Since(start); took < 2*heartbeat || took > 20*heartbeat {
		t.Errorf("it lasted %v", took)
	}
	nettest.Eventually(t, 5*time.Second, "detached", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.attached) > 0 {
			return errors.New("still attached")
		}
		return nil
	})
}

// A manager that accepts the session and then says nothing is given up.
func TestSilentManager(t *testing.T) {
	h := newHub(t)
	conf := pki.ServerTLS(h.cert(t, "m1", pki.Manager), h.ca)
	conf.NextProtos = []string{protoRPC}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	calls := make(chan struct{}, 100)
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		http.NewResponseController(w).Flush()
		calls <- struct{}{}
		<-r.Context().Done()
	})}
	served := make(chan error)
	go func() { served <- web.Serve(l) }()
	w := h.worker(t, "n1", l.Addr().String())
	for range 2 {
		select {
		case <-calls:
		case <-time.After(5 * time.Second):
			t.Fatal("the node did not try again")
		}
	}
	w.end(t)
	web.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}

// A renewed certificate comes into use with a new session, and carries the role
// that the managers have given the node meanwhile.
func TestRenew(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	w := h.worker(t, "n1", "127.0.0.1:1", s.addr)
	w.wait(t, true)
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := w.Renew(t.Context(), csr)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Certificate(certPEM, key, h.ca)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := pki.SubjectOf(cert.Leaf); err != nil || who.Role != pki.Manager || who.Node != "n1" {
		t.Errorf("renewed as %+v, %v", who, err)
	}
	w.SetTLS(pki.ClientTLS(cert, h.ca))
	nettest.Eventually(t, 5*time.Second, "a second session", func() error {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.attaches < 2 || h.attached["n1"] == nil {
			return fmt.Errorf("%d sessions", h.attaches)
		}
		return nil
	})
}

// Before its manager is set a server asks for patience.
func TestNoManagerYet(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	s.manager.Store(nil)
	_, err := Join(t.Context(), s.addr, JoinRequest{Token: h.token})
	if !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("join: %v", err)
	}
}

// Connections that show no certificate are bounded, in all and from one address,
// and give their place back.
func TestStrangers(t *testing.T) {
	h := newHub(t)
	s := h.serve(t, "127.0.0.1:0")
	var conns []net.Conn
	for range maxStrangersFrom {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	full := func() bool {
		s.door.mu.Lock()
		defer s.door.mu.Unlock()
		return s.door.all == maxStrangersFrom
	}
	nettest.Eventually(t, 5*time.Second, "a full door", func() error {
		if !full() {
			return errors.New("not full")
		}
		return nil
	})
	if _, err := Join(t.Context(), s.addr, JoinRequest{Token: h.token}); !errors.Is(err, netd.ErrUnavailable) {
		t.Errorf("join through a full door: %v", err)
	}
	for _, conn := range conns {
		conn.Close()
	}
	w := h.worker(t, "n1", s.addr)
	w.wait(t, true)
	nettest.Eventually(t, 5*time.Second, "an empty door", func() error {
		s.door.mu.Lock()
		defer s.door.mu.Unlock()
		if s.door.all != 0 || len(s.door.from) != 0 {
			return fmt.Errorf("%d", s.door.all)
		}
		return nil
	})
}
