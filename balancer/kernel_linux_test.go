//go:build linux

package balancer

import (
	"context"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/moby/ipvs"

	"netd/internal/nettest"
)

func diffConfigs(want, got Config) string { return cmp.Diff(want.normal(), got.normal(), addrs()) }

// What is set is read back; a second Set does nothing; a Balancer that starts
// anew, as after a crash of the daemon, adopts it all and does nothing either.
func TestRootSetIsIdempotent(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		services := []Service{behind(vip, ready(b11), draining(b12), ready(b13)), behind(other)}
		if ops := w.set(services...); len(ops) == 0 {
			t.Error("the first Set did nothing")
		}
		w.settled(services...)
		if lines, err := w.b.Explain(context.Background(), w.near, netip.MustParseAddr(vip)); err != nil || len(lines) < 3 {
			t.Errorf("Explain: got %v, %v", lines, err)
		}
		conn := w.dial("tcp", vip, b13)
		if ops := w.set(services...); len(ops) > 0 {
			t.Errorf("the second Set did:\n%s", strings.Join(ops, "\n"))
		}
		w.b = balancer(t, w.kind)
		w.settled(services...)
		if ops := w.set(services...); len(ops) > 0 {
			t.Errorf("a new Balancer did:\n%s", strings.Join(ops, "\n"))
		}
		if got := w.answers(conn); got != b13 {
			t.Errorf("the connection moved to %s", got)
		}
	})
}

// The order in which a config lists things does not matter, and it is not changed.
func TestRootOrderDoesNotMatter(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12)), behind(other, ready(b13)))
		unsorted := Config{Routers: []Router{{
			NetNS: w.near, Alias: netip.MustParseAddr(alias), Locals: []netip.Addr{netip.MustParseAddr(b11), netip.MustParseAddr(client)},
			Services: []Service{behind(other, ready(b13)), behind(vip, ready(b12), ready(b11))},
		}}}
		if ops := w.setConfig(unsorted); len(ops) > 0 {
			t.Errorf("did:\n%s", strings.Join(ops, "\n"))
		}
		if unsorted.Routers[0].Services[0].VIP.String() != other {
			t.Error("the caller's config was sorted")
		}
	})
}

// Whatever somebody deletes or changes in the kernel is put back by the next Set,
// and an established connection that outlives the damage goes on.
func TestRootRestore(t *testing.T) {
	damages := map[string]func(k *kernel) error{
		"table deleted": func(k *kernel) error { k.nft.DelTable(ourTable()); return k.nft.Flush() },
		"table flushed": func(k *kernel) error { k.nft.FlushTable(ourTable()); return k.nft.Flush() },
		"hairpin empty": func(k *kernel) error {
			k.nft.FlushSet(&nftables.Set{Table: ourTable(), Name: setSelf})
			return k.nft.Flush()
		},
		"a chain added": func(k *kernel) error { return transact(k.nft, []op{addChain{"x", base{}}}) },
		"a rule added":  func(k *kernel) error { return transact(k.nft, []op{addRule{"hairpin", nftChains()[0].rules[0]}}) },
		"a set added":   func(k *kernel) error { return transact(k.nft, []op{addSet{"x", shape{key: [2]field{fieldMark}}}}) },
		"an alias added": func(k *kernel) error {
			return transact(k.nft, []op{addElems{set{name: setAlias, shape: shape{key: [2]field{fieldAddr}}}, []elem{{key: [2]uint32{1}}}}})
		},
		"setting": func(k *kernel) error { return k.do(setSetting{"net/ipv4/icmp_ratelimit", "1000"}) },
	}
	eachKind(t, func(t *testing.T, w *world) {
		all := map[string]func(k *kernel) error{}
		for _, more := range []map[string]func(k *kernel) error{damages, kindDamages(w.kind)} {
			for what, damage := range more {
				all[what] = damage
			}
		}
		services := []Service{behind(vip, ready(b11), draining(b12)), behind(other, ready(b12))}
		w.set(services...)
		for what, damage := range all {
			if err := w.b.open(w.near, damage); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if ops := w.set(services...); len(ops) == 0 {
				t.Errorf("%s: was not seen", what)
			}
			w.settled(services...)
			w.ask(2, client, "tcp", vip, client)
			w.ask(2, b11, "udp", vip, alias)
		}
	})
}

func kindDamages(kind Kind) map[string]func(k *kernel) error {
	mark := service(virtualKey{mark: word(netip.MustParseAddr(vip)), family: 2}, virtual{scheduler: "wlc"})
	alien := &ipvs.Service{AddressFamily: 2, Protocol: 6, Address: netip.MustParseAddr(vip).AsSlice(), Port: port, SchedName: "rr", Netmask: 0xffffffff}
	if kind == NFTables {
		return map[string]func(k *kernel) error{
			"pick chain empty": func(k *kernel) error { k.nft.FlushChain(newChain(addChain{name: pickName(1)})); return k.nft.Flush() },
			"backends empty": func(k *kernel) error {
				k.nft.FlushSet(&nftables.Set{Table: ourTable(), Name: setBackends})
				return k.nft.Flush()
			},
			"members deleted": func(k *kernel) error {
				k.nft.DelSet(&nftables.Set{Table: ourTable(), Name: setMembers})
				return k.nft.Flush()
			},
			"idle time": func(k *kernel) error { return k.do(setSetting{conntrackSettings + "tcp_timeout_established", "900"}) },
		}
	}
	return map[string]func(k *kernel) error{
		"marks empty": func(k *kernel) error {
			k.nft.FlushSet(&nftables.Set{Table: ourTable(), Name: setMarks})
			return k.nft.Flush()
		},
		"service deleted":   func(k *kernel) error { return k.ipvs.DelService(mark) },
		"scheduler changed": func(k *kernel) error { return k.ipvs.UpdateService(mark) },
		"weight changed": func(k *kernel) error {
			return k.ipvs.UpdateDestination(mark, destination(dest{addr: netip.MustParseAddr(b11), weight: 7}))
		},
		"method changed": func(k *kernel) error {
			return k.ipvs.UpdateDestination(mark, destination(dest{addr: netip.MustParseAddr(b11), weight: 1, method: ipvs.ConnFwdDirectRoute}))
		},
		"flushed":       func(k *kernel) error { return k.ipvs.Flush() },
		"service added": func(k *kernel) error { return k.ipvs.NewService(alien) },
		"idle time":     func(k *kernel) error { return k.do(setTimeouts{tcp: 900 * time.Second, udp: 300 * time.Second}) },
		"vs.conntrack":  func(k *kernel) error { return k.do(setSetting{vsConntrack, "1"}) },
	}
}

// An idle connection outlives the keepalive of 2 h 11 min by which its peer would
// notice that it is gone.
func TestRootIdleConnectionsStay(t *testing.T) {
	const least = 2*time.Hour + 15*time.Minute
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b12)))
		err := w.b.open(w.near, func(k *kernel) error {
			have, err := k.read()
			if err != nil {
				return err
			}
			idle := have.timeouts.tcp
			if w.kind == NFTables {
				idle, err = time.ParseDuration(have.settings[conntrackSettings+"tcp_timeout_established"] + "s")
			}
			if idle < least {
				t.Errorf("an idle connection is dropped after %s", idle)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// A Set of one kind removes every object of the other, and the service is served
// throughout; a router that shall be empty is left with nothing of either.
func TestRootSwitchLeavesNoResidue(t *testing.T) {
	requireKind(t, IPVS)
	w := newWorld(t, NFTables)
	services := []Service{behind(vip, ready(b11), ready(b12)), behind(other, draining(b11), ready(b12))}
	for _, kind := range []Kind{NFTables, IPVS, NFTables, IPVS} {
		w.kind, w.b = kind, balancer(t, kind)
		if ops := w.set(services...); len(ops) == 0 {
			t.Errorf("switch to %s did nothing", kind)
		}
		w.settled(services...)
		wantNames(t, string(kind), w.ask(40, client, "tcp", vip, client), b11, b12)
		wantNames(t, string(kind), w.ask(5, b12, "udp", other, alias), b12)
		count := sysctl(t, w.near, "net.netfilter.nf_conntrack_count")
		have := readState(t, w.b, w.near)
		if _, marks := have.table.set(setMarks); kind == NFTables && (marks || len(have.virtuals) > 0) {
			t.Errorf("IPVS left %v", have.virtuals)
		}
		if kind == IPVS && (isNFT(have.table) || count != "0") {
			t.Errorf("nftables left its maps or %s tracked connections", count)
		}
	}
	for _, kind := range kinds {
		w.kind, w.b = kind, balancer(t, kind)
		w.set(services...)
		empty := Config{Routers: []Router{{NetNS: w.near}, {NetNS: w.far}}}
		for _, cleaner := range kinds {
			b := balancer(t, cleaner)
			if _, err := b.Set(context.Background(), empty); err != nil {
				t.Fatal(err)
			}
			w.holds(b, empty)
		}
		if have := readState(t, w.b, w.near); have.table.exists || len(have.virtuals) > 0 {
			t.Errorf("%s left %+v", kind, have)
		}
	}
}

func readState(t *testing.T, b *Balancer, router string) (have state) {
	t.Helper()
	err := b.open(router, func(k *kernel) (err error) {
		have, err = k.read()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// A router that is not there is named in the error, and the others are served.
func TestRootOneBadRouter(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		missing := filepath.Join(nettest.Dir(t), "missing")
		c := w.config(behind(vip, ready(b12)))
		c.Routers = append([]Router{{NetNS: missing}, {NetNS: w.near + "x", Locals: []netip.Addr{ip(1)}}}, c.Routers...)
		if _, err := w.b.Set(context.Background(), c); err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "alias") {
			t.Errorf("got %v", err)
		}
		w.ask(1, client, "tcp", vip, client)
		got, err := w.b.Get(context.Background(), []string{missing, w.near, w.far})
		if err == nil || !strings.Contains(err.Error(), missing) || len(got.Routers) != 2 {
			t.Errorf("got %v, %v", got, err)
		}
		if _, err := w.b.Set(context.Background(), Config{Routers: []Router{{Services: c.Routers[2].Services}}}); err == nil {
			t.Error("the machine's own namespace was balanced")
		}
	})
}

// A network of 5,000 backends is set, read back and changed.
func TestRootManyBackends(t *testing.T) {
	nettest.Root(t)
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			requireKind(t, kind)
			b, c := balancer(t, kind), Config{Routers: []Router{{NetNS: nettest.NS(t), Alias: netip.MustParseAddr(alias)}}}
			sizes := []int{2000, 1}
			for range 300 {
				sizes = append(sizes, 10)
			}
			for i, size := range sizes {
				s := Service{VIP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})}
				for j := range size {
					s.Backends = append(s.Backends, Backend{netip.AddrFrom4([4]byte{10, 2 + byte(j>>8), byte(j), byte(i)}), Ready})
				}
				c.Routers[0].Services = append(c.Routers[0].Services, s)
			}
			set := func() int {
				ops, err := b.Set(context.Background(), c)
				if err != nil {
					t.Fatal(err)
				}
				return len(ops)
			}
			start := time.Now()
			set()
			t.Logf("set in %s", time.Since(start))
			start = time.Now()
			if n := set(); n > 0 {
				t.Errorf("a second Set did %d operations", n)
			}
			t.Logf("found unchanged in %s", time.Since(start))
			c.Routers[0].Services[0].Backends[7].State = Draining
			if n := set(); n == 0 || n > 10 {
				t.Errorf("one change took %d operations", n)
			}
			got, err := b.Get(context.Background(), []string{c.Routers[0].NetNS})
			if err != nil {
				t.Fatal(err)
			}
			if diff := diffConfigs(c, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The probe finds IPVS where the kernel has it, leaves nothing behind, and says why.
func TestRootProbe(t *testing.T) {
	nettest.Root(t)
	kind, reason := Probe()
	if want := familyExists() == nil; want != (kind == IPVS) || reason == "" {
		t.Errorf("got %s: %s", kind, reason)
	}
	if _, err := New(kind, nil); err != nil {
		t.Error(err)
	}
	if kind == NFTables {
		if _, err := New(IPVS, nil); err == nil || !strings.Contains(err.Error(), "ip_vs") {
			t.Errorf("got %v, want an error that names ip_vs", err)
		}
	}
	if _, err := New("x", nil); err == nil {
		t.Error("an unknown kind was accepted")
	}
}
