package orchestrator

import (
	"cmp"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// scale gives a replicated service as many filled slots as it wants replicas,
// and returns those that are kept. New slots get the lowest free numbers.
func (p *pass) scale(s *swarm.Service, slots []*slot) []*slot {
	var filled, empty []*slot
	for _, sl := range slots {
		if len(sl.wanted()) > 0 || p.finished(s, sl) {
			filled = append(filled, sl)
		} else {
			empty = append(empty, sl)
		}
	}
	want := replicas(s)
	if len(filled) >= want {
		keep := byUse(filled)
		for _, sl := range slices.Concat(keep[want:], empty) {
			for _, t := range slices.Clone(sl.tasks) {
				p.desire(sl, t, swarm.TaskStateRemove)
			}
		}
		keep = keep[:want]
		slices.SortFunc(keep, func(a, b *slot) int { return a.key.compare(b.key) })
		return keep
	}
	taken := map[int]*slot{}
	for _, sl := range filled {
		taken[sl.key.number] = sl
	}
	old := map[int]*slot{}
	for _, sl := range empty {
		old[sl.key.number] = sl
	}
	for number := 1; len(filled) < want; number++ {
		if taken[number] != nil {
			continue
		}
		sl := old[number]
		if sl == nil {
			sl = &slot{key: slotKey{number: number}}
		}
		p.newTask(s, sl, swarm.TaskStateRunning, time.Time{})
		filled = append(filled, sl)
	}
	slices.SortFunc(filled, func(a, b *slot) int { return a.key.compare(b.key) })
	return filled
}

func replicas(s *swarm.Service) int {
	if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
		return int(min(*r.Replicas, maxReplicas))
	}
	return 1
}

// byUse sorts slots as Swarm keeps them when it scales down: the copies on each
// node are numbered, running ones first; the first copies of all nodes are kept
// before the second ones, and what has no node goes first.
func byUse(slots []*slot) []*slot {
	sorted := slices.Clone(slots)
	running := func(sl *slot) int {
		if slices.ContainsFunc(sl.wanted(), func(t *swarm.Task) bool { return t.Status.State == swarm.TaskStateRunning }) {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(sorted, func(a, b *slot) int { return cmp.Compare(running(a), running(b)) })
	const last = int(^uint(0) >> 1)
	copies, index := map[string]int{}, map[*slot]int{}
	for _, sl := range sorted {
		index[sl] = last
		if w := sl.wanted(); len(w) > 0 && w[0].NodeID != "" {
			copies[w[0].NodeID]++
			index[sl] = copies[w[0].NodeID]
		}
	}
	slices.SortStableFunc(sorted, func(a, b *slot) int { return cmp.Compare(index[a], index[b]) })
	return sorted
}
