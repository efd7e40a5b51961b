package debug

import (
	"testing"

	"netd"
)

// web.1 is the task that has the name now, wherever the one before it, which its
// node may never have stopped, stands in the list.
func TestFindTheTaskThatStays(t *testing.T) {
	stays := netd.Endpoint{Network: "shop", Task: "b", Name: "web.1.b", Node: "n1"}
	facts := Facts{ID: "n1", Snapshot: netd.Snapshot{
		Networks: []netd.Network{{ID: "shop"}},
		Services: []netd.Service{{ID: "s", Network: "shop", Name: "web"}},
	}}
	for _, old := range []netd.TaskID{"a", "c"} {
		leaves := netd.Endpoint{Network: "shop", Task: old, Name: "web.1." + string(old), Node: "n2", Leaving: true}
		facts.Snapshot.Endpoints = []netd.Endpoint{leaves, stays}
		if old > stays.Task {
			facts.Snapshot.Endpoints = []netd.Endpoint{stays, leaves}
		}
		if from, _, err := find(facts, "web.1", "web"); err != nil || from.endpoint.Task != "b" {
			t.Errorf("beside %s: got %+v, %v", leaves.Name, from.endpoint, err)
		}
	}
}
