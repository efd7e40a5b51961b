package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"netd"
	"netd/dispatch"
	"netd/internal/nettest"
	"netd/pki"
)

// A certificate is renewed when 50 to 80 percent of its life are over:
// never in its first half, and with a fifth left for retries.
func TestRenewAt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := time.Duration(rapid.Int64Range(int64(pki.MinLifetime), int64(20*pki.NodeLifetime)).Draw(t, "life"))
		begin := time.Unix(rapid.Int64Range(0, 1<<32).Draw(t, "begin"), 0)
		at := renewAt(begin, begin.Add(life), rapid.Float64Range(0, 1).Draw(t, "dice"))
		const rounding = time.Microsecond
		if at.Before(begin.Add(life/2-rounding)) || at.After(begin.Add(life/5*4+rounding)) {
			t.Errorf("after %s of %s", at.Sub(begin), life)
		}
	})
}

// signer is a manager that only renews: first not at all, then for somebody else,
// then as it should.
type signer struct {
	dispatch.Manager
	ca pki.CA

	mu    sync.Mutex
	asked []netd.NodeID
}

func (s *signer) Renew(_ context.Context, node netd.NodeID, csr []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, node)
	whom := node
	switch len(s.asked) {
	case 1:
		return nil, netd.Errorf(netd.ErrUnavailable, "try again")
	case 2:
		whom = "node2"
	}
	return s.ca.Sign(csr, pki.Subject{Node: whom, Role: pki.Worker, Cluster: "cluster1"}, 0, time.Now())
}

func (s *signer) Attach(context.Context, netd.NodeID) (<-chan dispatch.Assignment, error) {
	return nil, netd.Errorf(netd.ErrUnavailable, "no sessions here")
}

// certified makes a key and an hour's certificate for it, signed at that time.
func certified(t *testing.T, ca pki.CA, node netd.NodeID, role pki.Role, signed time.Time) (key, cert []byte) {
	t.Helper()
	key, csr, err := pki.NewKey()
	if err == nil {
		cert, err = ca.Sign(csr, pki.Subject{Node: node, Role: role, Cluster: "cluster1"}, time.Hour, signed)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key, cert
}

// A certificate that has run for most of its life is renewed by the managers for
// the key that the node has: after failures too, only node.json changes, no other
// node's certificate is taken, and what is kept is whole.
func TestRenewal(t *testing.T) {
	ca, _, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	managerKey, managerCert := certified(t, ca, "manager1", pki.Manager, time.Now())
	shown, err := pki.Certificate(managerCert, managerKey, ca)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	manager := &signer{ca: ca}
	server := dispatch.NewServer(dispatch.Config{Listener: listener, TLS: pki.ServerTLS(shown, ca), Manager: manager, Log: log})

	key, old := certified(t, ca, "node1", pki.Worker, time.Now().Add(-55*time.Minute)) // 5 of 120 minutes are left
	id := &identity{
		NodeID: "node1", ClusterID: "cluster1", Role: pki.Worker, Advertise: netip.MustParseAddr("127.0.0.1"), DataPath: netip.MustParseAddr("127.0.0.1"),
		Listen: "0.0.0.0:2377", Port: 2377, Managers: []string{listener.Addr().String()}, Boot: 1, CA: ca.CertPEM, Certificate: old,
	}
	cert, _, err := id.credentials(key)
	if err != nil {
		t.Fatal(err)
	}
	f := files{t.TempDir()}
	if err := errors.Join(f.saveKey(key), f.save(id)); err != nil {
		t.Fatal(err)
	}
	m := &member{id: id, key: key, files: f, log: log, founded: make(chan struct{})}
	m.client = dispatch.NewClient(dispatch.ClientConfig{TLS: pki.ClientTLS(cert, ca), Managers: id.Managers, Log: log})
	close(m.founded)

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		if err := m.renewals(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()
	var kept *identity
	nettest.Eventually(t, time.Minute, "the certificate is renewed", func() error {
		var keptKey []byte
		if kept, keptKey, err = f.load(); err != nil {
			t.Fatalf("in between the files do not fit: %v", err)
		}
		if !bytes.Equal(keptKey, key) {
			t.Fatal("the key has changed")
		}
		if bytes.Equal(kept.Certificate, old) {
			return errors.New("it is the old one")
		}
		return nil
	})
	got, _, err := kept.credentials(key)
	if err != nil || time.Until(got.Leaf.NotAfter) < pki.NodeLifetime/2 {
		t.Errorf("the new one ends %v, %v", got.Leaf.NotAfter, err)
	}
	manager.mu.Lock()
	if len(manager.asked) != 3 || manager.asked[2] != "node1" {
		t.Errorf("asked for %v", manager.asked)
	}
	manager.mu.Unlock()
	if entries, err := os.ReadDir(f.dir); err != nil || len(entries) != 2 {
		t.Errorf("files %v, %v", entries, err)
	}
	if err := m.renew(ctx); err != nil { // under the new certificate
		t.Error(err)
	}
}
