package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"netd"
)

// maxBody bounds what is read of a request: far above the largest service spec.
const maxBody = 4 << 20

// readJSON decodes the request's only JSON value into out. No body at all is no
// error, as in Docker: out stays as it is.
func readJSON(w http.ResponseWriter, r *http.Request, out any) error {
	if err := checkJSONType(r); err != nil {
		return err
	}
	if r.Body == nil || r.ContentLength == 0 {
		return nil
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	if err := dec.Decode(out); err != nil {
		return badJSON(err)
	}
	switch _, err := dec.Token(); {
	case errors.Is(err, io.EOF):
		return nil
	case isTooLarge(err):
		return badJSON(err)
	default:
		return netd.Errorf(netd.ErrInvalid, "unexpected content after JSON")
	}
}

func checkJSONType(r *http.Request) error {
	given := r.Header.Get("Content-Type")
	if given == "" && (r.Body == nil || r.ContentLength == 0) {
		return nil
	}
	media, _, err := mime.ParseMediaType(given)
	if err != nil {
		return netd.Errorf(netd.ErrInvalid, "malformed Content-Type header (%s): %w", given, err)
	}
	if media != "application/json" {
		return netd.Errorf(netd.ErrInvalid, "unsupported Content-Type header (%s): must be 'application/json'", given)
	}
	return nil
}

func isTooLarge(err error) bool {
	var large *http.MaxBytesError
	return errors.As(err, &large)
}

var badAddress = regexp.MustCompile(`(?s)^(?:netip\.)?Parse(Prefix|Addr)\("(.*)"\): `)

// badJSON words a decoder's error as Docker does. Addresses are types of their
// own in the API, so a bad one fails here, in Go's words.
func badJSON(err error) error {
	switch {
	case isTooLarge(err):
		return netd.Errorf(errTooLarge, "request body too large: at most %d bytes", maxBody)
	case errors.Is(err, io.EOF):
		return netd.Errorf(netd.ErrInvalid, "invalid JSON: got EOF while reading request body")
	}
	if m := badAddress.FindStringSubmatch(err.Error()); m != nil {
		what := map[string]string{"Prefix": "invalid CIDR address: ", "Addr": "invalid IP address: "}[m[1]]
		return netd.Errorf(netd.ErrInvalid, "invalid JSON: %s%s", what, m[2])
	}
	return netd.Errorf(netd.ErrInvalid, "invalid JSON: %w", err)
}

// writeJSON answers with v. Its error is the client's going away.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return nil
}

// encode writes v as one line, with < and > as they are.
func encode(v any) ([]byte, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode response: %w", err)
	}
	return []byte(b.String()), nil
}

// boolParam reads a query parameter by Docker's strict rule: absent is false,
// what is no boolean is refused.
func boolParam(q url.Values, name string) (bool, error) {
	value := q.Get(name)
	if value == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, netd.Errorf(netd.ErrInvalid, "invalid value for %s: %s", name, value)
	}
	return b, nil
}

// looseBool reads a query parameter by Docker's other rule, for force.
func looseBool(q url.Values, name string) bool {
	switch strings.ToLower(strings.TrimSpace(q.Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// versionParam reads the version of the object that an update is meant for.
func versionParam(q url.Values, kind string) (uint64, error) {
	raw := q.Get("version")
	v, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		return 0, netd.Errorf(netd.ErrInvalid, "invalid %s version '%s': %w", kind, raw, err)
	}
	return v, nil
}

// orEmpty makes a list encode as [] where it would as null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// orNone makes a map encode as {} where it would as null.
func orNone[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}
