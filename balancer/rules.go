package balancer

import (
	"fmt"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is our nftables table (family ip) in each router.
const tableName = "netd-balancer"

// Sets and maps of both kinds.
const (
	setAlias = "alias" // the hairpin alias
	setSelf  = "self"  // own container . own container : alias
)

// Priorities of our chains, as in nft(8).
const (
	priorityRaw    = -300
	priorityMangle = -150
	priorityDstNAT = -100
	priorityFilter = 0
	prioritySrcNAT = 100
)

// Registers. The second is the word behind the first, where the second part of
// a concatenated key goes.
const (
	reg     = unix.NFT_REG_1
	regNext = unix.NFT_REG32_01
)

// rule is one nftables rule.
type rule struct {
	text    string // as in nft(8)
	comment string
	exprs   []expr.Any // what the kernel is given; nil in what was read
	code    string     // canonical text of exprs, by which rules are compared
}

func newRule(text, comment string, parts ...[]expr.Any) rule {
	r := rule{text: text, comment: comment}
	for _, part := range parts {
		r.exprs = append(r.exprs, part...)
	}
	r.code = codeOf(r.exprs)
	return r
}

func (r rule) equal(o rule) bool { return r.code == o.code }

// codeOf formats expressions so that those sent and those read back are equal.
func codeOf(exprs []expr.Any) string {
	var b strings.Builder
	for _, e := range exprs {
		if lookup, ok := e.(*expr.Lookup); ok { // the id is only valid inside one transaction
			byName := *lookup
			byName.SetID = 0
			e = &byName
		}
		fmt.Fprintf(&b, "%T%+v\n", e, e)
	}
	return b.String()
}

// IPv4 header fields (RFC 791): offset of the source and destination address.
const (
	offsetSrc = 12
	offsetDst = 16
)

func loadAddr(offset, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}}
}

// setAddr writes reg to an address field and mends the checksums of the IP
// header and of TCP or UDP above it.
func setAddr(offset uint32) []expr.Any {
	return []expr.Any{&expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: reg,
		Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
	}}
}

// inSet goes on where reg is an element of the set.
func inSet(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: name}}
}

// viaMap replaces reg by what the map holds for it, and goes on if it has it.
func viaMap(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, DestRegister: reg, IsDestRegSet: true, SetName: name}}
}

// verdictOf does what the map says for reg.
func verdictOf(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: name}}
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: []byte{number}},
	}
}

// notOpening goes on for a TCP segment that does not open a connection (RFC 9293,
// 3.1: the flags are in byte 13).
func notOpening() []expr.Any {
	const finSynRstAck, syn = 0x17, 0x02
	return append(protocol(unix.IPPROTO_TCP),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{finSynRstAck}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: []byte{syn}},
	)
}

// balanced goes on for packets of connections whose destination we changed.
func balanced() []expr.Any {
	const ipsDstNAT = 1 << 5 // enum ip_conntrack_status
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg},
		&expr.Bitwise{
			SourceRegister: reg, DestRegister: reg, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func nat(kind expr.NATType) []expr.Any {
	return []expr.Any{&expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegAddrMin: reg, RegAddrMax: reg}}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}

func reject(kind uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}

// hairpinSets are the sets of both kinds by which a container that is balanced
// to itself is found. Both ends of such a connection have the same address, and
// the container's kernel would drop it as its own: so the caller's address is
// replaced by the alias on the way in, and the alias by the container's address
// on the way back.
func hairpinSets(r Router) []set {
	alias := set{name: setAlias, shape: shape{key: [2]field{fieldAddr}}}
	self := set{name: setSelf, shape: shape{key: [2]field{fieldAddr, fieldAddr}, data: fieldAddr}}
	if r.Alias.IsValid() {
		alias.elems = []elem{{key: [2]uint32{word(r.Alias)}}}
	}
	for _, local := range r.Locals {
		self.elems = append(self.elems, elem{key: [2]uint32{word(local), word(local)}, data: word(r.Alias)})
	}
	return []set{alias, self}
}

func setMark() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg}}
}
