//go:build linux

package main

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// The first manager's own certificate lives as long as the swarm's are to; a life
// that is too short is refused, and the node stays in no swarm.
func TestRootInitCertExpiry(t *testing.T) {
	h := newHosts(t, 1)[0]
	h.start()
	init := func(expiry time.Duration) error {
		spec := swarm.Spec{CAConfig: swarm.CAConfig{NodeCertExpiry: expiry}}
		_, err := h.docker.SwarmInit(t.Context(), client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377", Spec: spec})
		return err
	}
	if err := init(time.Minute); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a minute: got %v", err)
	}
	if err := init(3 * time.Hour); err != nil {
		t.Fatal(err)
	}
	id, key, err := (files{h.data}).load()
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := id.credentials(key)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(got.Leaf.NotAfter); left > 3*time.Hour || left < time.Hour {
		t.Errorf("it lives for %v, want 3 h", left)
	}
}
