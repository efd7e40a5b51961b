//go:build linux

package balancer

import (
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"netd/internal/netns"

	"netd/internal/nettest"
)

// New connections to a VIP reach every ready backend, near and far, on TCP and
// UDP, and each backend sees the client's own address.
func TestRootSpread(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12), ready(b13)), behind(other, ready(b12)))
		for _, network := range []string{"tcp", "udp"} {
			wantNames(t, network, w.ask(40, client, network, vip, client), b11, b12, b13)
			wantNames(t, network, w.ask(3, client, network, other, client), b12)
			wantNames(t, network+" from a backend", w.ask(3, b11, network, other, b11), b12)
		}
	})
}

// A container that calls its own VIP and is picked gets its answer, every time,
// and sees the caller as the alias.
func TestRootHairpin(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11)), behind(other, ready(b11), ready(b12), ready(b13)))
		for _, network := range []string{"tcp", "udp"} {
			w.ask(20, b11, network, vip, alias)
			for range 20 {
				if _, err := nettest.Ask(w.containers[b11], network, "", at(other)); err != nil {
					t.Fatalf("%s call of one of three: %v", network, err)
				}
			}
		}
	})
}

// A datagram larger than the MTU gets through to a far backend and back to the
// sender itself.
func TestRootFragments(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b12)), behind(other, ready(b11)))
		for from, to := range map[string]string{client: vip, b11: other} {
			conn, err := nettest.Dial(w.containers[from], "udp", "", at(to))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := conn.Write(make([]byte, 4000)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, 100)); err != nil {
				t.Errorf("from %s to %s: %v", from, to, err)
			}
		}
	})
}

// A draining backend keeps its connections and gets no new one; made ready again
// it gets some, and the old ones go on.
func TestRootDraining(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12)))
		tcp, udp := w.dial("tcp", vip, b12), w.dial("udp", vip, b12)
		w.set(behind(vip, ready(b11), draining(b12)))
		w.settled(behind(vip, ready(b11), draining(b12)))
		for range 5 {
			if got := w.answers(tcp); got != b12 {
				t.Fatalf("the connection moved to %s", got)
			}
			if got := w.answers(udp); got != b12 {
				t.Fatalf("the UDP flow moved to %s", got)
			}
		}
		wantNames(t, "while it drains", w.ask(20, client, "tcp", vip, client), b11)
		wantNames(t, "while it drains", w.ask(20, client, "udp", vip, client), b11)
		w.set(behind(vip, ready(b11), ready(b12)))
		wantNames(t, "ready again", w.ask(40, client, "tcp", vip, client), b11, b12)
		if got := w.answers(tcp); got != b12 {
			t.Fatalf("the connection moved to %s", got)
		}
	})
}

// When all backends drain, what is established goes on and what is new is refused.
func TestRootAllDraining(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b12)))
		conn := w.dial("tcp", vip, b12)
		w.set(behind(vip, draining(b12)))
		w.settled(behind(vip, draining(b12)))
		w.refused("tcp", vip)
		w.refused("udp", vip)
		if got := w.answers(conn); got != b12 {
			t.Fatalf("the connection moved to %s", got)
		}
	})
}

// The connections of a dead backend are reset at their next packet, a UDP flow
// goes on with another backend, and nobody else's connection is touched.
func TestRootDead(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12)))
		dead, alive, udp := w.dial("tcp", vip, b12), w.dial("tcp", vip, b11), w.dial("udp", vip, b12)
		w.set(behind(vip, ready(b11)))
		start := time.Now()
		if _, err := nettest.AskConn(dead); !nettest.Refused(err) || time.Since(start) > time.Second {
			t.Errorf("the dead backend's connection: got %v after %s, want a reset at once", err, time.Since(start))
		}
		if got := w.answers(udp); got != b11 {
			t.Errorf("the UDP flow of the dead backend is answered by %s", got)
		}
		if got := w.answers(alive); got != b11 {
			t.Errorf("another's connection moved to %s", got)
		}
		wantNames(t, "new connections", w.ask(10, client, "tcp", vip, client), b11)
	})
}

// The last backend's death resets its connections too, and so does the end of
// the whole service.
func TestRootServiceGone(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		for what, after := range map[string][]Service{"no backend": {behind(vip)}, "no service": nil} {
			w.set(behind(vip, ready(b12)))
			conn := w.dial("tcp", vip, b12)
			w.set(after...)
			w.settled(after...)
			if _, err := nettest.AskConn(conn); !nettest.Refused(err) {
				t.Errorf("%s: got %v, want a reset", what, err)
			}
			for range 10 { // more than the kernel's default rate of ICMP errors
				w.refused("tcp", vip)
				w.refused("udp", vip)
			}
		}
	})
}

// A UDP client that keeps sending while nobody is ready is served by the first
// backend that is.
func TestRootUDPWaits(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		for _, before := range [][]Service{nil, {behind(vip)}} {
			w.set(before...)
			conn, err := nettest.Dial(w.containers[client], "udp", "", at(vip))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := nettest.AskConn(conn); !nettest.Refused(err) {
				t.Fatalf("got %v, want it to be refused", err)
			}
			w.set(behind(vip, ready(b12)))
			if got := w.answers(conn); got != b12 {
				t.Fatalf("answered by %s", got)
			}
		}
	})
}

// A connection goes on, byte for byte, through changes that do not concern it.
func TestRootOthersUndisturbed(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b12)))
		conn := w.dial("tcp", vip, b12)
		for _, services := range [][]Service{
			{behind(vip, ready(b11), ready(b12))},
			{behind(vip, ready(b11), ready(b12), ready(b13)), behind(other, ready(b13))},
			{behind(vip, ready(b12), draining(b13)), behind(other)},
			{behind(vip, draining(b12), ready(b13))},
			{behind(vip, ready(b12)), behind(other, ready(b12))},
		} {
			w.set(services...)
			w.settled(services...)
			if got := w.answers(conn); got != b12 {
				t.Fatalf("the connection moved to %s", got)
			}
		}
	})
}

// No call fails while backends come and go under it, as long as each drains until
// the calls that it had are over.
func TestRootNothingLostWhileScaling(t *testing.T) {
	steps := [][]Backend{
		{draining(b11), draining(b12), ready(b13)}, {ready(b13)}, {ready(b11), ready(b13)},
		{ready(b11), draining(b13)}, {ready(b11), ready(b12)}, {ready(b11), ready(b12), ready(b13)},
	}
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12), ready(b13)))
		var calls [2]atomic.Int64 // finished
		var stop atomic.Bool
		var callers errgroup.Group
		for i, network := range []string{"tcp", "udp"} {
			callers.Go(func() error {
				pace := time.NewTicker(5 * time.Millisecond)
				defer pace.Stop()
				for ; !stop.Load(); <-pace.C {
					if err := w.call(network, 10000+int(calls[i].Add(1))%50000); err != nil {
						return fmt.Errorf("%s call %d: %w", network, calls[i].Load(), err)
					}
				}
				return nil
			})
		}
		defer func() {
			stop.Store(true)
			if err := callers.Wait(); err != nil {
				t.Error(err)
			}
		}()
		for i := range 2 * len(steps) {
			w.set(behind(vip, steps[i%len(steps)]...), behind(other, steps[(i+1)%len(steps)]...))
			before := [2]int64{calls[0].Load(), calls[1].Load()}
			nettest.Eventually(t, 10*time.Second, "the calls under way end", func() error {
				if calls[0].Load() < before[0]+2 || calls[1].Load() < before[1]+2 {
					return errors.New("they have not")
				}
				return nil
			})
		}
		t.Logf("%d TCP and %d UDP calls", calls[0].Load(), calls[1].Load())
	})
}

// call calls the VIP from a port of its own: a UDP port that was used before
// may still belong to the flow of a backend that drains, and end with it.
func (w *world) call(network string, from int) error {
	var conn net.Conn
	err := netns.Do(w.containers[client], func() (err error) {
		dialer := net.Dialer{Timeout: 2 * time.Second}
		if network == "udp" {
			dialer.LocalAddr = &net.UDPAddr{Port: from}
		}
		conn, err = dialer.Dial(network, at(vip))
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = nettest.AskConn(conn)
	return err
}

// Two datagrams that one socket sends at the same moment, as resolvers do for A
// and AAAA, are both answered.
func TestRootTwoDatagramsAtOnce(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b11), ready(b12), ready(b13)))
		for range 200 {
			conn, err := nettest.Dial(w.containers[client], "udp", "", at(vip))
			if err != nil {
				t.Fatal(err)
			}
			var senders errgroup.Group
			var waiting atomic.Int32
			for range 2 { // by a descriptor each: writes to one wait for each other
				file, err := conn.(*net.UDPConn).File()
				if err != nil {
					t.Fatal(err)
				}
				senders.Go(func() error {
					defer file.Close()
					for waiting.Add(1); waiting.Load() < 2; { // spins: a wake-up takes longer than a packet
					}
					_, err := file.Write([]byte("?\n"))
					return err
				})
			}
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			err = senders.Wait()
			for range 2 {
				if _, readErr := conn.Read(make([]byte, 100)); err == nil {
					err = readErr
				}
			}
			conn.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// The router answers a ping to a VIP.
func TestRootPing(t *testing.T) {
	eachKind(t, func(t *testing.T, w *world) {
		w.set(behind(vip, ready(b12)), behind(other))
		for _, to := range []string{vip, other} {
			if err := ping(w.containers[client], to); err != nil {
				t.Errorf("%s: %v", to, err)
			}
		}
	})
}

// ping sends one echo request (RFC 792) and waits for its reply.
func ping(ns, to string) error {
	var conn net.Conn
	err := netns.Do(ns, func() (err error) {
		conn, err = net.Dial("ip4:icmp", to)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := conn.Write([]byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}); err != nil {
		return err
	}
	buf := make([]byte, 100)
	n, _, err := conn.(net.PacketConn).ReadFrom(buf) // without the IP header, unlike Read
	if err != nil {
		return err
	}
	if n < 1 || buf[0] != 0 {
		return errNoReply
	}
	return nil
}

// The IPVS kind leaves the router without any connection tracking.
func TestRootNoConntrack(t *testing.T) {
	requireKind(t, IPVS)
	w := newWorld(t, IPVS)
	w.set(behind(vip, ready(b11), ready(b12)))
	w.ask(10, client, "tcp", vip, client)
	w.ask(10, client, "udp", vip, client)
	if _, err := nettest.Ask(w.containers[b11], "tcp", "", at(vip)); err != nil {
		t.Errorf("a backend that calls its own service: %v", err)
	}
	for _, router := range []string{w.near, w.far} {
		if count := sysctl(t, router, "net.netfilter.nf_conntrack_count"); count != "" && count != "0" {
			t.Errorf("%s tracks %s connections", router, count)
		}
	}
}
