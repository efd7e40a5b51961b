package vxlan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// returnTable is the name of two tables in the router of a network with Return:
//
//	table ip netd-return {
//	  map origins { type ether_addr : mark }    # a peer's router : its mark
//	  chain origin { type filter hook prerouting priority mangle - 1
//	    iifname "vx" ip saddr != SUBNET ct mark set ether saddr map @origins
//	    iifname "vx" ip saddr != SUBNET ct state new ct mark 0 drop
//	    iifname != "vx" ct mark != 0 meta mark set ct mark }
//	}
//	table netdev netd-return {
//	  map hops { type mark : ether_addr }       # and back
//	  chain out { type filter hook egress device "vx" priority filter
//	    ether daddr set meta mark map @hops }   # without nft's own check of the link's type, which fails here
//	}
//
// So a connection from outside of the subnet is noted with the node that it came
// by, and every answer goes back there: a rule and a route send what is marked to
// the VXLAN device, where the mark becomes the peer's hardware address. However
// many peers there are, it is one rule and one lookup. Each packet renews the
// note, so that a client may change its way into the swarm.
//
// Their value as one object is the subnet and the peers, or returnForeign.
const returnTable = "netd-return"

const returnForeign = "unknown"

// The number of the routing table and of the rule that leads there.
const returnRoutes = 78

// The next hop of all that is marked. No FDB entry has its hardware address, so
// that a packet whose mark no peer has goes nowhere.
var (
	returnAddr = netip.AddrFrom4([4]byte{169, 254, 3, 1})
	returnMAC  = MAC{0x02, 'n', 'e', 't', 'd', 0x03}
)

// returnSysctls are the router's. An answer that conntrack cannot place would
// leave unmarked, by the wrong node: so nothing is out of the window, and a
// silent UDP flow lives as long as the balancer keeps it.
func returnSysctls() map[string]string {
	return map[string]string{
		"net/netfilter/nf_conntrack_tcp_be_liberal": "1",
		"net/netfilter/nf_conntrack_udp_timeout":    "120",
	}
}

// ipRule is the value of the rule that leads marked packets to the table.
type ipRule struct{ foreign bool }

func (b *builder) returns(n Network) {
	for name, value := range returnSysctls() {
		b.add(key{kind: kindSysctl, ns: n.Router, name: name}, value)
	}
	b.neigh(n.Router, vxlanName, returnAddr, returnMAC)
	b.add(key{kind: kindRoute, ns: n.Router, dst: all, table: returnRoutes}, route{link: vxlanName, via: returnAddr})
	b.add(key{kind: kindRule, ns: n.Router}, ipRule{})
	b.add(key{kind: kindReturn, ns: n.Router, link: vxlanName}, formatReturn(n.Subnet, n.Peers))
}

// mark is the peer's own: its VTEP, or of an IPv6 one the end of its router's
// hardware address, which is a hash.
func (p Peer) mark() uint32 {
	if p.VTEP.Is4() {
		b := p.VTEP.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	return binary.BigEndian.Uint32(p.MAC[2:])
}

func formatReturn(subnet netip.Prefix, peers []Peer) string {
	origins := map[MAC]uint32{}
	for _, p := range peers {
		origins[p.MAC] = p.mark()
	}
	return formatOrigins(subnet, origins)
}

func formatOrigins(subnet netip.Prefix, origins map[MAC]uint32) string {
	var texts []string
	for mac, mark := range origins {
		texts = append(texts, fmt.Sprintf("%s=%08x", mac, mark))
	}
	slices.Sort(texts)
	return strings.Join(append([]string{subnet.String()}, texts...), " ")
}

func parseReturn(text string) (subnet netip.Prefix, origins map[MAC]uint32, err error) {
	fields := strings.Fields(text)
	if len(fields) == 0 {
		return subnet, nil, errors.New("parse origins: nothing there")
	}
	if subnet, err = netip.ParsePrefix(fields[0]); err != nil {
		return subnet, nil, fmt.Errorf("parse origins: %w", err)
	}
	origins = map[MAC]uint32{}
	for _, f := range fields[1:] {
		var mac MAC
		var mark uint32
		if _, err := fmt.Sscanf(f, "%02x:%02x:%02x:%02x:%02x:%02x=%08x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5], &mark); err != nil {
			return subnet, nil, fmt.Errorf("parse origin %q: %w", f, err)
		}
		origins[mac] = mark
	}
	return subnet, origins, nil
}

func returnTables() (ip, netdev *nftables.Table) {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: returnTable},
		&nftables.Table{Family: nftables.TableFamilyNetdev, Name: returnTable}
}

func returnMaps(ip, netdev *nftables.Table) (origins, hops *nftables.Set) {
	// IDs of our own: the library's come from an unguarded counter.
	return &nftables.Set{Table: ip, Name: "origins", ID: 1, IsMap: true, KeyType: nftables.TypeEtherAddr, DataType: nftables.TypeMark},
		&nftables.Set{Table: netdev, Name: "hops", ID: 2, IsMap: true, KeyType: nftables.TypeMark, DataType: nftables.TypeEtherAddr}
}

func returnChains(ip, netdev *nftables.Table) (origin, out *nftables.Chain) {
	return &nftables.Chain{Table: ip, Name: "origin", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting,
			Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityMangle - 1)},
		&nftables.Chain{Table: netdev, Name: "out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookEgress,
			Priority: nftables.ChainPriorityFilter, Device: vxlanName}
}

// originRules are those of the chain origin.
func originRules(subnet netip.Prefix) [][]expr.Any {
	zero := make([]byte, 4)
	byVX := func(op expr.CmpOp) []expr.Any {
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte(vxlanName + "\x00")}}
	}
	mask := ipNet(subnet).Mask
	outside := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, // RFC 791: the source
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: subnet.Addr().AsSlice()},
	}
	ctMark := &expr.Ct{Key: expr.CtKeyMARK, Register: 1}
	return [][]expr.Any{
		slices.Concat(byVX(expr.CmpOpEq), outside, []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: "origins"},
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
		}),
		slices.Concat(byVX(expr.CmpOpEq), outside, []expr.Any{
			&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
			&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: zero},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
			ctMark, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: zero},
		}, drop()),
		slices.Concat(byVX(expr.CmpOpNeq), []expr.Any{
			ctMark, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
		}),
	}
}

// outRules are those of the chain out.
func outRules() [][]expr.Any {
	return [][]expr.Any{{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: "hops"},
		&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
	}}
}

// setReturn makes or removes the tables of a router, in one transaction.
func (o *Overlay) setReturn(op op) error {
	return o.nft(op.key.ns, func(c *nftables.Conn) error {
		ip, netdev := returnTables()
		for _, table := range []*nftables.Table{ip, netdev} {
			c.AddTable(table) // so that there is one to remove
			c.DelTable(table)
		}
		if op.verb == verbDel {
			return c.Flush()
		}
		subnet, origins, err := parseReturn(op.value.(string))
		if err != nil {
			return err
		}
		c.AddTable(ip)
		c.AddTable(netdev)
		originMap, hopMap := returnMaps(ip, netdev)
		if err := errors.Join(c.AddSet(originMap, nil), c.AddSet(hopMap, nil)); err != nil {
			return err
		}
		if err := addOrigins(c, originMap, hopMap, origins); err != nil {
			return err
		}
		origin, out := returnChains(ip, netdev)
		c.AddChain(origin)
		c.AddChain(out)
		for _, exprs := range originRules(subnet) {
			c.AddRule(&nftables.Rule{Table: ip, Chain: origin, Exprs: exprs})
		}
		for _, exprs := range outRules() {
			c.AddRule(&nftables.Rule{Table: netdev, Chain: out, Exprs: exprs})
		}
		err = c.Flush()
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("this kernel cannot send answers back through the node that a client came by: that takes nftables' egress hook, of Linux 5.16 (CONFIG_NETFILTER_EGRESS): %w", err)
		}
		return err
	})
}

// addOrigins adds some elements at a time, as a message of netlink holds them in
// one attribute of at most 64 KiB.
func addOrigins(c *nftables.Conn, originMap, hopMap *nftables.Set, origins map[MAC]uint32) error {
	const most = 500
	var there, back []nftables.SetElement
	for mac, mark := range origins {
		number := binaryutil.NativeEndian.PutUint32(mark)
		there = append(there, nftables.SetElement{Key: mac[:], Val: number})
		back = append(back, nftables.SetElement{Key: number, Val: mac[:]})
	}
	for i := 0; i < len(there); i += most {
		end := min(i+most, len(there))
		if err := errors.Join(c.SetAddElements(originMap, there[i:end]), c.SetAddElements(hopMap, back[i:end])); err != nil {
			return err
		}
	}
	return nil
}

// readReturn returns the value of a router's tables, "" when there are none.
func (o *Overlay) readReturn(router string) string {
	value := ""
	err := o.nft(router, func(c *nftables.Conn) error {
		ip, netdev := returnTables()
		for _, table := range []*nftables.Table{ip, netdev} {
			tables, err := c.ListTablesOfFamily(table.Family)
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == returnTable }) {
				return nil
			}
		}
		value = returnForeign
		return readOrigins(c, ip, netdev, &value)
	})
	if err != nil {
		return value
	}
	return value
}

func readOrigins(c *nftables.Conn, ip, netdev *nftables.Table, value *string) error {
	originMap, hopMap := returnMaps(ip, netdev)
	there, err := c.GetSetElements(originMap)
	if err != nil {
		return err
	}
	back, err := c.GetSetElements(hopMap)
	if err != nil {
		return err
	}
	hops := map[string][]byte{}
	for _, e := range back {
		hops[string(e.Key)] = e.Val
	}
	origins := map[MAC]uint32{}
	for _, e := range there {
		if len(e.Key) < 6 || len(e.Val) != 4 || len(hops[string(e.Val)]) < 6 || !bytes.Equal(hops[string(e.Val)][:6], e.Key[:6]) {
			return nil // foreign
		}
		origins[MAC(e.Key[:6])] = binaryutil.NativeEndian.Uint32(e.Val)
	}
	origin, out := returnChains(ip, netdev)
	marking, ok := rulesOf(c, origin)
	if !ok || len(hops) != len(origins) {
		return nil
	}
	steering, ok := rulesOf(c, out)
	if !ok {
		return nil
	}
	subnet, ok := subnetIn(marking)
	if ok && sameRules(marking, originRules(subnet)) && sameRules(steering, outRules()) {
		*value = formatOrigins(subnet, origins)
	}
	return nil
}

// rulesOf returns the rules of a chain if it hangs where ours does and is alone.
func rulesOf(c *nftables.Conn, want *nftables.Chain) ([][]expr.Any, bool) {
	chains, err := c.ListChainsOfTableFamily(want.Table.Family)
	if err != nil {
		return nil, false
	}
	chains = slices.DeleteFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name != returnTable })
	if len(chains) != 1 || chainID(chains[0]) != chainID(want) {
		return nil, false
	}
	rules, err := c.GetRules(want.Table, want)
	if err != nil {
		return nil, false
	}
	var exprs [][]expr.Any
	for _, r := range rules {
		exprs = append(exprs, r.Exprs)
	}
	return exprs, true
}

// sameRules compares rules with ours as the library reads them: it loses the
// register of what sets a connection's mark.
func sameRules(have, want [][]expr.Any) bool {
	for _, rule := range want {
		for i, e := range rule {
			if ct, ok := e.(*expr.Ct); ok && ct.SourceRegister {
				rule[i] = &expr.Ct{Key: ct.Key}
			}
		}
	}
	return reflect.DeepEqual(have, want)
}

// subnetIn finds the subnet that the first rule names.
func subnetIn(rules [][]expr.Any) (netip.Prefix, bool) {
	if len(rules) == 0 {
		return netip.Prefix{}, false
	}
	for i, e := range rules[0] {
		mask, isMask := e.(*expr.Bitwise)
		if !isMask || i+1 == len(rules[0]) {
			continue
		}
		cmp, isCmp := rules[0][i+1].(*expr.Cmp)
		if !isCmp || len(cmp.Data) != 4 || len(mask.Mask) != 4 {
			continue
		}
		bits := 0
		for _, b := range mask.Mask {
			for ; b&0x80 != 0; b <<= 1 {
				bits++
			}
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(cmp.Data)), bits), true
	}
	return netip.Prefix{}, false
}

// returnRule is "not fwmark 0 lookup 78". What only the balancer marked is for a
// local address, which comes before.
func returnRule() *netlink.Rule {
	mask := uint32(0xffffffff)
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table, r.Mask, r.Invert = unix.AF_INET, returnRoutes, returnRoutes, &mask, true
	return r
}

func doRule(h *netns.Handle, o op) error {
	if o.verb != verbAdd {
		old := netlink.NewRule()
		old.Family, old.Priority = unix.AF_INET, returnRoutes
		if err := h.RuleDel(old); err != nil || o.verb == verbDel {
			return err
		}
	}
	return h.RuleAdd(returnRule())
}

// readRule notes what has our rule's place.
func (s *space) readRule() error {
	rules, err := s.h.RuleList(unix.AF_INET)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if r.Priority == returnRoutes {
			fine := r.Table == returnRoutes && r.Invert && r.Mark == 0 && r.Mask != nil && *r.Mask == 0xffffffff &&
				r.Src == nil && r.Dst == nil && r.IifName == "" && r.OifName == ""
			s.state[s.key(kindRule, "")] = ipRule{foreign: !fine}
		}
	}
	return nil
}
