package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd/dispatch"
	"netd/internal/durable"
)

// assignmentFile is the one file that a node keeps in its data directory.
const assignmentFile = "assignment.json"

// Kept reads the assignment that an earlier run kept in dir, nil where there is
// none. A corrupt file is refused and left as it is.
func Kept(dir string) (*dispatch.Assignment, error) {
	file := filepath.Join(dir, assignmentFile)
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read assignment: %w", err)
	}
	a := &dispatch.Assignment{}
	err = json.Unmarshal(data, a)
	if err == nil && (a.Node.ID == "" || len(a.GossipKeys) == 0) {
		err = errors.New("it names no node or holds no gossip key")
	}
	if err != nil {
		return nil, fmt.Errorf("read assignment: the file %q is corrupt: %w; move it away and start again, the managers will send a new one", file, err)
	}
	return a, nil
}

// sameOrders says whether two assignments differ at most in what this node has
// said itself: the statuses of its tasks, with the stamps of their writing, and
// the count of the assignments. A restart finds out how its tasks are.
func sameOrders(a, b *dispatch.Assignment) bool {
	return reflect.DeepEqual(orders(a), orders(b))
}

func orders(a *dispatch.Assignment) dispatch.Assignment {
	o := *a
	o.Generation = 0
	o.Tasks = slices.Clone(a.Tasks)
	for i := range o.Tasks {
		o.Tasks[i].Status, o.Tasks[i].Version, o.Tasks[i].UpdatedAt = swarm.TaskStatus{}, swarm.Version{}, time.Time{}
	}
	return o
}

// save keeps the assignment. It holds the gossip keys: for root alone.
func save(dir string, a *dispatch.Assignment) error {
	data, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode assignment: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, assignmentFile), data, 0o600)
}
