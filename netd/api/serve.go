package api

import (
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"time"

	"netd"
)

// recorder remembers what was answered, for the log and for a late error.
type recorder struct {
	http.ResponseWriter
	status int // 0 until the header is written
	err    error
}

// Unwrap lets http.ResponseController find Flush and Hijack.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Flush implements http.Flusher, for handlers that ask for it by type.
func (r *recorder) Flush() {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	_ = http.NewResponseController(r.ResponseWriter).Flush()
}

// ServeHTTP implements http.Handler: headers, version, route, and the log line.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	defer s.recovered(rec, r)
	header := rec.Header()
	header.Set("Server", "Docker/"+s.Local.Status().Version+" (linux)")
	header.Set("Api-Version", maxVersion.String())
	header.Set("Ostype", "linux")
	header.Set("Docker-Experimental", "false")

	s.route(rec, r)
	attrs := []any{"method", r.Method, "path", r.URL.Path, "status", rec.status, "took", time.Since(start)}
	if rec.err != nil {
		attrs = append(attrs, "err", rec.err)
	}
	s.Log.DebugContext(r.Context(), "api request", attrs...)
}

func (s *server) route(w *recorder, r *http.Request) {
	req, err := unversioned(r)
	if err != nil {
		writeError(w, r, err)
		return
	}
	// The mux would answer these itself, with redirects or in plain text.
	_, pattern := s.routes.Handler(req)
	if pattern == "" || path.Clean(req.URL.Path) != req.URL.Path && !subtree(req.URL.Path) {
		writeError(w, r, netd.Errorf(netd.ErrNotFound, "page not found"))
		return
	}
	s.routes.ServeHTTP(w, req)
}

// subtree tells a clean path that ends in a slash, which only handlers of Extra
// have.
func subtree(p string) bool { return p == path.Clean(p)+"/" }

// recovered turns a panic of a handler into a 500 and a log line; the daemon
// goes on. http.ErrAbortHandler means what it always does.
func (s *server) recovered(w *recorder, r *http.Request) {
	cause := recover()
	if cause == nil {
		return
	}
	if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(cause)
	}
	s.Log.ErrorContext(r.Context(), "api handler panicked", "method", r.Method, "path", r.URL.Path, "cause", cause, "stack", string(debug.Stack()))
	writeError(w, r, fmt.Errorf("internal error: the request %s %s met a bug in netd; the daemon's log has the details", r.Method, r.URL.Path))
}
