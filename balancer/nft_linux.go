package balancer

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// openNFT opens the calling thread's namespace. The acknowledgements of a large
// transaction come all at once, and with the default buffers they are lost: it
// is then reported as failed although it was applied.
func openNFT() (*nftables.Conn, error) {
	const buffer = 64 << 20 // bytes; the most, used only while a large answer is read
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdl.Conn) error {
		if err := c.SetReadBuffer(buffer); err != nil {
			return err
		}
		return c.SetWriteBuffer(buffer)
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return conn, nil
}

func readNFT(conn *nftables.Conn, have *table) error {
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == tableName {
			have.exists, have.flags = true, t.Flags
		}
	}
	if !have.exists {
		return nil
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != tableName {
			continue
		}
		rules, err := conn.GetRules(ourTable(), c)
		if err != nil {
			return fmt.Errorf("list rules of chain %q: %w", c.Name, err)
		}
		read := chain{name: c.Name, base: baseOf(c)}
		for _, r := range rules {
			read.rules = append(read.rules, rule{code: codeOf(r.Exprs)})
		}
		have.chains = append(have.chains, read)
	}
	sets, err := conn.GetSets(ourTable())
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		read, err := readSet(conn, s)
		if err != nil {
			return fmt.Errorf("list elements of %q: %w", s.Name, err)
		}
		have.sets = append(have.sets, read)
	}
	sortTable(have)
	return nil
}

func ourTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
}

func baseOf(c *nftables.Chain) base {
	if c.Hooknum == nil || c.Priority == nil {
		return base{}
	}
	return base{
		kind: string(c.Type), hook: uint32(*c.Hooknum), priority: int32(*c.Priority),
		drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
	}
}

func readSet(conn *nftables.Conn, s *nftables.Set) (set, error) {
	read := set{name: s.Name, shape: shapeOf(s)}
	if read.shape.alien {
		return read, nil
	}
	elems, err := conn.GetSetElements(s)
	if err != nil {
		return read, err
	}
	for _, e := range elems {
		read.elems = append(read.elems, readElem(read.shape, e))
	}
	return read, nil
}

// shapes are those of our sets. The library loses a verdict map's key type, and
// of verdict maps we have but one.
func shapeOf(s *nftables.Set) shape {
	alien := shape{alien: true}
	if s.Anonymous || s.Constant || s.Interval || s.HasTimeout || s.Dynamic || s.Size != 0 {
		return alien
	}
	if s.IsMap && s.KeyType.GetNFTMagic() == nftables.TypeVerdict.GetNFTMagic() {
		return shape{key: [2]field{fieldAddr}, data: fieldVerdict}
	}
	for _, known := range []shape{
		{key: [2]field{fieldAddr}},
		{key: [2]field{fieldAddr, fieldAddr}},
		{key: [2]field{fieldAddr}, data: fieldMark},
		{key: [2]field{fieldAddr, fieldAddr}, data: fieldAddr},
		{key: [2]field{fieldAddr, fieldMark}, data: fieldAddr},
	} {
		w := newSet("", known)
		if w.IsMap == s.IsMap && w.KeyType.GetNFTMagic() == s.KeyType.GetNFTMagic() && w.DataType.GetNFTMagic() == s.DataType.GetNFTMagic() {
			return known
		}
	}
	return alien
}

func newSet(name string, s shape) *nftables.Set {
	types := map[field]nftables.SetDatatype{
		fieldAddr: nftables.TypeIPAddr, fieldMark: nftables.TypeMark, fieldVerdict: nftables.TypeVerdict,
	}
	// Without an ID of ours the library takes one from a counter that all its
	// users share unguarded. We never refer to a set by it.
	n := &nftables.Set{Table: ourTable(), Name: name, ID: 1, KeyType: types[s.key[0]]}
	if s.key[1] != "" {
		n.Concatenation = true
		n.KeyType = nftables.MustConcatSetType(types[s.key[0]], types[s.key[1]])
	}
	if s.data != "" {
		n.IsMap, n.DataType = true, types[s.data]
	}
	return n
}

// readElem decodes an element; what is not as we write it gets a value that
// differs from all of ours.
func readElem(s shape, e nftables.SetElement) elem {
	var read elem
	for i, f := range s.key {
		if f != "" && len(e.Key) >= 4*(i+1) {
			read.key[i] = f.decode(e.Key[4*i:])
		}
	}
	switch {
	case s.data == fieldVerdict:
		read.jump = jumpOf(e.Val)
	case s.data != "" && len(e.Val) == 4:
		read.data = s.data.decode(e.Val)
	}
	return read
}

// jumpOf decodes a verdict (enum nft_verdict_attributes).
func jumpOf(data []byte) string {
	d, err := mdl.NewAttributeDecoder(data)
	if err != nil {
		return "?"
	}
	d.ByteOrder = binary.BigEndian
	code, name := int32(0), ""
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(d.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			name = d.String()
		}
	}
	if d.Err() != nil || code != unix.NFT_JUMP {
		return "?"
	}
	return name
}

func (f field) order() binaryutil.ByteOrder {
	if f == fieldMark {
		return binaryutil.NativeEndian
	}
	return binaryutil.BigEndian
}

func (f field) decode(b []byte) uint32    { return f.order().Uint32(b[:4]) }
func (f field) encode(word uint32) []byte { return f.order().PutUint32(word) }

// transact applies operations of nftables in one transaction: all or none.
func transact(conn *nftables.Conn, ops []op) error {
	for _, o := range ops {
		if err := buffer(conn, o); err != nil {
			return err
		}
	}
	return conn.Flush()
}

func buffer(conn *nftables.Conn, o op) error {
	switch o := o.(type) {
	case addTable:
		conn.AddTable(ourTable())
	case delTable:
		conn.DelTable(ourTable())
	case addSet:
		return conn.AddSet(newSet(o.name, o.shape), nil)
	case addChain:
		conn.AddChain(newChain(o))
	case delChain:
		conn.FlushChain(newChain(addChain{name: o.name}))
		conn.DelChain(newChain(addChain{name: o.name}))
	case addRule:
		r := &nftables.Rule{Table: ourTable(), Chain: &nftables.Chain{Name: o.chain}, Exprs: o.rule.exprs}
		if o.rule.comment != "" {
			r.UserData = userdata.AppendString(nil, userdata.TypeComment, o.rule.comment)
		}
		conn.AddRule(r)
	case addElems:
		return inChunks(elemOps(o), conn.SetAddElements)
	case delElems:
		return inChunks(elemOps(o), conn.SetDeleteElements)
	default:
		return fmt.Errorf("unknown operation %T", o)
	}
	return nil
}

func newChain(o addChain) *nftables.Chain {
	c := &nftables.Chain{Name: o.name, Table: ourTable()}
	if o.base == (base{}) {
		return c
	}
	c.Type = nftables.ChainType(o.base.kind)
	c.Hooknum = nftables.ChainHookRef(nftables.ChainHook(o.base.hook))
	c.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(o.base.priority))
	policy := nftables.ChainPolicyAccept
	if o.base.drop {
		policy = nftables.ChainPolicyDrop
	}
	c.Policy = &policy
	return c
}

// inChunks calls fn with some elements at a time: a message holds them in one
// attribute, of at most 64 KiB (struct nlattr, nla_len).
func inChunks(o elemOps, fn func(*nftables.Set, []nftables.SetElement) error) error {
	const most = 500
	for len(o.elems) > 0 {
		n := min(most, len(o.elems))
		chunk := make([]nftables.SetElement, n)
		for i, e := range o.elems[:n] {
			chunk[i] = encode(o.set.shape, e)
		}
		if err := fn(newSet(o.set.name, o.set.shape), chunk); err != nil {
			return err
		}
		o.elems = o.elems[n:]
	}
	return nil
}

func encode(s shape, e elem) nftables.SetElement {
	var n nftables.SetElement
	for i, f := range s.key {
		if f != "" {
			n.Key = append(n.Key, f.encode(e.key[i])...)
		}
	}
	switch s.data {
	case "":
	case fieldVerdict:
		n.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.jump}
	default:
		n.Val = s.data.encode(e.data)
	}
	return n
}
