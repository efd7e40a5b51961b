package balancer

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// conntrack deletes connections from the kernel's table (linux/netfilter/
// nfnetlink_conntrack.h). For one VIP it has the kernel choose them: of a hundred
// thousand connections the VIP may have three.
type conntrack struct{ *mdl.Conn }

// Attributes of connections.
const (
	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaID         = 12
	ctaFilter     = 25 // since Linux 5.8; ignored before

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Src    = 1
	ctaIPv4Dst    = 2
	ctaProtoNum   = 1

	ctaFilterOrigFlags = 1
	filterIPDst        = 1 << 1
)

// Messages of connections.
const (
	ctGet    = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1
	ctDelete = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
)

// withConntrack calls fn with the table of the calling thread's namespace.
func withConntrack(fn func(*conntrack) error) error {
	conn, err := mdl.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open conntrack: %w", err)
	}
	defer conn.Close()
	return fn(&conntrack{conn})
}

// flush deletes all connections.
func (c *conntrack) flush() error {
	_, err := c.Execute(request(ctDelete, mdl.Acknowledge, nil))
	return err
}

// end deletes what the operations (all endOthers) name, in one pass over the
// table: a pass costs the kernel some milliseconds even where there is nothing,
// as the table is one for all namespaces.
func (c *conntrack) end(ops []op) error {
	if count, err := readSetting(conntrackSettings + "count"); err == nil && count == "0" {
		return nil
	}
	keep := map[netip.Addr][]netip.Addr{}
	for _, o := range ops {
		keep[o.(endOthers).vip] = o.(endOthers).keep
	}
	var filter []byte
	if len(ops) == 1 {
		var err error
		if filter, err = toAddress(ops[0].(endOthers).vip); err != nil {
			return err
		}
	}
	messages, err := c.Execute(request(ctGet, mdl.Dump, filter))
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	for _, m := range messages {
		f, err := parseFlow(m.Data)
		if err != nil {
			return err
		}
		backends, ours := keep[f.to]
		if !ours || f.protocol == unix.IPPROTO_ICMP || slices.Contains(backends, f.backend) {
			continue
		}
		_, err = c.Execute(request(ctDelete, mdl.Acknowledge, f.key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it ended by itself
			return fmt.Errorf("delete: %w", err)
		}
	}
	return nil
}

// toAddress has the kernel list only what was sent to the address.
func toAddress(to netip.Addr) ([]byte, error) {
	e := mdl.NewAttributeEncoder()
	e.Nested(ctaTupleOrig, func(tuple *mdl.AttributeEncoder) error {
		tuple.Nested(ctaTupleIP, func(ip *mdl.AttributeEncoder) error {
			ip.Bytes(ctaIPv4Dst, to.AsSlice())
			return nil
		})
		return nil
	})
	e.Nested(ctaFilter, func(f *mdl.AttributeEncoder) error {
		f.Uint32(ctaFilterOrigFlags, filterIPDst)
		return nil
	})
	return e.Encode()
}

func request(kind mdl.HeaderType, flags mdl.HeaderFlags, attrs []byte) mdl.Message {
	header := []byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0} // struct nfgenmsg
	return mdl.Message{
		Header: mdl.Header{Type: kind, Flags: mdl.Request | flags},
		Data:   append(header, attrs...),
	}
}

// flow is one connection.
type flow struct {
	to       netip.Addr // where the client sent its first packet
	backend  netip.Addr // who answers
	protocol uint8
	key      []byte // the attributes by which the kernel finds it again
}

func parseFlow(data []byte) (f flow, err error) {
	d, err := attributes(data[4:])
	if err != nil {
		return f, err
	}
	key := mdl.NewAttributeEncoder()
	for d.Next() {
		switch d.Type() {
		case ctaTupleOrig:
			_, f.to, f.protocol, err = parseTuple(d.Bytes())
			key.Bytes(ctaTupleOrig|unix.NLA_F_NESTED, d.Bytes())
		case ctaTupleReply:
			f.backend, _, _, err = parseTuple(d.Bytes())
		case ctaID:
			key.Bytes(ctaID, d.Bytes())
		}
		if err != nil {
			return f, err
		}
	}
	f.key, err = key.Encode()
	return f, errors.Join(d.Err(), err)
}

func parseTuple(data []byte) (from, to netip.Addr, protocol uint8, err error) {
	d, err := attributes(data)
	if err != nil {
		return from, to, 0, err
	}
	for d.Next() {
		switch d.Type() {
		case ctaTupleIP:
			d.Nested(func(ip *mdl.AttributeDecoder) error {
				for ip.Next() {
					switch ip.Type() {
					case ctaIPv4Src:
						from, _ = netip.AddrFromSlice(ip.Bytes())
					case ctaIPv4Dst:
						to, _ = netip.AddrFromSlice(ip.Bytes())
					}
				}
				return nil
			})
		case ctaTupleProto:
			d.Nested(func(proto *mdl.AttributeDecoder) error {
				for proto.Next() {
					if proto.Type() == ctaProtoNum {
						protocol = proto.Uint8()
					}
				}
				return nil
			})
		}
	}
	return from, to, protocol, d.Err()
}

func attributes(data []byte) (*mdl.AttributeDecoder, error) {
	d, err := mdl.NewAttributeDecoder(data)
	if err != nil {
		return nil, fmt.Errorf("decode connection: %w", err)
	}
	return d, nil
}
