package ingress

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

var netipEqual = cmpopts.EquateComparable(netip.AddrPort{})

func port(protocol Protocol, number uint16, to string) Port {
	return Port{protocol, number, netip.MustParseAddrPort(to)}
}

// A plan says in the words of nft, sysctl and conntrack what changes, and nothing
// else: a port that opens, moves or closes, the last that closes.
func TestPlanText(t *testing.T) {
	web, dns := port(TCP, 8080, "10.0.0.2:80"), port(UDP, 53, "10.0.0.3:53")
	local := []string{"nd-up4096"}
	tests := []struct {
		name       string
		have, want Config
		ops        []string
	}{
		{"nothing", Config{}, Config{}, nil},
		{"as it is", Config{[]Port{web, dns}, local}, Config{[]Port{web, dns}, local}, nil},
		{"the first ports", Config{}, Config{[]Port{web, dns}, local}, []string{
			"nft add table ip netd-ingress",
			"nft add element ip netd-ingress ports { tcp . 8080 : 10.0.0.2 . 80 }",
			"nft add element ip netd-ingress ports { udp . 53 : 10.0.0.3 . 53 }",
			"sysctl -w net.ipv4.conf.nd-up4096.route_localnet=1",
			"conntrack -D -p udp --orig-port-dst 53"}},
		{"one more", Config{[]Port{dns}, local}, Config{[]Port{web, dns}, local},
			[]string{"nft add element ip netd-ingress ports { tcp . 8080 : 10.0.0.2 . 80 }"}},
		{"moves", Config{[]Port{dns}, local}, Config{[]Port{port(UDP, 53, "10.0.0.9:5353")}, local}, []string{
			"nft delete element ip netd-ingress ports { udp . 53 }",
			"nft add element ip netd-ingress ports { udp . 53 : 10.0.0.9 . 5353 }",
			"conntrack -D -p udp --orig-port-dst 53"}},
		{"the last closes", Config{[]Port{web}, local}, Config{}, []string{
			"sysctl -w net.ipv4.conf.nd-up4096.route_localnet=0", "nft delete table ip netd-ingress"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.ops, texts(plan(stateOf(test.have), stateOf(test.want)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A table that is not as it was made is replaced, in one transaction.
func TestPlanForeign(t *testing.T) {
	c := Config{Ports: []Port{port(TCP, 80, "10.0.0.2:80")}}
	have := stateOf(c)
	have.table = tableForeign
	got := steps(plan(have, stateOf(c)))
	if len(got) != 1 || len(got[0]) != 3 || got[0][0].kind != opDelTable || got[0][1].kind != opAddTable {
		t.Errorf("got %v", got)
	}
}

// What no kernel could hold is refused before anything is done.
func TestCheck(t *testing.T) {
	for name, c := range map[string]Config{
		"unsorted":    {Ports: []Port{port(UDP, 1, "10.0.0.2:1"), port(TCP, 1, "10.0.0.2:1")}},
		"twice":       {Ports: []Port{port(TCP, 1, "10.0.0.2:1"), port(TCP, 1, "10.0.0.3:1")}},
		"port zero":   {Ports: []Port{port(TCP, 0, "10.0.0.2:1")}},
		"to port 0":   {Ports: []Port{port(TCP, 1, "10.0.0.2:0")}},
		"to IPv6":     {Ports: []Port{port(TCP, 1, "[fd00::2]:1")}},
		"to nowhere":  {Ports: []Port{{TCP, 1, netip.AddrPort{}}}},
		"no protocol": {Ports: []Port{port(1, 1, "10.0.0.2:1")}},
	} {
		if err := c.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// From any state, what was planned leads to the wanted one, from which nothing is
// planned; ports that stay are not touched, and localhost is never without guard.
func TestPlanProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := stateOf(drawConfig(t)), stateOf(drawConfig(t))
		have.table = rapid.SampledFrom([]tableState{have.table, tableForeign, tableNone}).Draw(t, "table")
		if have.table == tableNone {
			have.ports = map[portKey]netip.AddrPort{}
		}
		stays := have.table == tableOurs
		for _, o := range plan(have, want) {
			k := portKey{o.port.Protocol, o.port.Port}
			if stays && o.kind == opDel && have.ports[k] == want.ports[k] {
				t.Fatalf("%s: it was as wanted", o)
			}
			if err := have.do(o); err != nil {
				t.Fatal(err)
			}
		}
		if rest := texts(plan(have, want)); rest != nil {
			t.Fatalf("still to do: %q", rest)
		}
		if diff := cmp.Diff(want.config(), have.config(), netipEqual); diff != "" {
			t.Fatal(diff)
		}
	})
}

// do does the op, or refuses it as the kernel would.
func (s *state) do(o op) error {
	k := portKey{o.port.Protocol, o.port.Port}
	_, there := s.ports[k]
	refused := false
	switch o.kind {
	case opDelTable:
		refused = s.table == tableNone
		s.table, s.ports = tableNone, map[portKey]netip.AddrPort{}
	case opAddTable:
		refused = s.table != tableNone
		s.table = tableOurs
	case opDel:
		refused = !there
		delete(s.ports, k)
	case opAdd:
		refused = there || s.table != tableOurs
		s.ports[k] = o.port.To
	case opLocal:
		refused = s.table != tableOurs // no guard
		s.local[o.link] = true
	case opNotLocal:
		delete(s.local, o.link)
	case opForget:
	}
	if refused {
		return fmt.Errorf("refused: %s", o)
	}
	return nil
}

func drawConfig(t *rapid.T) Config {
	var c Config
	for _, protocol := range []Protocol{TCP, UDP, SCTP} {
		for _, number := range []uint16{53, 8080} {
			if rapid.Bool().Draw(t, "published") {
				to := netip.AddrFrom4([4]byte{10, 0, 0, rapid.SampledFrom([]byte{2, 3}).Draw(t, "to")})
				c.Ports = append(c.Ports, Port{protocol, number, netip.AddrPortFrom(to, 80)})
			}
		}
	}
	slices.SortFunc(c.Ports, Port.compare)
	if len(c.Ports) > 0 && rapid.Bool().Draw(t, "local") {
		c.Local = []string{"nd-up4096"}
	}
	return c
}
