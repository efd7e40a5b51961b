package task

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// healthPath answers 204 as long as the server is well.
const healthPath = "/healthz"

// connKey is the request context's key of the client's address.
type connKey struct{}

func (s *echo) server(base context.Context) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("/", s.serveLine)
	mux.HandleFunc("/json", s.serveJSON)
	mux.HandleFunc("/slow", s.serveSlow)
	mux.HandleFunc("/call", serveCall)
	mux.HandleFunc("/resolve", serveResolve)
	mux.HandleFunc(healthPath, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if s.isLeaving() { // so that the client does not send its next request into a closing connection
				w.Header().Set("Connection", "close")
			}
			mux.ServeHTTP(w, r)
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		BaseContext:       func(net.Listener) context.Context { return base },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.RemoteAddr())
		},
	}
}

func client(r *http.Request) net.Addr {
	addr, _ := r.Context().Value(connKey{}).(net.Addr)
	return addr
}

func (s *echo) serveLine(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintln(w, s.who.line(client(r)))
}

func (s *echo) serveJSON(w http.ResponseWriter, r *http.Request) {
	answer(w, map[string]string{
		"task": s.who.Task, "node": s.who.Node, "client": plain(client(r)), "host": r.Host, "method": r.Method, "url": r.URL.String(),
	})
}

// serveSlow answers after ?ms= milliseconds.
func (s *echo) serveSlow(w http.ResponseWriter, r *http.Request) {
	ms, err := number(r.URL.Query(), "ms", 1000)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		s.serveLine(w, r)
	case <-r.Context().Done():
	}
}

// serveResolve looks up ?name= with the task's own resolver: the addresses of a
// name, or the names of an address.
func serveResolve(w http.ResponseWriter, r *http.Request) {
	var out struct {
		Name  string   `json:"name"`
		Addrs []string `json:"addrs,omitempty"`
		Names []string `json:"names,omitempty"`
		Error string   `json:"error,omitempty"`
	}
	out.Name = r.URL.Query().Get("name")
	var err error
	if net.ParseIP(out.Name) != nil {
		out.Names, err = net.DefaultResolver.LookupAddr(r.Context(), out.Name)
	} else {
		out.Addrs, err = net.DefaultResolver.LookupHost(r.Context(), out.Name)
	}
	if err != nil {
		out.Error = err.Error()
	}
	slices.Sort(out.Addrs)
	slices.Sort(out.Names)
	answer(w, out)
}

// callReport is what /call answers.
type callReport struct {
	URL      string `json:"url"`
	Requests int    `json:"requests"`
	OK       int    `json:"ok"`
	Failed   int    `json:"failed"`
	// Error is the first failure.
	Error  string `json:"error,omitempty"`
	Millis int64  `json:"millis"`
	// Tasks, Nodes and Clients count the answers by what other echo servers said.
	Tasks   map[string]int `json:"tasks"`
	Nodes   map[string]int `json:"nodes"`
	Clients map[string]int `json:"clients"`
}

var linePattern = regexp.MustCompile(`^task=(\S*) node=(\S*) client=(\S*):\d+`)

// serveCall makes ?n= requests to ?url=, one after the other or ?parallel= at a
// time, each on a new connection unless ?keepalive=1, each with ?timeout= ms.
func serveCall(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	n, err1 := number(q, "n", 1)
	parallel, err2 := number(q, "parallel", 1)
	timeout, err3 := number(q, "timeout", 5000)
	if err := errors.Join(err1, err2, err3); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	report := callReport{URL: q.Get("url"), Requests: n, Tasks: map[string]int{}, Nodes: map[string]int{}, Clients: map[string]int{}}
	transport := &http.Transport{DisableKeepAlives: q.Get("keepalive") == "", MaxIdleConnsPerHost: parallel}
	defer transport.CloseIdleConnections()
	caller := &http.Client{Transport: transport, Timeout: time.Duration(timeout) * time.Millisecond}
	var mu sync.Mutex // guards report
	var calling sync.WaitGroup
	next := make(chan struct{}, n)
	for range n {
		next <- struct{}{}
	}
	close(next)
	began := time.Now()
	for range min(max(parallel, 1), n) {
		calling.Go(func() {
			for range next {
				line, err := fetch(r.Context(), caller, report.URL)
				mu.Lock()
				report.count(line, err)
				mu.Unlock()
			}
		})
	}
	calling.Wait()
	report.Millis = time.Since(began).Milliseconds()
	answer(w, report)
}

func (c *callReport) count(line string, err error) {
	if err != nil {
		c.Failed++
		c.Error = cmp.Or(c.Error, err.Error())
		return
	}
	c.OK++
	if m := linePattern.FindStringSubmatch(line); m != nil {
		c.Tasks[m[1]]++
		c.Nodes[m[2]]++
		c.Clients[m[3]]++
	}
}

// fetch returns the first 4 KB of an answer; only 2xx is one.
func fetch(ctx context.Context, caller *http.Client, target string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return "", err
	}
	resp, err := caller.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err == nil && resp.StatusCode/100 != 2 {
		err = errors.New(target + " answered " + resp.Status)
	}
	return string(body), err
}

// number reads a whole number from the query, at most a million.
func number(q url.Values, key string, otherwise int) (int, error) {
	text := q.Get(key)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > 1_000_000 {
		return 0, errors.New(key + ": want a number from 0 to 1000000")
	}
	return n, nil
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// servePackets answers each datagram with the line that HTTP gives, a space, and
// the datagram.
func (s *echo) servePackets(p net.PacketConn) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := p.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else an ICMP error for an earlier answer
			p.WriteTo(append([]byte(s.who.line(from)+" "), buf[:n]...), from)
		}
	}
}

// serveLines sends back each line of a connection; the line "who" is answered as
// over HTTP.
func (s *echo) serveLines(serving *sync.WaitGroup) {
	for {
		conn, err := s.lines.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		s.mu.Lock()
		s.held[conn] = true
		if s.ended {
			conn.SetReadDeadline(time.Unix(1, 0))
		}
		s.mu.Unlock()
		serving.Go(func() { s.hold(conn) })
	}
}

func (s *echo) hold(conn net.Conn) {
	defer func() {
		conn.Close()
		s.mu.Lock()
		delete(s.held, conn)
		s.mu.Unlock()
	}()
	reader := bufio.NewReaderSize(conn, 4096)
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		if string(line) == "who\n" {
			line = []byte(s.who.line(conn.RemoteAddr()) + "\n")
		}
		if _, err := conn.Write(line); err != nil {
			return
		}
	}
}

// endLines lets each connection send back what it has read, and ends it.
func (s *echo) endLines() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for conn := range s.held {
		conn.SetReadDeadline(time.Unix(1, 0))
	}
}
