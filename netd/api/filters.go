package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"netd"
)

// filters is the query parameter by which lists are narrowed: each key's values
// are alternatives, and all keys must match. A key without values filters nothing.
type filters map[string][]string

// readFilters takes the request's filters, of which only the accepted keys are
// known.
func readFilters(r *http.Request, accepted ...string) (filters, error) {
	f, err := parseFilters(r.URL.Query().Get("filters"))
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(accepted, key) {
			return nil, netd.Errorf(netd.ErrInvalid, "invalid filter '%s'", key)
		}
	}
	return f, nil
}

// parseFilters reads both forms: {"name":{"web":true}}, and {"name":["web"]} of
// old clients and documents. A value that is set to false counts, as in Docker.
func parseFilters(raw string) (filters, error) {
	if raw == "" {
		return filters{}, nil
	}
	out := filters{}
	var sets map[string]map[string]bool
	if json.Unmarshal([]byte(raw), &sets) == nil {
		for key, values := range sets {
			out[key] = slices.Sorted(maps.Keys(values))
		}
		return out, nil
	}
	var lists map[string][]string
	if json.Unmarshal([]byte(raw), &lists) != nil {
		return nil, netd.Errorf(netd.ErrInvalid, "invalid filter")
	}
	for key, values := range lists {
		out[key] = slices.Compact(slices.Sorted(slices.Values(values)))
	}
	return out, nil
}

// exact: one of the key's values is the source.
func (f filters) exact(key, source string) bool {
	return len(f[key]) == 0 || slices.Contains(f[key], source)
}

// prefix: one of the key's values begins one of the sources.
func (f filters) prefix(key string, sources ...string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(value string) bool {
		return slices.ContainsFunc(sources, func(s string) bool { return strings.HasPrefix(s, value) })
	})
}

// match: one of the key's values is the source or, as a regular expression,
// matches it. Docker filters networks so.
func (f filters) match(key, source string) bool {
	return f.exact(key, source) || slices.ContainsFunc(f[key], func(value string) bool {
		re, err := regexp.Compile(value)
		return err == nil && re.MatchString(source)
	})
}

// labels: every value, key or key=value, is among the labels.
func (f filters) labels(key string, labels map[string]string) bool {
	return !slices.ContainsFunc(f[key], func(value string) bool { return !hasLabel(labels, value) })
}

func hasLabel(labels map[string]string, want string) bool {
	key, value, valued := strings.Cut(want, "=")
	got, ok := labels[key]
	return ok && (!valued || got == value)
}

// flag reads a key whose value is a boolean; ok is false where it is absent.
func (f filters) flag(key string) (value, ok bool, err error) {
	values, ok := f[key]
	if !ok {
		return false, false, nil
	}
	isTrue := slices.Contains(values, "true") || slices.Contains(values, "1")
	isFalse := slices.Contains(values, "false") || slices.Contains(values, "0")
	if isTrue == isFalse {
		return false, false, netd.Errorf(netd.ErrInvalid, "invalid filter '%s=%s'", key, values)
	}
	return isTrue, true, nil
}

// oneOf refuses values of a key that are none of the known ones, whatever their
// case, and returns them in lower case.
func (f filters) oneOf(key string, known ...string) ([]string, error) {
	var out []string
	for _, value := range f[key] {
		lower := strings.ToLower(value)
		switch {
		case lower == "":
		case !slices.Contains(known, lower):
			return nil, netd.Errorf(netd.ErrInvalid, "Invalid %s filter: '%s'", key, value)
		default:
			out = append(out, lower)
		}
	}
	return out, nil
}
