//go:build linux

package balancer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"netd/internal/netns"
	"netd/internal/nettest"
)

const (
	vip     = "10.0.9.2"
	other   = "10.0.9.3"
	port    = 8000
	gateway = "169.254.1.1"
	alias   = "169.254.80.1"
)

// world is two routers of one network, joined as by VXLAN, each with its own
// containers: the client and backend b11 at the first, b12 and b13 at the second.
// Backends answer on every address with their name and what they take to be the
// client's address.
type world struct {
	t          *testing.T
	kind       Kind
	b          *Balancer
	near, far  string            // the routers
	containers map[string]string // namespace by address
}

const (
	client = "10.0.9.10"
	b11    = "10.0.9.11"
	b12    = "10.0.9.12"
	b13    = "10.0.9.13"
)

// eachKind runs a test over every renderer.
func eachKind(t *testing.T, test func(t *testing.T, w *world)) {
	nettest.Root(t)
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			requireKind(t, kind)
			test(t, newWorld(t, kind))
		})
	}
}

func requireKind(t *testing.T, kind Kind) {
	t.Helper()
	nettest.Require(t, "veth", "nf_tables")
	if kind == IPVS {
		nettest.Require(t, "ip_vs")
	}
}

func newWorld(t *testing.T, kind Kind) *world {
	t.Helper()
	w := &world{t: t, kind: kind, near: nettest.NS(t), far: nettest.NS(t), containers: map[string]string{}}
	w.b = balancer(t, kind)
	for _, router := range []string{w.near, w.far} {
		for key, value := range map[string]string{
			"ip_forward": "1", "conf.all.rp_filter": "0", "conf.default.rp_filter": "0",
			"conf.all.send_redirects": "0", "conf.default.send_redirects": "0",
		} {
			nettest.Sysctl(t, router, "net.ipv4."+key, value)
		}
		for _, local := range []string{gateway, vip, other} {
			nettest.Addr(t, router, "lo", local+"/32")
		}
	}
	nearLink, farLink := nettest.Link(t, w.near, w.far, "10.8.0.1/30", "10.8.0.2/30")
	for _, c := range []struct{ addr, here, there, via, link string }{
		{client, w.near, w.far, "10.8.0.1", farLink},
		{b11, w.near, w.far, "10.8.0.1", farLink},
		{b12, w.far, w.near, "10.8.0.2", nearLink},
		{b13, w.far, w.near, "10.8.0.2", nearLink},
	} {
		w.container(c.addr, c.here)
		nettest.Route(t, c.there, c.addr+"/32", c.via, c.link)
	}
	return w
}

func balancer(t *testing.T, kind Kind) *Balancer {
	t.Helper()
	b, err := New(kind, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (w *world) container(addr, router string) {
	w.t.Helper()
	ns := nettest.NS(w.t)
	w.containers[addr] = ns
	inside, outside := nettest.Link(w.t, ns, router, addr+"/24", "")
	for key, value := range map[string]string{
		"conf/" + outside + "/proxy_arp": "1", "conf/" + outside + "/rp_filter": "1", "neigh/" + outside + "/proxy_delay": "0",
	} {
		nettest.Sysctl(w.t, router, "net/ipv4/"+key, value)
	}
	nettest.Route(w.t, router, addr+"/32", "", outside)
	nettest.Route(w.t, ns, gateway+"/32", "", inside)
	nettest.Route(w.t, ns, "0.0.0.0/0", gateway, inside)
	nettest.Serve(w.t, ns, addr, port)
}

// config is the same services in both routers.
func (w *world) config(services ...Service) Config {
	a := netip.MustParseAddr
	c := Config{Routers: []Router{
		{NetNS: w.near, Alias: a(alias), Locals: []netip.Addr{a(client), a(b11)}, Services: services},
		{NetNS: w.far, Alias: a(alias), Locals: []netip.Addr{a(b12), a(b13)}, Services: services},
	}}
	return c.normal()
}

func behind(vip string, backends ...Backend) Service {
	return Service{VIP: netip.MustParseAddr(vip), Backends: backends}
}

func ready(addr string) Backend    { return Backend{netip.MustParseAddr(addr), Ready} }
func draining(addr string) Backend { return Backend{netip.MustParseAddr(addr), Draining} }

func (w *world) set(services ...Service) []string {
	w.t.Helper()
	return w.setConfig(w.config(services...))
}

func (w *world) setConfig(c Config) []string {
	w.t.Helper()
	ops, err := w.b.Set(context.Background(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	return ops
}

// settled fails the test unless the kernel holds exactly the services.
func (w *world) settled(services ...Service) {
	w.t.Helper()
	w.holds(w.b, w.config(services...))
}

func (w *world) holds(b *Balancer, want Config) {
	w.t.Helper()
	ops, err := b.Diff(context.Background(), want)
	if err != nil || len(ops) > 0 {
		w.t.Fatalf("the kernel differs from what was set: %v\n%s", err, strings.Join(ops, "\n"))
	}
	got, err := b.Get(context.Background(), []string{w.near, w.far})
	if err != nil {
		w.t.Fatal(err)
	}
	if diff := diffConfigs(want, got); diff != "" {
		w.t.Fatal(diff)
	}
}

// ask calls the VIP from the container, each time on a new connection, and
// returns how often which backend answered. Every answer must say that the caller
// was seen as sees.
func (w *world) ask(times int, from, network, vip, sees string) map[string]int {
	w.t.Helper()
	counts := map[string]int{}
	for range times {
		answer, err := nettest.Ask(w.containers[from], network, "", at(vip))
		if err != nil {
			w.t.Fatalf("%s call of %s to %s: %v (after %v)", network, from, vip, err, counts)
		}
		backend, saw, _ := strings.Cut(answer, " ")
		if saw != sees {
			w.t.Errorf("%s call of %s to %s: backend %s saw %s", network, from, vip, backend, saw)
		}
		counts[backend]++
	}
	return counts
}

// dial opens a connection from the client to the VIP that the named backend has.
func (w *world) dial(network, vip, backend string) net.Conn {
	w.t.Helper()
	for range 100 {
		conn, err := nettest.Dial(w.containers[client], network, "", at(vip))
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { conn.Close() })
		if w.answers(conn) == backend {
			return conn
		}
	}
	w.t.Fatalf("100 connections, and backend %s has none", backend)
	return nil
}

// answers returns which backend answers on the connection.
func (w *world) answers(conn net.Conn) string {
	w.t.Helper()
	answer, err := nettest.AskConn(conn)
	if err != nil {
		w.t.Fatalf("%s connection: %v", conn.RemoteAddr().Network(), err)
	}
	backend, _, _ := strings.Cut(answer, " ")
	return backend
}

// refused calls the VIP and fails the test unless that is refused at once.
func (w *world) refused(network, vip string) {
	w.t.Helper()
	start := time.Now()
	_, err := nettest.Ask(w.containers[client], network, "", at(vip))
	if !nettest.Refused(err) || time.Since(start) > time.Second {
		w.t.Errorf("%s call to %s: got %v after %s, want it to be refused at once", network, vip, err, time.Since(start))
	}
}

// sysctl returns "" for a setting that there is not.
func sysctl(t *testing.T, ns, key string) string {
	t.Helper()
	var value string
	err := netns.Do(ns, func() (err error) {
		value, err = readSetting(strings.ReplaceAll(key, ".", "/"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func names(counts map[string]int) []string {
	var list []string
	for name := range counts {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

func wantNames(t *testing.T, what string, counts map[string]int, want ...string) {
	t.Helper()
	if got := names(counts); !slices.Equal(got, want) {
		t.Errorf("%s: answered by %v, want %v", what, counts, want)
	}
}

var errNoReply = errors.New("no reply")

// at is the address of the backends' server behind the VIP.
func at(vip string) string { return net.JoinHostPort(vip, strconv.Itoa(port)) }
