package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"netd/pki"
)

const (
	// A renewal that fails is tried again after a wait that grows from the first to
	// the second: a certificate has at least 24 minutes left at its latest renewal.
	renewFirstWait, renewLongestWait = time.Second, 10 * time.Minute
	// renewPause lies between two renewals: the life of a certificate begins an hour
	// before its signature, so that one for an hour is renewed at once.
	renewPause = time.Minute
	// clockLook is how long a wait may go on without a look at the wall clock, which
	// jumps where timers do not: a host that was suspended.
	clockLook = time.Minute
)

// renewAt is when a certificate is to be renewed: at 50 to 80 percent of its life,
// as dice from 0 to 1 says, so that the nodes do not all come at once. Pure.
func renewAt(notBefore, notAfter time.Time, dice float64) time.Time {
	return notBefore.Add(time.Duration((0.5 + 0.3*dice) * float64(notAfter.Sub(notBefore))))
}

// renewals renews the node's certificate in time, again and again until ctx ends.
func (m *member) renewals(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.founded:
	}
	for {
		cert, _, err := m.id.credentials(m.key)
		if err != nil {
			return fmt.Errorf("read the node's certificate: %w", err)
		}
		if !sleepUntil(ctx, renewAt(cert.Leaf.NotBefore, cert.Leaf.NotAfter, rand.Float64())) || !m.renewed(ctx) ||
			!sleepUntil(ctx, time.Now().Add(renewPause)) {
			return nil
		}
	}
}

// sleepUntil waits until the wall clock says so, and is false if ctx ends first.
func sleepUntil(ctx context.Context, at time.Time) bool {
	at = at.Round(0) // of the wall clock only
	for {
		left := time.Until(at)
		if left <= 0 {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, clockLook))
		select {
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
}

// renewed tries until the certificate is renewed, and is false if ctx ends first.
func (m *member) renewed(ctx context.Context) bool {
	wait := backoff.ExponentialBackOff{InitialInterval: renewFirstWait, MaxInterval: renewLongestWait, Multiplier: 2, RandomizationFactor: 0.5}
	wait.Reset()
	for {
		err := m.renew(ctx)
		if err == nil {
			return true
		}
		again := wait.NextBackOff()
		if ctx.Err() == nil {
			m.log.Warn("the certificate is not renewed yet", "again in", again.Round(time.Second), "err", err)
		}
		if !sleepUntil(ctx, time.Now().Add(again)) {
			return false
		}
	}
}

// renew has the node's key signed anew. The key stays, so that only one file
// changes: there is no moment at which key and certificate do not fit.
func (m *member) renew(ctx context.Context) error {
	csr, err := pki.NewRequest(m.key)
	if err != nil {
		return err
	}
	var signed []byte
	if m.control != nil { // over the network it would need a certificate that has not run out
		signed, err = m.control.Renew(ctx, m.id.NodeID, csr)
	} else {
		signed, err = m.client.Renew(ctx, csr)
	}
	if err != nil {
		return err
	}
	return m.adopt(signed)
}

// adopt keeps and shows a new certificate, once it is sure to be this node's.
func (m *member) adopt(signed []byte) error {
	m.keeping.Lock()
	defer m.keeping.Unlock()
	next := *m.id
	next.Certificate = signed
	cert, ca, err := next.credentials(m.key)
	if err != nil {
		return fmt.Errorf("read the renewed certificate: %w", err)
	}
	if err := m.files.save(&next); err != nil {
		return err
	}
	m.id.Certificate = signed
	if m.server != nil {
		m.server.SetTLS(pki.ServerTLS(cert, ca))
	}
	m.client.SetTLS(pki.ClientTLS(cert, ca))
	m.log.Info("the certificate is renewed", "until", cert.Leaf.NotAfter)
	return nil
}
