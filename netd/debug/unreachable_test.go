package debug

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/gossip"
)

// A node that gossip has never met, as behind a firewall, is as little reachable
// as one that it has lost: nobody's backends there get connections.
func TestUnreachable(t *testing.T) {
	facts := Facts{
		ID: "n1", State: swarm.LocalNodeStateActive, Connected: true,
		Snapshot: netd.Snapshot{Nodes: []netd.Node{{ID: "n1", Name: "self"}, {ID: "n2", Name: "alive"}, {ID: "n3", Name: "lost"}, {ID: "n4", Name: "unmet"}}},
		View:     &gossip.View{Members: map[netd.NodeID]gossip.Member{"n1": {Alive: true}, "n2": {Alive: true}, "n3": {}}},
	}
	s := Judge(facts, nil, nil)
	names := []string{}
	for _, r := range s.Reasons {
		if name, about, ok := strings.Cut(strings.TrimPrefix(r, "node "), " "); ok && strings.HasPrefix(about, "does not answer gossip") {
			names = append(names, name)
		}
	}
	if s.Verdict != Degraded || !slices.Equal(names, []string{"lost", "unmet"}) {
		t.Errorf("%s because of %q, want lost and unmet", s.Verdict, s.Reasons)
	}
}
