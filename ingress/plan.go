package ingress

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// state is what the kernel holds, or shall hold.
type state struct {
	table tableState
	ports map[portKey]netip.AddrPort
	local map[string]bool // links with route_localnet=1
}

// tableState is how the table is.
type tableState uint8

const (
	tableNone tableState = iota
	tableOurs
	tableForeign // it has our name and not our rules
)

type portKey struct {
	protocol Protocol
	port     uint16
}

func stateOf(c Config) state {
	s := state{ports: map[portKey]netip.AddrPort{}, local: map[string]bool{}}
	for _, p := range c.Ports {
		s.ports[portKey{p.Protocol, p.Port}] = p.To
	}
	for _, name := range c.Local {
		s.local[name] = true
	}
	if len(c.Ports)+len(c.Local) > 0 {
		s.table = tableOurs
	}
	return s
}

// config is the inverse of stateOf. Of a table with other rules it says nothing.
func (s state) config() Config {
	c := Config{Local: slices.Sorted(maps.Keys(s.local))}
	if s.table == tableOurs {
		for k, to := range s.ports {
			c.Ports = append(c.Ports, Port{k.protocol, k.port, to})
		}
		slices.SortFunc(c.Ports, Port.compare)
	}
	return c
}

// op is one change of the kernel.
type op struct {
	kind opKind
	port Port   // of opAdd and opDel
	link string // of opLocal and opNotLocal
}

type opKind uint8

const (
	opDelTable opKind = iota
	opAddTable
	opDel
	opAdd
	opLocal
	opNotLocal
	// opForget ends what conntrack knows of a port without connections: a flow
	// that began before the port was published, or led elsewhere, would go on so
	// for as long as its client sends.
	opForget
)

// plan returns what leads from have to want. The guard against loopback
// addresses on the wire, a part of the table, is there before the setting that
// needs it, and goes after.
func plan(have, want state) []op {
	var ops, after []op
	for _, name := range slices.Sorted(maps.Keys(have.local)) {
		if !want.local[name] {
			ops = append(ops, op{kind: opNotLocal, link: name})
		}
	}
	if have.table == tableForeign || have.table != tableNone && want.table == tableNone {
		ops = append(ops, op{kind: opDelTable})
	}
	before := have.ports
	if have.table != tableOurs {
		before = nil
	}
	if want.table == tableOurs {
		if have.table != tableOurs {
			ops = append(ops, op{kind: opAddTable})
		}
		ops = append(ops, planPorts(before, want.ports)...)
	}
	for _, k := range sortedPorts(before, want.ports) {
		if before[k] != want.ports[k] && k.protocol != TCP {
			after = append(after, op{kind: opForget, port: Port{Protocol: k.protocol, Port: k.port}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.local)) {
		if !have.local[name] {
			ops = append(ops, op{kind: opLocal, link: name})
		}
	}
	return append(ops, after...)
}

// planPorts removes before it adds, as an element cannot change its value; both
// are in one transaction.
func planPorts(have, want map[portKey]netip.AddrPort) []op {
	var gone, fresh []op
	for _, k := range sortedPorts(have, want) {
		h, had := have[k]
		w, wanted := want[k]
		if h == w {
			continue
		}
		if had {
			gone = append(gone, op{kind: opDel, port: Port{k.protocol, k.port, h}})
		}
		if wanted {
			fresh = append(fresh, op{kind: opAdd, port: Port{k.protocol, k.port, w}})
		}
	}
	return append(gone, fresh...)
}

func sortedPorts(a, b map[portKey]netip.AddrPort) []portKey {
	all := map[portKey]bool{}
	for k := range a {
		all[k] = true
	}
	for k := range b {
		all[k] = true
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b portKey) int {
		return Port{Protocol: a.protocol, Port: a.port}.compare(Port{Protocol: b.protocol, Port: b.port})
	})
}

// inTable reports whether the op is one of the nft table's.
func (o op) inTable() bool { return o.kind <= opAdd }

// steps are ops as they are done: those of the table in one transaction.
func steps(ops []op) [][]op {
	var all [][]op
	for i, o := range ops {
		if i > 0 && o.inTable() && ops[i-1].inTable() {
			all[len(all)-1] = append(all[len(all)-1], o)
		} else {
			all = append(all, []op{o})
		}
	}
	return all
}

func texts(ops []op) []string {
	var out []string
	for _, o := range ops {
		out = append(out, o.String())
	}
	return out
}

// String is the op as one would type it.
func (o op) String() string {
	element := fmt.Sprintf("element ip %s %s { %s . %d", tableName, mapPorts, o.port.Protocol, o.port.Port)
	switch o.kind {
	case opDelTable:
		return "nft delete table ip " + tableName
	case opAddTable:
		return "nft add table ip " + tableName
	case opDel:
		return "nft delete " + element + " }"
	case opAdd:
		return fmt.Sprintf("nft add %s : %s . %d }", element, o.port.To.Addr(), o.port.To.Port())
	case opForget:
		return fmt.Sprintf("conntrack -D -p %s --orig-port-dst %d", o.port.Protocol, o.port.Port)
	default:
		value := map[opKind]string{opLocal: "1", opNotLocal: "0"}[o.kind]
		return fmt.Sprintf("sysctl -w %s=%s", strings.ReplaceAll(settingOf(o.link), "/", "."), value)
	}
}

// settingOf lets connections from 127.0.0.0/8 leave by the link. Which addresses
// of the loopback may come in by it is the table's to say: none.
func settingOf(link string) string { return "net/ipv4/conf/" + link + "/route_localnet" }
