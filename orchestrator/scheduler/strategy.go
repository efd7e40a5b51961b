package scheduler

import "cmp"

// Load is what a strategy compares of a node.
type Load struct {
	NodeID string
	// Failing is true when tasks of the service failed there again and again.
	Failing bool
	// ServiceTasks counts the service's own tasks there, Tasks those of all.
	ServiceTasks, Tasks int
}

// Strategy orders nodes that could all run a task: negative when a is the better.
// It must order any two different nodes, so that a pass is the same each time.
type Strategy func(a, b Load) int

// Spread takes the node with the fewest tasks of the service, then the fewest
// of all.
func Spread(a, b Load) int {
	if a.Failing != b.Failing {
		if a.Failing {
			return 1
		}
		return -1
	}
	return cmp.Or(
		cmp.Compare(a.ServiceTasks, b.ServiceTasks),
		cmp.Compare(a.Tasks, b.Tasks),
		cmp.Compare(a.NodeID, b.NodeID),
	)
}
