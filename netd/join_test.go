package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/dispatch"
)

// A join that fails says in Docker's words what is wrong, and then what to do; it
// keeps its kind, and so its HTTP status.
func TestJoinError(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		kind  error
		begin string
		has   string
	}{
		"no answer in time": {
			netd.Errorf(netd.ErrUnavailable, "connect to manager m:2377: %w", context.DeadlineExceeded), netd.ErrUnavailable,
			"Timeout was reached before node joined", "no manager answers at m:2377",
		},
		"rotated token": {
			netd.Errorf(netd.ErrInvalid, "rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster"), netd.ErrInvalid,
			"rpc error: code = InvalidArgument desc = A valid join token is necessary to join this cluster", "docker swarm join-token worker",
		},
		"token of another swarm": {
			fmt.Errorf("connect to manager m:2377: %w", netd.Errorf(netd.ErrForbidden, "remote CA does not match fingerprint. Expected: 12")), netd.ErrForbidden,
			"connect to manager m:2377: remote CA does not match fingerprint", "of another swarm",
		},
		"no token at all": {
			netd.Errorf(netd.ErrInvalid, "invalid join token"), netd.ErrInvalid, "invalid join token", "SWMTKN-1-",
		},
		"refused": {
			netd.Errorf(netd.ErrUnavailable, "connect to manager m:2377: connection refused"), netd.ErrUnavailable,
			"connect to manager m:2377: connection refused", "Manager Addresses",
		},
		"said by the manager": {
			netd.Errorf(netd.ErrExists, "join: the address is taken"), netd.ErrExists, "join: the address is taken", "",
		},
	} {
		got := joinError("m:2377", c.err)
		if !errors.Is(got, c.kind) || !strings.HasPrefix(got.Error(), c.begin) || !strings.Contains(got.Error(), c.has) {
			t.Errorf("%s: got %v (%v)", name, got, errors.Is(got, c.kind))
		}
		if errors.Is(got, context.DeadlineExceeded) {
			t.Errorf("%s: the API would say that this node's managers do not answer", name)
		}
	}
}

// Every manager is asked until one answers, and the error names all that did not.
func TestAskToJoin(t *testing.T) {
	const token = "SWMTKN-1-00000000000000000000000000000000000000000000000000-0000000000000000000000000"
	_, err := askToJoin(t.Context(), []string{"127.0.0.1:1", "127.0.0.1:2"}, dispatch.JoinRequest{Token: token})
	if !errors.Is(err, netd.ErrUnavailable) || !strings.Contains(err.Error(), "127.0.0.1:1") || !strings.Contains(err.Error(), "127.0.0.1:2") || strings.Contains(err.Error(), "\n") {
		t.Errorf("nobody answers: got %v", err)
	}
	for managers, want := range map[string]string{"127.0.0.1:0": "invalid address of a manager", "127.0.0.1:1": "invalid join token"} {
		_, err := askToJoin(t.Context(), []string{managers, "127.0.0.1:2"}, dispatch.JoinRequest{Token: "x"})
		checkError(t, managers, err, want)
	}
}

// A manager's address is shown with the node behind it, wherever its data path is;
// what an older netd kept does not name it.
func TestManagerPeers(t *testing.T) {
	a := &dispatch.Assignment{
		Node: swarm.Node{ID: "n1"}, Managers: []string{"192.0.2.1:2377", "192.0.2.2:4000"}, ManagerIDs: []netd.NodeID{"n3", "n2"},
		Snapshot: netd.Snapshot{Nodes: []netd.Node{{ID: "n2", Addr: netip.MustParseAddr("198.51.100.2")}}},
	}
	want := []swarm.Peer{{NodeID: "n3", Addr: "192.0.2.1:2377"}, {NodeID: "n2", Addr: "192.0.2.2:4000"}}
	if got := managerPeers(a); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	a.ManagerIDs = nil
	want[0].NodeID, want[1].NodeID = "", ""
	if got := managerPeers(a); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
