package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"netd"
	"netd/dispatch"
	"netd/internal/nettest"
	"netd/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// manager is a store whose raft runs over the real port of a manager.
type manager struct {
	*running
	c Config
}

// startManager runs a manager's port and store. The address stays the same when
// the manager is started again over its directory.
func startManager(t *testing.T, ca pki.CA, c Config) *manager {
	t.Helper()
	listen := c.Addr
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	certPEM, err := ca.Sign(csr, pki.Subject{Node: netd.NodeID(c.NodeID), Role: pki.Manager, Cluster: "c"}, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Certificate(certPEM, key, ca)
	if err != nil {
		t.Fatal(err)
	}
	server := dispatch.NewServer(dispatch.Config{Listener: l, TLS: pki.ServerTLS(cert, ca), Log: quiet()})
	c.Addr, c.Layer, c.Log = l.Addr().String(), server.RaftLayer(), quiet()
	s, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Run(ctx) }()
	m := &manager{run(t, s), c}
	stop, done := m.stop, m.done
	m.done = make(chan error, 1)
	m.stop = func() {
		stop()
		err := <-done
		cancel()
		m.done <- errors.Join(err, <-served)
	}
	return m
}

func (m *manager) holds(t *testing.T, service string) {
	t.Helper()
	nettest.Eventually(t, 20*time.Second, m.c.NodeID+" holds "+service, func() error {
		if m.View().Service(service) == nil {
			return errors.New("not yet")
		}
		return nil
	})
}

// Managers that join over the real port hold what the leader holds, whether they
// get it as log or as snapshot; they do not write themselves; and when the leader
// goes another one takes over without losing a write.
func TestThreeManagers(t *testing.T) {
	ca, _, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m1 := startManager(t, ca, Config{Dir: t.TempDir(), NodeID: "m1"})
	if err := m1.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	m1.leads(t)
	mustUpdate(t, m1.Store, func(tx *Tx) error { return tx.Put(service("a", "a")) })
	m2 := startManager(t, ca, Config{Dir: t.TempDir(), NodeID: "m2"})
	if err := m1.AddMember(t.Context(), "m2", m2.c.Addr); err != nil {
		t.Fatal(err)
	}
	m2.holds(t, "a")
	// The third one comes when the log alone no longer has everything.
	for i := range 20 {
		mustUpdate(t, m1.Store, func(tx *Tx) error { return tx.Put(service(fmt.Sprint("s", i), "")) })
	}
	reload := m1.raft.ReloadableConfig()
	reload.TrailingLogs = 1
	if err := errors.Join(m1.raft.ReloadConfig(reload), m1.raft.Snapshot().Error()); err != nil {
		t.Fatal(err)
	}
	m3 := startManager(t, ca, Config{Dir: t.TempDir(), NodeID: "m3"})
	if err := m1.AddMember(t.Context(), "m3", m3.c.Addr); err != nil {
		t.Fatal(err)
	}
	m3.holds(t, "s19")
	err = m2.Update(t.Context(), func(tx *Tx) error { return tx.Put(service("x", "x")) })
	if !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), m1.c.Addr) {
		t.Errorf("write on a follower: %v", err)
	}
	if len(m2.Members()) != 3 {
		t.Errorf("members %v", m2.Members())
	}

	m1.end(t)
	next := m2
	nettest.Eventually(t, 20*time.Second, "a new leader", func() error {
		for _, m := range []*manager{m2, m3} {
			if m.Leading() {
				next = m
				return nil
			}
		}
		return errors.New("none leads")
	})
	if next.View().Service("s19") == nil {
		t.Error("the new leader lacks a write")
	}
	mustUpdate(t, next.Store, func(tx *Tx) error { return tx.Put(service("b", "b")) })
	m1 = startManager(t, ca, m1.c)
	m1.holds(t, "b")
	nettest.Eventually(t, 10*time.Second, "three equal replicas", func() error {
		if diff := cmp.Diff(dump(m1.Store), dump(m3.Store), addrs()) + cmp.Diff(dump(m2.Store), dump(m3.Store), addrs()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	if err := next.RemoveMember(t.Context(), "m1"); err != nil {
		t.Error(err)
	}
	if len(next.Members()) != 2 {
		t.Errorf("members %v", next.Members())
	}
}

// A leader that is alone with a minority neither writes nor claims to be current.
func TestMinority(t *testing.T) {
	ca, _, err := pki.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m1 := startManager(t, ca, Config{Dir: t.TempDir(), NodeID: "m1"})
	if err := m1.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	m1.leads(t)
	m2 := startManager(t, ca, Config{Dir: t.TempDir(), NodeID: "m2"})
	if err := m1.AddMember(t.Context(), "m2", m2.c.Addr); err != nil {
		t.Fatal(err)
	}
	m2.end(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	err = m1.Update(ctx, func(tx *Tx) error { return tx.Put(service("a", "a")) })
	if !errors.Is(err, netd.ErrUnavailable) {
		t.Errorf("write of a minority: %v", err)
	}
	nettest.Eventually(t, 10*time.Second, "no leader", func() error {
		if m1.Leading() {
			return errors.New("it leads")
		}
		return nil
	})
	if err := m1.Verify(t.Context()); !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), "does not have a leader") {
		t.Errorf("verify: %v", err)
	}
}
