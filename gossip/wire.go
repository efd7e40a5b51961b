package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"netd"
)

// The messages of netd inside memberlist's user messages. The first byte says
// which; one of an unknown kind comes from a newer node and is passed over.
const (
	kindState  byte = 1 // one owner's state or a change to it: gossiped, and sent directly
	kindStates byte = 2 // many owners' whole states: the answer to a pull, and the push/pull of a join
	kindDigest byte = 3 // which states the sender holds: the periodic push/pull
	kindPull   byte = 4 // asks for the states of owners; lists what the sender has of them
	kindAck    byte = 5 // to an owner: the sender's kernel now holds this version
	kindAsk    byte = 6 // from an owner: have you got, and applied, this version?
)

// Bounds on what is read. A message is at most what memberlist lets through
// (20 MiB over TCP), and no count in it is believed before its bytes are there.
const (
	maxID     = 256     // bytes of a node, network or task ID
	maxStates = 8 << 20 // bytes of one kindStates message that we write
)

const flagLeft byte = 1

var errMalformed = errors.New("malformed message")

// stamp orders the states of one owner: a daemon's start, then its versions.
type stamp struct{ boot, version uint64 }

func (a stamp) less(b stamp) bool {
	return a.boot < b.boot || a.boot == b.boot && a.version < b.version
}

// change sets one endpoint's state; the zero state removes it.
type change struct {
	key   netd.EndpointKey
	state netd.EndpointState
}

// state is an owner's word on its endpoints. With base 0 changes are the whole
// state; otherwise they are what differs since version base of the same boot.
type state struct {
	owner netd.NodeID
	stamp
	base    uint64
	left    bool // the owner has left for good
	changes []change
}

// stamped names a version of an owner's state.
type stamped struct {
	owner netd.NodeID
	stamp
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendState writes s without its kind. Networks repeat, so they are written
// once: the first use of one carries its name, later ones its number.
func appendState(b []byte, s state) []byte {
	b = appendString(b, string(s.owner))
	b = binary.AppendUvarint(b, s.boot)
	b = binary.AppendUvarint(b, s.version)
	b = binary.AppendUvarint(b, s.base)
	var flags byte
	if s.left {
		flags |= flagLeft
	}
	b = append(b, flags)
	b = binary.AppendUvarint(b, uint64(len(s.changes)))
	networks := make(map[netd.NetworkID]uint64)
	for _, c := range s.changes {
		n, ok := networks[c.key.Network]
		if !ok {
			n = uint64(len(networks))
			networks[c.key.Network] = n
		}
		b = binary.AppendUvarint(b, n)
		if !ok {
			b = appendString(b, string(c.key.Network))
		}
		b = appendString(b, string(c.key.Task))
		b = append(b, byte(c.state))
	}
	return b
}

func encodeState(s state) []byte { return appendState([]byte{kindState}, s) }

// encodeList writes a digest, pull, ack or ask: who sends it and which versions.
func encodeList(kind byte, from netd.NodeID, list []stamped) []byte {
	b := appendString([]byte{kind}, string(from))
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, s := range list {
		b = appendString(b, string(s.owner))
		b = binary.AppendUvarint(b, s.boot)
		b = binary.AppendUvarint(b, s.version)
	}
	return b
}

// reader takes a message apart; after the first fault everything reads as zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail() {
	r.b, r.err = nil, errMalformed
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) id() string {
	n := r.uvarint()
	if n > maxID || n > uint64(len(r.b)) {
		r.fail()
		return ""
	}
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// count reads a number of things that take at least size bytes each.
func (r *reader) count(size int) int {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) state() state {
	s := state{owner: netd.NodeID(r.id())}
	s.boot, s.version, s.base = r.uvarint(), r.uvarint(), r.uvarint()
	s.left = r.byte()&flagLeft != 0
	n := r.count(3)
	if r.err == nil && (s.owner == "" || s.version == 0 || s.base > s.version || s.left && n > 0) {
		r.fail()
	}
	s.changes = make([]change, 0, n)
	var networks []netd.NetworkID
	for range n {
		i := r.uvarint()
		if i == uint64(len(networks)) {
			networks = append(networks, netd.NetworkID(r.id()))
		}
		task := netd.TaskID(r.id())
		value := netd.EndpointState(r.byte())
		if i >= uint64(len(networks)) {
			r.fail()
		}
		if r.err != nil {
			return state{}
		}
		s.changes = append(s.changes, change{netd.EndpointKey{Network: networks[i], Task: task}, value})
	}
	return s
}

func (r *reader) list() (from netd.NodeID, list []stamped) {
	from = netd.NodeID(r.id())
	n := r.count(3)
	list = make([]stamped, 0, n)
	for range n {
		s := stamped{owner: netd.NodeID(r.id())}
		s.boot, s.version = r.uvarint(), r.uvarint()
		if r.err != nil {
			return "", nil
		}
		list = append(list, s)
	}
	return from, list
}

// message is one decoded message: states of kindState and kindStates, from and
// list of the others.
type message struct {
	kind   byte
	states []state
	from   netd.NodeID
	list   []stamped
}

// decode reads a message. Bytes after its end are left for newer nodes to use.
func decode(b []byte) (message, error) {
	r := &reader{b: b}
	m := message{kind: r.byte()}
	switch m.kind {
	case kindState:
		m.states = []state{r.state()}
	case kindStates:
		n := r.count(6)
		for range n {
			if m.states = append(m.states, r.state()); r.err != nil {
				break
			}
		}
	case kindDigest, kindPull, kindAck, kindAsk:
		m.from, m.list = r.list()
	}
	if r.err != nil {
		return message{}, fmt.Errorf("decode gossip message of kind %d: %w", m.kind, r.err)
	}
	return m, nil
}

// encodeStates writes whole states, as many as fit, in their order.
func encodeStates(states []state) []byte {
	var body []byte
	n := 0
	for _, s := range states {
		next := appendState(body, s)
		if n > 0 && len(next) > maxStates {
			break
		}
		body, n = next, n+1
	}
	return append(binary.AppendUvarint([]byte{kindStates}, uint64(n)), body...)
}
