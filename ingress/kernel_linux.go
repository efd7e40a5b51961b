package ingress

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// read returns what the kernel holds.
func (i *Ingress) read() (state, error) {
	have := state{ports: map[portKey]netip.AddrPort{}, local: map[string]bool{}}
	err := i.inside(func(c *nftables.Conn) error {
		var err error
		if have.table, err = readTable(c, have.ports); err != nil {
			return fmt.Errorf("read nft table %q: %w", tableName, err)
		}
		// Of the thread, whose namespace it shows.
		settings, err := filepath.Glob("/proc/sys/net/ipv4/conf/" + uplinkPrefix + "*/route_localnet")
		for _, path := range settings {
			if value, rerr := os.ReadFile(path); rerr == nil && strings.TrimSpace(string(value)) == "1" {
				have.local[filepath.Base(filepath.Dir(path))] = true
			}
		}
		return err
	})
	return have, err
}

// inside runs fn in the host's namespace with a connection there.
func (i *Ingress) inside(fn func(*nftables.Conn) error) error {
	return netns.Do(fmt.Sprintf("/proc/self/fd/%d", i.host.Fd()), func() error {
		// With less, the acknowledgements of a large transaction are lost, and it is
		// reported as failed although it was applied.
		const buffer = 64 << 20 // bytes
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdl.Conn) error {
			return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer))
		}))
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		defer c.CloseLasting()
		return fn(c)
	})
}

func ourTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: tableName}
}

func portsMap() *nftables.Set {
	return &nftables.Set{
		Table: ourTable(), Name: mapPorts, ID: 1, IsMap: true, Concatenation: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
	}
}

func readTable(c *nftables.Conn, ports map[portKey]netip.AddrPort) (tableState, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return tableNone, err
	}
	found := tableNone
	for _, t := range tables {
		if t.Name == tableName {
			found = tableOurs
			if t.Flags != 0 { // dormant, or owned by a process
				return tableForeign, nil
			}
		}
	}
	if found == tableNone {
		return tableNone, nil
	}
	same, err := sameChains(c)
	if err != nil || !same {
		return tableForeign, err
	}
	sets, err := c.GetSets(ourTable())
	if err != nil {
		return tableForeign, err
	}
	want := portsMap()
	if len(sets) != 1 || sets[0].Name != mapPorts || !sets[0].IsMap ||
		sets[0].KeyType.GetNFTMagic() != want.KeyType.GetNFTMagic() || sets[0].DataType.GetNFTMagic() != want.DataType.GetNFTMagic() {
		return tableForeign, nil
	}
	elems, err := c.GetSetElements(sets[0])
	if err != nil {
		return tableForeign, err
	}
	for _, e := range elems {
		if len(e.Key) < 6 || len(e.Val) < 6 {
			return tableForeign, nil
		}
		k := portKey{Protocol(e.Key[0]), binaryutil.BigEndian.Uint16(e.Key[4:6])}
		ports[k] = netip.AddrPortFrom(netip.AddrFrom4([4]byte(e.Val[:4])), binaryutil.BigEndian.Uint16(e.Val[4:6]))
	}
	return tableOurs, nil
}

// sameChains compares the chains of the table and their rules with ours.
func sameChains(c *nftables.Conn) (bool, error) {
	list, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, err
	}
	have := map[string]string{}
	for _, ch := range list {
		if ch.Table.Name != tableName {
			continue
		}
		rules, err := c.GetRules(ourTable(), ch)
		if err != nil {
			return false, err
		}
		exprs := make([][]expr.Any, len(rules))
		for i, r := range rules {
			exprs[i] = r.Exprs
		}
		if ch.Hooknum == nil || ch.Priority == nil || ch.Policy != nil && *ch.Policy != nftables.ChainPolicyAccept {
			return false, nil
		}
		have[chain{ch.Name, ch.Type, ch.Hooknum, ch.Priority, nil}.id()] = codeOf(exprs)
	}
	for _, w := range chains() {
		if code, ok := have[w.id()]; !ok || code != codeOf(w.rules) {
			return false, nil
		}
	}
	return len(have) == len(chains()), nil
}

// do does the ops of one step.
func (i *Ingress) do(step []op) error {
	return i.inside(func(c *nftables.Conn) error {
		switch o := step[0]; {
		case o.inTable():
			return transact(c, step)
		case o.kind == opForget:
			return forget(o.port)
		case o.kind == opLocal:
			return netns.SetSysctl("", settingOf(o.link), "1")
		default:
			err := netns.SetSysctl("", settingOf(o.link), "0")
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the link is gone
			}
			return err
		}
	})
}

// transact applies ops of the table: all or none.
func transact(c *nftables.Conn, ops []op) error {
	for _, o := range ops {
		switch o.kind {
		case opDelTable:
			c.DelTable(ourTable())
		case opAddTable:
			if err := addTable(c); err != nil {
				return err
			}
		case opDel:
			if err := c.SetDeleteElements(portsMap(), []nftables.SetElement{{Key: keyOf(o.port)}}); err != nil {
				return err
			}
		case opAdd:
			if err := c.SetAddElements(portsMap(), []nftables.SetElement{{Key: keyOf(o.port), Val: valueOf(o.port)}}); err != nil {
				return err
			}
		}
	}
	return c.Flush()
}

func addTable(c *nftables.Conn) error {
	c.AddTable(ourTable())
	if err := c.AddSet(portsMap(), nil); err != nil {
		return err
	}
	for _, ch := range chains() {
		made := c.AddChain(&nftables.Chain{Table: ourTable(), Name: ch.name, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority})
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{Table: ourTable(), Chain: made, Exprs: exprs})
		}
	}
	return nil
}

// keyOf and valueOf pad each part to a word, as the kernel does.
func keyOf(p Port) []byte {
	port := binaryutil.BigEndian.PutUint16(p.Port)
	return []byte{byte(p.Protocol), 0, 0, 0, port[0], port[1], 0, 0}
}

func valueOf(p Port) []byte {
	port := binaryutil.BigEndian.PutUint16(p.To.Port())
	return append(p.To.Addr().AsSlice(), port[0], port[1], 0, 0)
}

// forget ends the flows that were sent to the port.
func forget(p Port) error {
	h, err := netns.Open("", unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	f := &netlink.ConntrackFilter{}
	if err := errors.Join(f.AddProtocol(uint8(p.Protocol)), f.AddPort(netlink.ConntrackOrigDstPort, p.Port)); err != nil {
		return err
	}
	_, err = h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	return err
}
