package api

import (
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// Both forms of filters mean the same; all keys must match, any value of a key.
func TestFilters(t *testing.T) {
	for raw, want := range map[string]filters{
		"":                                   {},
		"{}":                                 {},
		"null":                               {},
		`{"name":{"b":true,"a":false}}`:      {"name": {"a", "b"}},
		`{"name":["b","a","b"]}`:             {"name": {"a", "b"}},
		`{"name":[],"id":["x"]}`:             {"name": nil, "id": {"x"}},
		`{"name":null}`:                      {"name": nil},
		`{"_up-to-date":["true"],"n":["1"]}`: {"_up-to-date": {"true"}, "n": {"1"}},
	} {
		got, err := parseFilters(raw)
		if err != nil || len(got) != len(want) {
			t.Errorf("%s: %v %v", raw, got, err)
		}
		for key := range want {
			if !slices.Equal(got[key], want[key]) {
				t.Errorf("%s: %q is %q, want %q", raw, key, got[key], want[key])
			}
		}
	}
	f := filters{"name": {"web", "db"}, "label": {"a", "b=1"}, "empty": nil}
	labels := map[string]string{"a": "x", "b": "1"}
	for what, ok := range map[string]bool{
		"exact":              f.exact("name", "db") && !f.exact("name", "dbx") && f.exact("empty", "x") && f.exact("absent", "x"),
		"prefix":             f.prefix("name", "x", "webserver") && !f.prefix("name", "aweb") && f.prefix("absent", "x"),
		"match":              f.match("name", "aweb1") && !f.match("name", "we") && filters{"n": {"("}}.match("n", "(") && !filters{"n": {"("}}.match("n", "x"),
		"labels":             f.labels("label", labels) && !f.labels("label", map[string]string{"a": "x"}) && f.labels("empty", nil),
		"a label's value":    !f.labels("label", map[string]string{"a": "", "b": "2"}),
		"an empty value":     hasLabel(map[string]string{"k": ""}, "k=") && !hasLabel(map[string]string{"k": "v"}, "k="),
		"a label with two =": hasLabel(map[string]string{"k": "a=b"}, "k=a=b"),
	} {
		if !ok {
			t.Errorf("wrong: %s", what)
		}
	}
}

// Whatever the filters are, they parse to the same as what they mean, or are
// refused; nothing panics.
func FuzzFilters(f *testing.F) {
	for _, seed := range []string{"", `{"name":["a"]}`, `{"name":{"a":true}}`, `{"a":null}`, `[]`, `{"a":[1]}`, "\x00", `{"":{"":false}}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := parseFilters(raw)
		if err != nil {
			return
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseFilters(string(again))
		if err != nil || len(back) != len(got) {
			t.Fatalf("%q parses to %v, and that to %v, %v", raw, got, back, err)
		}
		for key, values := range got {
			if !slices.Equal(values, back[key]) || !slices.IsSorted(values) {
				t.Fatalf("%q: %q, then %q", raw, values, back[key])
			}
		}
		r := httptest.NewRequest("GET", "/tasks?filters="+url.QueryEscape(raw), nil)
		if _, err := readFilters(r); (err == nil) != (len(got) == 0) {
			t.Fatalf("%q: no key is accepted, yet: %v", raw, err)
		}
	})
}

// A path keeps all but its version; no version is newer than the newest, and a
// path that is refused is refused for that alone.
func FuzzVersion(f *testing.F) {
	for _, seed := range []string{"/", "", "/v1.41/info", "/v1.41", "/v0.0/x", "/v1.57/x", "/v01.024/x", "/v99999999999999999999.1/x", "/v1.41/v1.41/x", "/v1.41\n/x", "/V1.41/x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		v, rest, err := splitVersion(path)
		if err != nil {
			if !versionPrefix.MatchString(path) || !strings.Contains(err.Error(), "is too new") {
				t.Fatalf("%q is refused: %v", path, err)
			}
			return
		}
		if v < minVersion || v > maxVersion || !strings.HasSuffix(path, rest) {
			t.Fatalf("%q: version %s, path %q", path, v, rest)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.URL = &url.URL{Path: path}
		if r.URL.RawPath = r.URL.EscapedPath(); path == "" || path[0] != '/' {
			return
		}
		out, err := unversioned(r)
		if err != nil || out.URL.Path != rest || versionOf(out) != v || r.URL.Path != path {
			t.Fatalf("%q: request for %q of %s: %v", path, out.URL, versionOf(out), err)
		}
		if unescaped, err := url.PathUnescape(out.URL.EscapedPath()); err != nil || unescaped != rest {
			t.Fatalf("%q: escaped path %q, %v", path, out.URL.EscapedPath(), err)
		}
	})
}

// Times come as durations before now, as seconds, or written out.
func TestParseTime(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for given, want := range map[string]time.Time{
		"":                          {},
		"10m":                       now.Add(-10 * time.Minute),
		"-1h30m":                    now.Add(90 * time.Minute),
		"1136073845":                time.Unix(1136073845, 0),
		"1136073845.000000001":      time.Unix(1136073845, 1),
		"1136073845.5":              time.Unix(1136073845, 500e6),
		"2026-01-01T00:00:00.5Z":    time.Date(2026, 1, 1, 0, 0, 0, 500e6, time.UTC),
		"2026-01-01T00:00:00+01:00": time.Date(2025, 12, 31, 23, 0, 0, 0, time.UTC),
		"2026-01-01T10:20":          time.Date(2026, 1, 1, 10, 20, 0, 0, time.UTC),
		"2026-01-01":                time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseTime(given, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s %v, want %s", given, got, err, want)
		}
	}
	for _, given := range []string{"yesterday", "1.x", "1.0000000001", "1.-5", "2026-13-01", "99999999999999999999"} {
		if got, err := parseTime(given, now); err == nil {
			t.Errorf("%q is taken for %s", given, got)
		}
	}
}

// The distribution's name is read from os-release, quoted or not.
func TestOSRelease(t *testing.T) {
	name, release := osRelease("# comment\nNAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=12\nBROKEN\n")
	if name != "Debian GNU/Linux 12" || release != "12" {
		t.Errorf("%q %q", name, release)
	}
}
