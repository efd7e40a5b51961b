package ingress

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the one table of the host:
//
//	table ip netd-ingress {
//	  map ports { type inet_proto . inet_service : ipv4_addr . inet_service }
//	  chain guard       { type filter hook prerouting priority raw
//	    iifname "nd-up*" ip saddr 127.0.0.0/8 drop      # see settingOf
//	    iifname "nd-up*" ip daddr 127.0.0.0/8 drop }
//	  chain prerouting  { type nat hook prerouting priority dstnat
//	    fib daddr type local dnat to meta l4proto . th dport map @ports }
//	  chain output      { type nat hook output priority dstnat
//	    the same, for the node's own processes }
//	  chain postrouting { type nat hook postrouting priority srcnat
//	    iifname "nd-up*" oifname "nd-up*" ct status dnat masquerade
//	    ip saddr 127.0.0.0/8 oifname "nd-up*" masquerade }
//	}
//
// One lookup for each new connection, however many ports are published.
const (
	tableName    = "netd-ingress"
	mapPorts     = "ports"
	uplinkPrefix = "nd-up"
)

// Registers: the second is the word behind the first, where the second part of a
// concatenated key or value is.
const (
	reg     = unix.NFT_REG_1
	regNext = unix.NFT_REG32_01
)

type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

func chains() []chain {
	translate := slices.Concat(toLocal(), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Payload{DestRegister: regNext, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: mapPorts},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegAddrMax: reg,
			RegProtoMin: regNext, RegProtoMax: regNext, Specified: true},
	})
	const offsetSrc, offsetDst = 12, 16 // RFC 791
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	masquerade := []expr.Any{&expr.Masq{}}
	return []chain{
		{"guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw, [][]expr.Any{
			slices.Concat(uplink(expr.MetaKeyIIFNAME), loopback(offsetSrc), drop),
			slices.Concat(uplink(expr.MetaKeyIIFNAME), loopback(offsetDst), drop),
		}},
		{"output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, [][]expr.Any{translate}},
		{"postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, [][]expr.Any{
			slices.Concat(uplink(expr.MetaKeyIIFNAME), uplink(expr.MetaKeyOIFNAME), translated(), masquerade),
			slices.Concat(loopback(offsetSrc), uplink(expr.MetaKeyOIFNAME), masquerade),
		}},
		{"prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, [][]expr.Any{translate}},
	}
}

// toLocal goes on for a destination that is one of the node's own addresses.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func uplink(side expr.MetaKey) []expr.Any {
	return []expr.Any{&expr.Meta{Key: side, Register: reg}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte(uplinkPrefix)}}
}

func loopback(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{127}},
	}
}

// translated goes on for connections whose destination was changed.
func translated() []expr.Any {
	const ipsDstNAT = 1 << 5 // kernel uapi/linux/netfilter/nf_conntrack_common.h
	zero := make([]byte, 4)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: zero},
	}
}

// codeOf formats rules so that those sent and those read back are equal.
func codeOf(rules [][]expr.Any) string {
	var b strings.Builder
	for _, exprs := range rules {
		for _, e := range exprs {
			if l, ok := e.(*expr.Lookup); ok { // the ID is only valid inside one transaction
				byName := *l
				byName.SetID = 0
				e = &byName
			}
			fmt.Fprintf(&b, "%T%+v\n", e, e)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func (c chain) id() string {
	return fmt.Sprintf("%s %s %d %d", c.name, c.kind, *c.hook, *c.priority)
}
