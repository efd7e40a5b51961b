package pki

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"netd"
)

// pair makes a node's certificate with its key.
func pair(t *testing.T, ca CA, s Subject, now time.Time) tls.Certificate {
	t.Helper()
	key, csr := request(t)
	certPEM, err := ca.Sign(csr, s, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := Certificate(certPEM, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// handshake connects the two configurations and returns what the server saw.
func handshake(server, client *tls.Config) (seen tls.ConnectionState, serverErr, clientErr error) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	done := make(chan struct{})
	s := tls.Server(a, server)
	go func() {
		defer close(done)
		if serverErr = s.Handshake(); serverErr == nil {
			_, serverErr = s.Write([]byte("x")) // the client hears of a refusal only now
		}
		a.Close()
	}()
	c := tls.Client(b, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	b.Close()
	<-done
	return s.ConnectionState(), serverErr, clientErr
}

// Only nodes of the swarm whose certificates are valid now get through, and only
// to its managers.
func TestMutualTLS(t *testing.T) {
	ca, _ := newCA(t)
	other, _ := newCA(t)
	now := time.Now()
	manager := Subject{Node: "m1", Role: Manager, Cluster: "cluster1"}
	good := pair(t, ca, node1, now)
	for name, tc := range map[string]struct {
		server, client tls.Certificate
		trusted        CA // by the client
		ok             bool
	}{
		"worker":                 {pair(t, ca, manager, now), good, ca, true},
		"manager":                {pair(t, ca, manager, now), pair(t, ca, manager, now), ca, true},
		"expired worker":         {pair(t, ca, manager, now), pair(t, ca, node1, now.Add(-2*time.Hour)), ca, false},
		"worker of tomorrow":     {pair(t, ca, manager, now), pair(t, ca, node1, now.Add(24*time.Hour)), ca, false},
		"worker of other swarm":  {pair(t, ca, manager, now), pair(t, other, node1, now), ca, false},
		"expired manager":        {pair(t, ca, manager, now.Add(-2*time.Hour)), good, ca, false},
		"manager of other swarm": {pair(t, other, manager, now), good, ca, false},
		"worker as manager":      {pair(t, ca, node1, now), good, ca, false},
	} {
		seen, serverErr, clientErr := handshake(ServerTLS(tc.server, ca), ClientTLS(tc.client, tc.trusted))
		if ok := serverErr == nil && clientErr == nil; ok != tc.ok {
			t.Errorf("%s: server %v, client %v", name, serverErr, clientErr)
		}
		if !tc.ok {
			continue
		}
		want, _ := SubjectOf(tc.client.Leaf)
		if got, err := Identity(seen); err != nil || got != want {
			t.Errorf("%s: identity %+v, %v", name, got, err)
		}
	}
}

// A joiner trusts the manager whose root its token names and no other, and is
// nobody to the manager.
func TestPinnedTLS(t *testing.T) {
	ca, _ := newCA(t)
	other, _ := newCA(t)
	now := time.Now()
	manager := Subject{Node: "m1", Role: Manager, Cluster: "cluster1"}
	// An attacker who shows the true root behind a certificate of his own.
	fake := pair(t, other, manager, now)
	fake.Certificate[1] = ca.Cert.Raw
	rootless := pair(t, ca, manager, now)
	rootless.Certificate = rootless.Certificate[:1]
	token, err := NewToken(ca)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		server tls.Certificate
		want   string
	}{
		"manager":        {pair(t, ca, manager, now), ""},
		"other swarm":    {pair(t, other, manager, now), "remote CA does not match fingerprint. Expected: " + ca.Digest()},
		"borrowed root":  {fake, "certificate"},
		"without a root": {rootless, "remote CA does not match"},
		"worker":         {pair(t, ca, node1, now), "swarm-manager"},
		"expired":        {pair(t, ca, manager, now.Add(-2*time.Hour)), "expired"},
	} {
		client, err := PinnedTLS(token)
		if err != nil {
			t.Fatal(err)
		}
		seen, serverErr, clientErr := handshake(ServerTLS(tc.server, ca), client)
		if tc.want == "" {
			if serverErr != nil || clientErr != nil {
				t.Errorf("%s: server %v, client %v", name, serverErr, clientErr)
			}
			if _, err := Identity(seen); !errors.Is(err, netd.ErrForbidden) {
				t.Errorf("%s: a joiner is %v", name, err)
			}
		} else if clientErr == nil || !strings.Contains(clientErr.Error(), tc.want) {
			t.Errorf("%s: client %v", name, clientErr)
		}
	}
	if _, err := PinnedTLS("SWMTKN-1-x"); !errors.Is(err, netd.ErrInvalid) {
		t.Errorf("half a token: %v", err)
	}
}

// A certificate is only joined to its own key and its own root.
func TestCertificateBelongsTogether(t *testing.T) {
	ca, _ := newCA(t)
	other, _ := newCA(t)
	key, csr := request(t)
	otherKey, _ := request(t)
	certPEM, err := ca.Sign(csr, node1, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		cert, key []byte
		ca        CA
	}{
		"other key":  {certPEM, otherKey, ca},
		"other root": {certPEM, key, other},
		"no key":     {certPEM, nil, ca},
		"no cert":    {key, key, ca},
	} {
		if _, err := Certificate(tc.cert, tc.key, tc.ca); err == nil {
			t.Errorf("%s: joined", name)
		}
	}
	if _, err := SubjectOf(ca.Cert); !errors.Is(err, netd.ErrForbidden) {
		t.Errorf("the root is node %v", err)
	}
}
