package balancer

import (
	"fmt"
	"net/netip"
	"strings"
)

// op is one step of a plan. Its String is what one would type for it.
type op interface{ String() string }

type (
	setSetting  struct{ key, value string }
	setTimeouts timeouts

	addVirtual  struct{ virtual } // without its destinations
	editVirtual struct{ virtual }
	delVirtual  struct{ key virtualKey }
	addDest     struct {
		key virtualKey
		dest
	}
	editDest addDest
	delDest  addDest

	addTable struct{}
	delTable struct{}
	addSet   struct {
		name  string
		shape shape
	}
	addChain struct {
		name string
		base base
	}
	delChain struct{ name string }
	addRule  struct {
		chain string
		rule  rule
	}
	elemOps struct {
		set   set // name and shape of it
		elems []elem
	}
	addElems elemOps
	delElems elemOps

	// endAll ends all connections that conntrack knows.
	endAll struct{}
	// endOthers ends the connections to the VIP that no backend of keep has.
	endOthers struct {
		vip  netip.Addr
		keep []netip.Addr
	}
)

// nftOp is an op of an nftables transaction.
type nftOp interface{ inTransaction() }

func (addTable) inTransaction() {}
func (delTable) inTransaction() {}
func (addSet) inTransaction()   {}
func (addChain) inTransaction() {}
func (delChain) inTransaction() {}
func (addRule) inTransaction()  {}
func (addElems) inTransaction() {}
func (delElems) inTransaction() {}

func (o setSetting) String() string {
	return "sysctl -w " + strings.ReplaceAll(o.key, "/", ".") + "=" + o.value
}

func (o setTimeouts) String() string {
	return fmt.Sprintf("ipvsadm --set %.0f %.0f %.0f", o.tcp.Seconds(), o.tcpFin.Seconds(), o.udp.Seconds())
}

// String is the service as ipvsadm(8) names it.
func (k virtualKey) String() string {
	switch {
	case k.mark != 0:
		return fmt.Sprintf("-f %d", k.mark)
	case k.protocol == 6:
		return "-t " + netip.AddrPortFrom(k.addr, k.port).String()
	case k.protocol == 17:
		return "-u " + netip.AddrPortFrom(k.addr, k.port).String()
	default:
		return fmt.Sprintf("(protocol %d) %s", k.protocol, netip.AddrPortFrom(k.addr, k.port))
	}
}

func (d dest) server() string {
	if d.port == 0 {
		return d.addr.String()
	}
	return netip.AddrPortFrom(d.addr, d.port).String()
}

func (o addVirtual) String() string  { return fmt.Sprintf("ipvsadm -A %s -s %s", o.key, o.scheduler) }
func (o editVirtual) String() string { return fmt.Sprintf("ipvsadm -E %s -s %s", o.key, o.scheduler) }
func (o delVirtual) String() string  { return fmt.Sprintf("ipvsadm -D %s", o.key) }

func (o addDest) String() string {
	return fmt.Sprintf("ipvsadm -a %s -r %s -m -w %d", o.key, o.server(), o.weight)
}

func (o editDest) String() string {
	return fmt.Sprintf("ipvsadm -e %s -r %s -m -w %d", o.key, o.server(), o.weight)
}

func (o delDest) String() string { return fmt.Sprintf("ipvsadm -d %s -r %s", o.key, o.server()) }

func (addTable) String() string   { return "nft add table ip " + tableName }
func (delTable) String() string   { return "nft delete table ip " + tableName }
func (o delChain) String() string { return "nft delete chain ip " + tableName + " " + o.name }

func (o addSet) String() string {
	return fmt.Sprintf("nft add %s ip %s %s { type %s; }", o.shape.kind(), tableName, o.name, o.shape)
}

func (o addChain) String() string {
	text := "nft add chain ip " + tableName + " " + o.name
	if o.base != (base{}) {
		text += " " + o.base.String()
	}
	return text
}

func (o addRule) String() string {
	return fmt.Sprintf("nft add rule ip %s %s %s", tableName, o.chain, o.rule.text)
}

func (o addElems) String() string { return "nft add element " + elemOps(o).text() }
func (o delElems) String() string { return "nft delete element " + elemOps(o).text() }

func (o elemOps) text() string {
	texts := make([]string, len(o.elems))
	for i, e := range o.elems {
		texts[i] = e.text(o.set.shape)
	}
	return fmt.Sprintf("ip %s %s { %s }", tableName, o.set.name, strings.Join(texts, ", "))
}

func (endAll) String() string { return "conntrack -F" }

func (o endOthers) String() string {
	text := "conntrack -D -d " + o.vip.String()
	if len(o.keep) > 0 {
		keep := make([]string, len(o.keep))
		for i, b := range o.keep {
			keep[i] = b.String()
		}
		text += ", except -r " + strings.Join(keep, ",")
	}
	return text
}
