package balancer

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var kinds = []Kind{IPVS, NFTables}

func ip(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 9, last}) }

func svc(vip byte, states map[byte]State) Service {
	s := Service{VIP: ip(vip)}
	for _, last := range slices.Sorted(maps.Keys(states)) {
		s.Backends = append(s.Backends, Backend{Addr: ip(last), State: states[last]})
	}
	return s
}

func routerOf(services ...Service) Router {
	return Router{NetNS: "/run/netd/netns/net-a", Alias: netip.MustParseAddr("169.254.80.1"), Locals: []netip.Addr{ip(10), ip(11)}, Services: services}
}

// A plan says in the words of ipvsadm, nft and conntrack what changes, and
// nothing else: a scale-up, a drain, a death.
func TestPlanText(t *testing.T) {
	both := map[byte]State{10: Ready, 11: Ready}
	cases := []struct {
		name       string
		have, want Router
		ipvs, nft  []string
	}{
		{"one more backend",
			routerOf(svc(2, both)), routerOf(svc(2, map[byte]State{10: Ready, 11: Ready, 12: Ready})),
			[]string{"ipvsadm -a -f 167774466 -r 10.0.9.12 -m -w 1"},
			[]string{
				"nft add chain ip netd-balancer pick-3",
				"nft add rule ip netd-balancer pick-3 tcp flags & (fin | syn | rst | ack) != syn goto refuse",
				"nft add rule ip netd-balancer pick-3 dnat to ip daddr . numgen random mod 3 map @backends",
				"nft add element ip netd-balancer backends { 10.0.9.2 . 0x2 : 10.0.9.12 }",
				"nft delete element ip netd-balancer vips { 10.0.9.2 : jump pick-2 }",
				"nft add element ip netd-balancer vips { 10.0.9.2 : jump pick-3 }",
				"nft delete chain ip netd-balancer pick-2",
				"nft add element ip netd-balancer members { 10.0.9.2 . 10.0.9.12 }",
			}},
		{"drain",
			routerOf(svc(2, both)), routerOf(svc(2, map[byte]State{10: Ready, 11: Draining})),
			[]string{"ipvsadm -e -f 167774466 -r 10.0.9.11 -m -w 0"},
			[]string{
				"nft add chain ip netd-balancer pick-1",
				"nft add rule ip netd-balancer pick-1 tcp flags & (fin | syn | rst | ack) != syn goto refuse",
				"nft add rule ip netd-balancer pick-1 dnat to ip daddr . numgen random mod 1 map @backends",
				"nft delete element ip netd-balancer backends { 10.0.9.2 . 0x1 : 10.0.9.11 }",
				"nft delete element ip netd-balancer vips { 10.0.9.2 : jump pick-2 }",
				"nft add element ip netd-balancer vips { 10.0.9.2 : jump pick-1 }",
				"nft delete chain ip netd-balancer pick-2",
			}},
		{"a drained backend dies",
			routerOf(svc(2, map[byte]State{10: Ready, 11: Draining})), routerOf(svc(2, map[byte]State{10: Ready})),
			[]string{"ipvsadm -d -f 167774466 -r 10.0.9.11"},
			[]string{
				"conntrack -D -d 10.0.9.2, except -r 10.0.9.10",
				"nft delete element ip netd-balancer members { 10.0.9.2 . 10.0.9.11 }",
			}},
		{"the last one drains, and the service stays",
			routerOf(svc(2, map[byte]State{10: Ready}), svc(3, map[byte]State{11: Ready})),
			routerOf(svc(2, map[byte]State{10: Draining}), svc(3, map[byte]State{11: Ready})),
			[]string{"ipvsadm -e -f 167774466 -r 10.0.9.10 -m -w 0"},
			[]string{
				"nft delete element ip netd-balancer backends { 10.0.9.2 . 0x0 : 10.0.9.10 }",
				"nft delete element ip netd-balancer vips { 10.0.9.2 : jump pick-1 }",
				"nft add element ip netd-balancer vips { 10.0.9.2 : jump refuse }",
			}},
	}
	for _, c := range cases {
		for kind, want := range map[Kind][]string{IPVS: c.ipvs, NFTables: c.nft} {
			t.Run(c.name+" "+string(kind), func(t *testing.T) {
				got := texts(plan(render(kind, c.have), render(kind, c.want)))
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
			})
		}
	}
}

// The objects that decide on a packet to a VIP are named in the order in which it
// meets them, and those of other VIPs are not.
func TestExplain(t *testing.T) {
	r := routerOf(svc(2, map[byte]State{10: Ready, 11: Draining}), svc(3, map[byte]State{10: Ready}))
	for kind, want := range map[Kind][]string{
		IPVS: {
			"nft map netd-balancer marks { 10.0.9.2 : 0xa000902 }",
			"ipvs service -f 167774466 -s rr",
			"ipvs server -f 167774466 -r 10.0.9.10 -w 1",
			"ipvs server -f 167774466 -r 10.0.9.11 -w 0",
		},
		NFTables: {
			"nft map netd-balancer vips { 10.0.9.2 : jump pick-1 }",
			"nft map netd-balancer backends { 10.0.9.2 . 0x0 : 10.0.9.10 }",
		},
	} {
		if diff := cmp.Diff(want, explain(render(kind, r), word(ip(2)))); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}

// Nothing is planned for a router that is as wanted, nor for one that is to be
// empty and is.
func TestPlanNothing(t *testing.T) {
	for _, kind := range kinds {
		for _, r := range []Router{{NetNS: "x"}, routerOf(), routerOf(svc(2, nil)), routerOf(svc(2, map[byte]State{10: Ready, 12: Draining}))} {
			if ops := plan(render(kind, r), render(kind, r)); len(ops) > 0 {
				t.Errorf("%s %v: planned %v", kind, r, texts(ops))
			}
		}
	}
}

// Whatever was there, of either kind and however damaged, a plan leads to what is
// wanted, and then there is nothing more to do.
func TestPlanLeadsToWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have := damage(t, render(rapid.SampledFrom(kinds).Draw(t, "have kind"), drawRouter(t)))
		want := render(rapid.SampledFrom(kinds).Draw(t, "want kind"), drawRouter(t))
		ops := plan(have, want)
		got := applyPure(t, have, ops)
		if diff := diffStates(want, got); diff != "" {
			t.Fatalf("after %s:\n%s", strings.Join(texts(ops), "\n"), diff)
		}
		if again := plan(got, want); len(again) > 0 {
			t.Fatalf("planned again: %s", strings.Join(texts(again), "\n"))
		}
	})
}

// What is rendered reads back as the same config.
func TestDecodeIsRenderBackwards(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := drawRouter(t)
		for _, kind := range kinds {
			got := decode(kind, want.NetNS, render(kind, want))
			if diff := cmp.Diff(Config{Routers: []Router{want}}.normal(), Config{Routers: []Router{got}}.normal(), addrs()); diff != "" {
				t.Fatalf("%s: %s", kind, diff)
			}
		}
	})
}

// Connections are ended exactly where backends went, after the tables send them
// no new ones, and before the kernel forgets that they were there.
func TestPlanEndsConnectionsInOrder(t *testing.T) {
	have := render(NFTables, routerOf(svc(2, map[byte]State{10: Ready, 11: Ready}), svc(3, map[byte]State{10: Ready})))
	want := render(NFTables, routerOf(svc(2, map[byte]State{10: Ready}), svc(3, map[byte]State{10: Ready})))
	var order []string
	for _, o := range plan(have, want) {
		switch o := o.(type) {
		case endOthers:
			order = append(order, "end "+o.vip.String())
		case delElems:
			order = append(order, "delete from "+o.set.name)
		}
	}
	wanted := []string{"delete from backends", "delete from vips", "end 10.0.9.2", "delete from members"}
	if !slices.Equal(order, wanted) {
		t.Errorf("got %v, want %v", order, wanted)
	}
}

// Two nodes add the same backends in different orders, one node always in the
// same, so that round robin does not start with the same backend everywhere.
func TestOrderDiffersBetweenNodes(t *testing.T) {
	states := map[byte]State{}
	for last := range byte(20) {
		states[last+10] = Ready
	}
	order := func(local byte) string {
		r := routerOf(svc(2, states))
		r.Locals = []netip.Addr{ip(local)}
		return strings.Join(texts(plan(state{}, render(IPVS, r))), "\n")
	}
	if first, again := order(10), order(10); first != again {
		t.Error("one node adds them in two orders")
	}
	if order(10) == order(11) {
		t.Error("two nodes add them in one order")
	}
}

// What no kernel could hold is refused by name.
func TestCheck(t *testing.T) {
	cases := map[string]Router{
		"no namespace":                 {},
		"no alias":                     {NetNS: "x", Locals: []netip.Addr{ip(1)}},
		"10.0.9.1\": listed twice":     {NetNS: "x", Alias: ip(9), Locals: []netip.Addr{ip(1), ip(1)}},
		"two services":                 routerOf(svc(2, nil), svc(2, nil)),
		"not an IPv4 address":          routerOf(Service{VIP: netip.MustParseAddr("fd00::1")}),
		"unknown state(0)":             routerOf(svc(2, map[byte]State{10: 0})),
		"cannot stand behind":          routerOf(svc(2, map[byte]State{2: Ready})),
		"10.0.9.10\": listed twice":    routerOf(Service{VIP: ip(2), Backends: []Backend{{ip(10), Ready}, {ip(10), Draining}}}),
		"\"invalid IP\": not an IPv4":  routerOf(Service{VIP: ip(2), Backends: []Backend{{State: Ready}}}),
		"alias \"fd00::1\": not an IP": {NetNS: "x", Alias: netip.MustParseAddr("fd00::1")},
	}
	for want, r := range cases {
		if err := r.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := routerOf(svc(2, map[byte]State{10: Ready})).check(); err != nil {
		t.Error(err)
	}
}

// A plan over 5,000 backends takes well below 100 ms.
func BenchmarkPlan(b *testing.B) {
	var have, want Router
	have.NetNS, have.Alias = "x", netip.MustParseAddr("169.254.80.1")
	want = have
	for i := range 500 {
		s := Service{VIP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
		for j := range 10 {
			s.Backends = append(s.Backends, Backend{netip.AddrFrom4([4]byte{10, 2 + byte(j), byte(i >> 8), byte(i)}), Ready})
		}
		have.Services = append(have.Services, s)
		if s.Backends = slices.Clone(s.Backends); i%10 == 0 {
			s.Backends[3].State = Draining
		}
		want.Services = append(want.Services, s)
	}
	for _, kind := range kinds {
		for name, from := range map[string]state{"fresh": {}, "same": render(kind, want), "changed": render(kind, have)} {
			b.Run(fmt.Sprintf("%s/%s", kind, name), func(b *testing.B) {
				for b.Loop() {
					plan(from, render(kind, want))
				}
			})
		}
	}
}

func texts(ops []op) []string {
	var list []string
	for _, o := range ops {
		list = append(list, o.String())
	}
	return list
}

func addrs() cmp.Option {
	return cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
}
