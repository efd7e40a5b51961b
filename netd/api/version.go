package api

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"netd"
)

// version is an API version: 1.NN, of which only NN is kept.
type version int

// What the API speaks. Older requests are answered as minVersion: an old client
// is never refused.
const (
	minVersion version = 24
	maxVersion version = 56
)

func (v version) String() string { return "1." + strconv.Itoa(int(v)) }

var versionPrefix = regexp.MustCompile(`^/v([0-9]+)\.([0-9]+)(/.*)$`)

// splitVersion takes the /v1.NN off a path. A path without one asks for the
// newest version.
func splitVersion(path string) (version, string, error) {
	m := versionPrefix.FindStringSubmatch(path)
	if m == nil {
		return maxVersion, path, nil
	}
	major, err := strconv.ParseUint(m[1], 10, 31)
	minor, err2 := strconv.ParseUint(m[2], 10, 31)
	switch {
	case err != nil || err2 != nil || major > 1 || major == 1 && version(minor) > maxVersion:
		return 0, "", netd.Errorf(netd.ErrInvalid, "client version %s.%s is too new. Maximum supported API version is %s", m[1], m[2], maxVersion)
	case major == 0 || version(minor) < minVersion:
		return minVersion, m[3], nil
	}
	return version(minor), m[3], nil
}

type versionKey struct{}

// versionOf returns the API version that the request asks for.
func versionOf(r *http.Request) version {
	if v, ok := r.Context().Value(versionKey{}).(version); ok {
		return v
	}
	return maxVersion
}

// unversioned returns the request with the version moved from its path into its
// context.
func unversioned(r *http.Request) (*http.Request, error) {
	v, path, err := splitVersion(r.URL.Path)
	if err != nil {
		return nil, err
	}
	out := r.WithContext(context.WithValue(r.Context(), versionKey{}, v))
	if path == r.URL.Path {
		return out, nil
	}
	u := new(url.URL)
	*u = *r.URL
	u.Path = path
	// The prefix has no character that could be escaped, so it is the same length.
	u.RawPath = strings.TrimPrefix(r.URL.RawPath, r.URL.Path[:len(r.URL.Path)-len(path)])
	out.URL = u
	return out, nil
}
