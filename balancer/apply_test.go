package balancer

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

func drawRouter(t *rapid.T) Router {
	if rapid.IntRange(0, 9).Draw(t, "empty") == 0 {
		return Router{NetNS: "net"}
	}
	r := Router{NetNS: "net", Alias: netip.AddrFrom4([4]byte{169, 254, 64, rapid.Byte().Draw(t, "alias")})}
	for _, last := range rapid.SliceOfNDistinct(rapid.ByteRange(100, 110), 0, 3, rapid.ID).Draw(t, "locals") {
		r.Locals = append(r.Locals, ip(last))
	}
	for _, vip := range rapid.SliceOfNDistinct(rapid.ByteRange(2, 7), 0, 4, rapid.ID).Draw(t, "vips") {
		s := svc(vip, nil)
		for _, last := range rapid.SliceOfNDistinct(rapid.ByteRange(100, 110), 0, 5, rapid.ID).Draw(t, "backends") {
			s.Backends = append(s.Backends, Backend{ip(last), rapid.SampledFrom([]State{Ready, Draining}).Draw(t, "state")})
		}
		r.Services = append(r.Services, s)
	}
	return Config{Routers: []Router{r}}.normal().Routers[0]
}

// damage changes a state as an operator, another program or a crash may.
func damage(t *rapid.T, s state) state {
	if s.settings = maps.Clone(s.settings); s.settings == nil {
		s.settings = map[string]string{}
	}
	s.table.sets, s.table.chains, s.virtuals = slices.Clone(s.table.sets), slices.Clone(s.table.chains), slices.Clone(s.virtuals)
	for range rapid.IntRange(0, 3).Draw(t, "damages") {
		switch rapid.IntRange(0, 9).Draw(t, "damage") {
		case 0:
			s.settings["net/ipv4/icmp_ratelimit"], s.settings[vsConntrack] = "1000", "1"
		case 1:
			s.timeouts.tcp = 900
		case 2:
			s.table = table{}
		case 3:
			if s.table.exists {
				s.table.flags = 1
			}
		case 4:
			s.table.sets = drop(t, s.table.sets)
		case 5:
			s.table.chains = drop(t, s.table.chains)
		case 6:
			s.virtuals = drop(t, s.virtuals)
		case 7:
			if len(s.table.chains) > 0 {
				c := &s.table.chains[rapid.IntRange(0, len(s.table.chains)-1).Draw(t, "chain")]
				c.rules = drop(t, c.rules)
			}
		case 8:
			if len(s.table.sets) > 0 {
				x := &s.table.sets[rapid.IntRange(0, len(s.table.sets)-1).Draw(t, "set")]
				x.elems = drop(t, x.elems)
			}
		case 9:
			if len(s.virtuals) > 0 {
				v := &s.virtuals[rapid.IntRange(0, len(s.virtuals)-1).Draw(t, "virtual")]
				v.scheduler, v.dests = "wlc", drop(t, v.dests)
			}
		}
	}
	return s
}

func drop[T any](t *rapid.T, list []T) []T {
	if len(list) == 0 {
		return list
	}
	i := rapid.IntRange(0, len(list)-1).Draw(t, "dropped")
	return slices.Delete(slices.Clone(list), i, i+1)
}

// applyPure is a kernel of the strict kind: it refuses what the real one would.
func applyPure(t *rapid.T, s state, ops []op) state {
	s.table.sets, s.table.chains, s.virtuals = slices.Clone(s.table.sets), slices.Clone(s.table.chains), slices.Clone(s.virtuals)
	s.settings = maps.Clone(s.settings)
	for _, o := range ops {
		switch o := o.(type) {
		case setSetting:
			s.settings[o.key] = o.value
		case setTimeouts:
			s.timeouts = timeouts(o)
		case endAll, endOthers:
		case addVirtual, editVirtual, delVirtual, addDest, editDest, delDest:
			applyVirtual(t, &s, o)
		default:
			applyTable(t, &s.table, o)
		}
	}
	slices.SortFunc(s.virtuals, func(a, b virtual) int { return a.key.compare(b.key) })
	sortTable(&s.table)
	return s
}

func applyVirtual(t *rapid.T, s *state, o op) {
	find := func(key virtualKey) int {
		return slices.IndexFunc(s.virtuals, func(v virtual) bool { return v.key == key })
	}
	server := func(key virtualKey, d dest) (*virtual, int) {
		i := find(key)
		must(t, i >= 0, o)
		v := &s.virtuals[i]
		return v, slices.IndexFunc(v.dests, func(e dest) bool { return e.compare(d) == 0 })
	}
	switch o := o.(type) {
	case addVirtual:
		must(t, find(o.key) < 0, o)
		v := o.virtual
		v.dests = nil
		s.virtuals = append(s.virtuals, v)
	case editVirtual:
		i := find(o.key)
		must(t, i >= 0, o)
		s.virtuals[i].scheduler, s.virtuals[i].flags = o.scheduler, o.flags
	case delVirtual:
		i := find(o.key)
		must(t, i >= 0, o)
		s.virtuals = slices.Delete(s.virtuals, i, i+1)
	case addDest:
		v, i := server(o.key, o.dest)
		must(t, i < 0, o)
		v.dests = append(slices.Clone(v.dests), o.dest)
		slices.SortFunc(v.dests, dest.compare)
	case editDest:
		v, i := server(o.key, o.dest)
		must(t, i >= 0, o)
		v.dests = slices.Clone(v.dests)
		v.dests[i] = o.dest
	case delDest:
		v, i := server(o.key, o.dest)
		must(t, i >= 0, o)
		v.dests = slices.Delete(slices.Clone(v.dests), i, i+1)
	}
}

func applyTable(t *rapid.T, s *table, o op) {
	setAt := func(name string) int { return slices.IndexFunc(s.sets, func(x set) bool { return x.name == name }) }
	chainAt := func(name string) int {
		return slices.IndexFunc(s.chains, func(c chain) bool { return c.name == name })
	}
	_, creates := o.(addTable)
	must(t, s.exists != creates, o)
	switch o := o.(type) {
	case addTable:
		*s = table{exists: true}
	case delTable:
		*s = table{}
	case addSet:
		must(t, setAt(o.name) < 0, o)
		s.sets = append(s.sets, set{name: o.name, shape: o.shape})
	case addChain:
		must(t, chainAt(o.name) < 0, o)
		s.chains = append(s.chains, chain{name: o.name, base: o.base})
	case addRule:
		i := chainAt(o.chain)
		must(t, i >= 0, o)
		s.chains[i].rules = append(slices.Clone(s.chains[i].rules), o.rule)
	case delChain:
		i := chainAt(o.name)
		must(t, i >= 0, o)
		vips, _ := s.set(setVIPs)
		must(t, !slices.ContainsFunc(vips.elems, func(e elem) bool { return e.jump == o.name }), o)
		s.chains = slices.Delete(s.chains, i, i+1)
	case addElems:
		i := setAt(o.set.name)
		must(t, i >= 0, o)
		for _, e := range o.elems {
			must(t, !slices.ContainsFunc(s.sets[i].elems, func(x elem) bool { return x.key == e.key }), o)
			must(t, e.jump == "" || chainAt(e.jump) >= 0, o)
			s.sets[i].elems = append(slices.Clone(s.sets[i].elems), e)
		}
	case delElems:
		i := setAt(o.set.name)
		must(t, i >= 0, o)
		for _, e := range o.elems {
			at := slices.Index(s.sets[i].elems, e)
			must(t, at >= 0, o)
			s.sets[i].elems = slices.Delete(slices.Clone(s.sets[i].elems), at, at+1)
		}
	}
	sortTable(s)
}

func must(t *rapid.T, ok bool, o op) {
	t.Helper()
	if !ok {
		t.Fatalf("the kernel would refuse: %s", o)
	}
}

// diffStates compares what a wanted state says with what there is.
func diffStates(want, got state) string {
	for key := range got.settings {
		if _, ok := want.settings[key]; !ok {
			delete(got.settings, key)
		}
	}
	if want.settings == nil {
		want.settings = map[string]string{}
	}
	if _, ok := got.settings[vsConntrack]; !ok { // a kernel built without it
		want.settings = maps.Clone(want.settings)
		delete(want.settings, vsConntrack)
	}
	if want.timeouts == (timeouts{}) {
		got.timeouts = want.timeouts
	}
	got.seed = want.seed
	return cmp.Diff(want, got, addrs(), cmp.AllowUnexported(state{}, timeouts{}, virtual{}, virtualKey{}, dest{}, table{}, chain{}, base{}, set{}, shape{}, elem{}),
		cmp.Comparer(func(a, b rule) bool { return a.equal(b) }),
		cmpopts.EquateEmpty())
}
