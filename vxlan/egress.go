package vxlan

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// egressTable is the one table of all uplinks, in the host:
//
//	table ip netd-egress {
//	  chain prerouting  { type filter hook prerouting priority raw
//	    iifname "nd-up*" udp dport PORT drop      # a container must not forge overlay packets
//	    udp dport PORT notrack }                  # each inner flow is a UDP flow of its own
//	  chain output      { type filter hook output priority raw
//	    udp dport PORT notrack }
//	  chain forward     { type filter hook forward priority filter
//	    oifname "nd-up*" ct state != { established, related } ct status & dnat == 0 drop }
//	  chain postrouting { type nat hook postrouting priority srcnat
//	    iifname "nd-up*" oifname != "nd-up*" masquerade }
//	}
//
// So nobody opens a connection into a network through the host, be it from
// outside or from another network, but where a published port's DNAT leads there.
//
// Its value as an object is the list of data-path ports, or egressForeign.
const egressTable = "netd-egress"

// egressForeign is the value of a table that has other rules than ours.
const egressForeign = "unknown"

// nftBuffer in bytes lets one batch of any size through; the kernel's default
// makes a big one fail although it was applied.
const nftBuffer = 64 << 20

type egressChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

func egressChains(ports []uint16) []egressChain {
	pre := egressChain{"prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, nil}
	out := egressChain{"output", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityRaw, nil}
	for _, port := range ports {
		pre.rules = append(pre.rules,
			slices.Concat(ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq), udpTo(port), drop()),
			append(udpTo(port), &expr.Notrack{}))
		out.rules = append(out.rules, append(udpTo(port), &expr.Notrack{}))
	}
	return []egressChain{pre, out,
		{"forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, [][]expr.Any{
			slices.Concat(ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq),
				noBit(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED),
				noBit(expr.CtKeySTATUS, ctStatusDNAT), drop()),
		}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, [][]expr.Any{
			slices.Concat(ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}}),
		}},
	}
}

// ctStatusDNAT is IPS_DST_NAT (kernel uapi/linux/netfilter/nf_conntrack_common.h).
const ctStatusDNAT = 1 << 5

func ifname(side expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: side, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(uplinkPrefix)}}
}

func udpTo(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
	}
}

func noBit(k expr.CtKey, mask uint32) []expr.Any {
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: k, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: zero},
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// setEgress makes or removes the table, in one transaction.
func (o *Overlay) setEgress(op op) error {
	return o.nft("", func(c *nftables.Conn) error {
		table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: egressTable}
		c.AddTable(table) // so that there is one to remove
		c.DelTable(table)
		if op.verb == verbDel {
			return c.Flush()
		}
		ports, err := parsePorts(op.value.(string))
		if err != nil {
			return err
		}
		c.AddTable(table)
		for _, ch := range egressChains(ports) {
			chain := c.AddChain(&nftables.Chain{Table: table, Name: ch.name, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority})
			for _, exprs := range ch.rules {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
			}
		}
		return c.Flush()
	})
}

// readEgress returns the table's value, "" when there is none. A kernel that
// cannot say has none: making it will tell why.
func (o *Overlay) readEgress() string {
	value := ""
	err := o.nft("", func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
		if err != nil {
			return err
		}
		for _, table := range tables {
			if table.Name == egressTable {
				value = egressValue(c, table)
			}
		}
		return nil
	})
	if err != nil {
		return ""
	}
	return value
}

// egressValue takes the ports from the output chain and compares every rule with
// those that these ports would have.
func egressValue(c *nftables.Conn, table *nftables.Table) string {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return egressForeign
	}
	have := map[string][][]expr.Any{}
	for _, chain := range chains {
		if chain.Table.Name != egressTable {
			continue
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return egressForeign
		}
		have[chainID(chain)] = nil
		for _, rule := range rules {
			have[chainID(chain)] = append(have[chainID(chain)], rule.Exprs)
		}
	}
	var ports []uint16
	want := map[string][][]expr.Any{}
	out := nftables.Chain{Name: "output", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityRaw}
	for _, exprs := range have[chainID(&out)] {
		if len(exprs) < 2 {
			continue // somebody else's, such as a lone accept
		}
		if cmp, ok := exprs[len(exprs)-2].(*expr.Cmp); ok && len(cmp.Data) == 2 {
			ports = append(ports, binary.BigEndian.Uint16(cmp.Data))
		}
	}
	for _, ch := range egressChains(ports) {
		want[chainID(&nftables.Chain{Name: ch.name, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority})] = ch.rules
	}
	if !reflect.DeepEqual(have, want) {
		return egressForeign
	}
	return formatPorts(ports)
}

func chainID(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil {
		return c.Name
	}
	return fmt.Sprintf("%s %s %d %d", c.Name, c.Type, *c.Hooknum, *c.Priority)
}

// nft runs fn with a connection in the namespace.
func (o *Overlay) nft(ns string, fn func(*nftables.Conn) error) error {
	return netns.Do(o.path(ns), func() error {
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			if err := c.SetReadBuffer(nftBuffer); err != nil {
				return err
			}
			return c.SetWriteBuffer(nftBuffer)
		}))
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		defer c.CloseLasting()
		return fn(c)
	})
}

func formatPorts(ports []uint16) string {
	var texts []string
	for _, p := range ports {
		texts = append(texts, strconv.Itoa(int(p)))
	}
	return strings.Join(texts, ",")
}

func parsePorts(text string) ([]uint16, error) {
	var ports []uint16
	for field := range strings.SplitSeq(text, ",") {
		port, err := strconv.ParseUint(field, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("parse data-path ports: %w", err)
		}
		ports = append(ports, uint16(port))
	}
	return ports, nil
}
