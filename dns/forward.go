package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// Each upstream has this long over UDP and, for a long answer, again over TCP.
	udpTimeout = 2 * time.Second
	tcpTimeout = 3 * time.Second
	// forwardTimeout is for all of them together: less than the 5 s after which
	// resolv.conf(5) has a client ask again.
	forwardTimeout = 4500 * time.Millisecond
	// upstreamRest is how long an upstream that failed is asked after the others.
	upstreamRest = 10 * time.Second
	// Queries under way, in all and of one client. More are refused at once, so
	// that dead upstreams cost no memory and one client not the others' share.
	maxForwards, maxForwardsPerClient = 1024, 256
)

// forwarder asks the upstreams, from the daemon's own namespace.
type forwarder struct {
	// ended is closed when the server ends: queries under way are given up.
	ended chan struct{}
	end   func()

	mu       sync.Mutex
	busy     int
	byClient map[forwardKey]int
	resting  map[netip.AddrPort]time.Time
}

type forwardKey struct {
	at   socketKey
	from netip.Addr
}

func newForwarder() *forwarder {
	f := &forwarder{
		ended:    make(chan struct{}),
		byClient: make(map[forwardKey]int),
		resting:  make(map[netip.AddrPort]time.Time),
	}
	f.end = sync.OnceFunc(func() { close(f.ended) })
	return f
}

// serve answers one query.
func (s *Server) serve(key socketKey, w dns.ResponseWriter, query *dns.Msg) {
	from := addrOf(w.RemoteAddr())
	v := s.view.Load()
	reply, forward := v.answer(key, from, query)
	if forward {
		reply = s.out.forward(v.upstreams, forwardKey{key, from}, query)
	}
	size := dns.MaxMsgSize
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size = dns.MinMsgSize
		if opt := query.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), size), udpSize)
		}
	}
	reply.Truncate(size)
	if err := w.WriteMsg(reply); err != nil {
		s.log.Debug("answer dns query", "client", from, "err", err)
	}
}

// take reserves a place for a query, or says that there is none.
func (f *forwarder) take(key forwardKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy >= maxForwards || f.byClient[key] >= maxForwardsPerClient {
		return false
	}
	f.busy++
	f.byClient[key]++
	return true
}

func (f *forwarder) release(key forwardKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.busy--
	if f.byClient[key]--; f.byClient[key] == 0 {
		delete(f.byClient, key)
	}
}

// forward returns the first upstream's answer that is one: REFUSED with too many
// queries under way, SERVFAIL when no upstream answers.
func (f *forwarder) forward(upstreams []netip.AddrPort, key forwardKey, query *dns.Msg) *dns.Msg {
	if !f.take(key) {
		return failure(query, dns.RcodeRefused)
	}
	defer f.release(key)

	ask := new(dns.Msg)
	ask.SetQuestion(query.Question[0].Name, query.Question[0].Qtype)
	ask.Question[0].Qclass = query.Question[0].Qclass
	ask.RecursionDesired, ask.CheckingDisabled = query.RecursionDesired, query.CheckingDisabled
	opt := query.IsEdns0()
	if opt != nil { // its options are for us alone (RFC 6891 §6.2.6)
		ask.SetEdns0(udpSize, opt.Do())
	}
	var last *dns.Msg
	deadline := time.Now().Add(forwardTimeout)
	for _, upstream := range f.order(upstreams, time.Now()) {
		answer, err := f.exchange(ask, upstream, deadline)
		if err == nil && answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return passOn(answer, query)
		}
		if err != nil {
			f.rest(upstream, time.Now())
		} else {
			last = answer
		}
	}
	if last != nil {
		return passOn(last, query)
	}
	return failure(query, dns.RcodeServerFailure)
}

func failure(query *dns.Msg, rcode int) *dns.Msg {
	reply := new(dns.Msg)
	reply.SetRcode(query, rcode)
	reply.RecursionAvailable = true
	if query.IsEdns0() != nil {
		reply.SetEdns0(udpSize, false)
	}
	return reply
}

// passOn makes an upstream's answer the reply to query.
func passOn(answer, query *dns.Msg) *dns.Msg {
	answer.Id, answer.Question, answer.Response = query.Id, query.Question, true
	answer.Compress, answer.RecursionAvailable = true, true
	answer.Extra = slices.DeleteFunc(answer.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	opt := query.IsEdns0()
	if opt != nil {
		answer.SetEdns0(udpSize, opt.Do())
	} else if answer.Rcode > 0xf { // it takes an OPT record to say that (RFC 6891 §6.1.3)
		answer.Rcode = dns.RcodeServerFailure
	}
	return answer
}

// order puts upstreams that failed a short while ago behind the others.
func (f *forwarder) order(upstreams []netip.AddrPort, now time.Time) []netip.AddrPort {
	f.mu.Lock()
	defer f.mu.Unlock()
	var fit, resting []netip.AddrPort
	for _, u := range upstreams {
		if now.Before(f.resting[u]) {
			resting = append(resting, u)
		} else {
			delete(f.resting, u)
			fit = append(fit, u)
		}
	}
	return append(fit, resting...)
}

func (f *forwarder) rest(upstream netip.AddrPort, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resting[upstream] = now.Add(upstreamRest)
}

// exchange asks one upstream, over TCP too when the answer does not fit. A new
// socket for each query, so that its port is a second secret beside the ID.
func (f *forwarder) exchange(ask *dns.Msg, upstream netip.AddrPort, deadline time.Time) (*dns.Msg, error) {
	answer, err := f.exchangeOver("udp", ask, upstream, deadline, udpTimeout)
	if err == nil && answer.Truncated {
		if long, err := f.exchangeOver("tcp", ask, upstream, deadline, tcpTimeout); err == nil {
			return long, nil
		}
	}
	return answer, err
}

func (f *forwarder) exchangeOver(network string, ask *dns.Msg, upstream netip.AddrPort, deadline time.Time, timeout time.Duration) (*dns.Msg, error) {
	timeout = min(timeout, time.Until(deadline))
	if timeout <= 0 {
		return nil, context.DeadlineExceeded
	}
	conn, err := net.DialTimeout(network, upstream.String(), timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answered := make(chan struct{})
	defer close(answered)
	go func() { // ends with this call, and ends it with the server
		select {
		case <-answered:
		case <-f.ended:
			_ = conn.Close()
		}
	}()
	query := ask.Copy()
	query.Id = dns.Id()
	client := dns.Client{Net: network, Timeout: timeout, UDPSize: dns.DefaultMsgSize}
	answer, _, err := client.ExchangeWithConn(query, &dns.Conn{Conn: conn, UDPSize: dns.DefaultMsgSize})
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask %s over %s: %w", upstream, network, err)
	case !answer.Response || len(answer.Question) != 1 || !strings.EqualFold(answer.Question[0].Name, query.Question[0].Name) ||
		answer.Question[0].Qtype != query.Question[0].Qtype:
		return nil, fmt.Errorf("ask %s over %s: %w", upstream, network, errOtherAnswer)
	}
	return answer, nil
}

var errOtherAnswer = errors.New("the answer is to another question")

// HostUpstreams reads the name servers of a resolv.conf file, without the
// addresses in own: a server that asks itself goes round for ever.
func HostUpstreams(path string, own ...netip.Addr) ([]netip.AddrPort, error) {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read name servers: %w", err)
	}
	var out []netip.AddrPort
	for _, server := range config.Servers {
		addr, err := netip.ParseAddr(server)
		if err != nil || slices.Contains(own, addr.Unmap()) {
			continue
		}
		if u := netip.AddrPortFrom(addr, port); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out, nil
}
