package dispatch

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"netd"
	"netd/pki"
)

// The protocol, in JSON over HTTP/2. A session is one POST: the request's body
// is lines of upMessage, the response's lines of downMessage.
const (
	protoRPC  = "h2"
	protoRaft = "raft"

	pathJoin    = "/v1/join"
	pathRenew   = "/v1/renew"
	pathSession = "/v1/session"

	// Bounds of one message, in bytes. A task in an assignment takes 1 or 2 KiB.
	maxCall       = 1 << 20
	maxReport     = 16 << 20
	maxAssignment = 64 << 20

	defaultHeartbeat = 5 * time.Second
	// missed heartbeats end a session, on either side.
	missed = 3

	handshakeTimeout = 10 * time.Second
	callTimeout      = 30 * time.Second
	writeTimeout     = 30 * time.Second
)

// upMessage carries a report. The manager acknowledges its Seq when it has
// stored the report; acknowledging one acknowledges those before it.
type upMessage struct {
	Seq    uint64
	Report Report
}

// downMessage carries an assignment or an acknowledgement.
type downMessage struct {
	Ack        *uint64     `json:",omitempty"`
	Assignment *Assignment `json:",omitempty"`
}

type renewRequest struct{ CSR []byte }

type renewReply struct{ Certificate []byte }

// failure is the body of every response that is not a success.
type failure struct{ Message string }

// statusOf is how an error crosses the wire; errorOf is its inverse.
func statusOf(err error) int {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, netd.ErrForbidden):
		return http.StatusForbidden
	case errors.Is(err, netd.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, netd.ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, netd.ErrExists):
		return http.StatusConflict
	case errors.Is(err, netd.ErrUnavailable):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

func errorOf(r *http.Response) error {
	var f failure
	if err := json.NewDecoder(io.LimitReader(r.Body, maxCall)).Decode(&f); err != nil || f.Message == "" {
		f.Message = "the manager answered " + r.Status
	}
	kind := netd.ErrUnavailable
	switch r.StatusCode {
	case http.StatusForbidden:
		kind = netd.ErrForbidden
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		kind = netd.ErrInvalid
	case http.StatusNotFound:
		kind = netd.ErrNotFound
	case http.StatusConflict:
		kind = netd.ErrExists
	}
	return netd.Errorf(kind, "%s", f.Message)
}

// readLine reads one line of at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, netd.Errorf(netd.ErrInvalid, "read message: it is longer than %d bytes", limit)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// clientOf is what the server with the configuration dials its peers with.
func clientOf(server *tls.Config, proto string) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: server.Certificates,
		RootCAs:      server.ClientCAs,
		ServerName:   string(pki.Manager),
		NextProtos:   []string{proto},
		Time:         server.Time,
	}
}

// transport makes the connections of one call or session, and a function that
// closes them: an idle one would stay open for a while.
func transport(conf *tls.Config, alive time.Duration) (t *http.Transport, closeConns func()) {
	conf = conf.Clone()
	conf.NextProtos = []string{protoRPC}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	var mu sync.Mutex
	var conns []net.Conn
	t = &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, conn)
			}
			return conn, err
		},
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: handshakeTimeout,
		Protocols:           protocols,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: alive, PingTimeout: alive, WriteByteTimeout: writeTimeout},
		DisableCompression:  true,
	}
	return t, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			conn.Close()
		}
	}
}

func url(manager, path string) string { return fmt.Sprintf("https://%s%s", manager, path) }
