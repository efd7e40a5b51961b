package gossip

import (
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
)

// The time between two attempts to join one address.
const (
	firstRedial = 200 * time.Millisecond
	lastRedial  = 3 * time.Second
)

// dial is one address that is to be joined: of the bootstrap set, or once, of a
// node that has restarted.
type dial struct {
	once    bool
	busy    bool
	reached bool // the last attempt got an answer
	wait    time.Duration
	next    time.Time
}

// after sets when to try again. It takes two exchanges to bring two nodes
// together that took each other for dead: the first tells each what the other
// believes of it. So the first success is followed up at once, and no more.
func (d *dial) after(reached bool, now time.Time) {
	if reached && !d.reached || d.wait == 0 {
		d.wait = firstRedial
	} else {
		d.wait = min(2*d.wait, lastRedial)
	}
	d.busy, d.reached, d.next = false, reached, now.Add(d.wait)
}

// SetPeers replaces the bootstrap set: addresses of nodes that should be
// members. As long as one is not, or has never been joined by this table, the
// table tries to join it. Without such a set on both sides two halves of a
// cluster that lost each other stay apart.
func (t *Table) SetPeers(peers []netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dials := make(map[netip.AddrPort]*dial, len(peers))
	for addr, d := range t.dials {
		if d.once {
			dials[addr] = d
		}
	}
	for _, p := range peers {
		p = netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
		if p == t.addr {
			continue
		}
		if d := t.dials[p]; d != nil && !d.once {
			dials[p] = d
		} else {
			dials[p] = &dial{}
		}
	}
	t.dials = dials
}

// dialOnceLocked joins an address at once, alive or not.
func (t *Table) dialOnceLocked(addr netip.AddrPort) {
	if t.dials[addr] == nil {
		t.dials[addr] = &dial{once: true}
	}
	t.redialSoonLocked(addr)
}

// redialSoonLocked begins anew with short waits for an address that was lost.
func (t *Table) redialSoonLocked(addr netip.AddrPort) {
	if d := t.dials[addr]; d != nil && !d.busy {
		*d = dial{once: d.once}
	}
}

// redial starts the attempts that are due.
func (t *Table) redial(group *errgroup.Group) {
	now := time.Now()
	t.mu.Lock()
	alive := make(map[netip.AddrPort]bool, len(t.members))
	for _, m := range t.members {
		if m.alive {
			alive[m.addrPort()] = true
		}
	}
	due := make(map[netip.AddrPort]*dial)
	for addr, d := range t.dials {
		if d.busy || now.Before(d.next) || alive[addr] && d.reached && !d.once {
			continue
		}
		d.busy = true
		due[addr] = d
	}
	t.mu.Unlock()
	for addr, d := range due {
		started := group.TryGo(func() error {
			_, err := t.list.Join([]string{addr.String()})
			if err != nil {
				t.log.Debug("join gossip peer", "peer", addr, "err", err)
			}
			t.mu.Lock()
			defer t.mu.Unlock()
			d.after(err == nil, time.Now())
			if d.once && t.dials[addr] == d {
				delete(t.dials, addr)
			}
			return nil
		})
		if !started { // all are busy: next time
			t.mu.Lock()
			d.busy = false
			t.mu.Unlock()
		}
	}
}
