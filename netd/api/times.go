package api

import (
	"strconv"
	"strings"
	"time"

	"netd"
)

// parseTime reads a time as Docker's clients send it: seconds since 1970 with an
// optional fraction, RFC 3339 in full or cut short, or a duration before now.
// Nothing is the zero Time.
func parseTime(given string, now time.Time) (time.Time, error) {
	if given == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(given); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, given, now.Location()); err == nil {
			return t, nil
		}
	}
	whole, fraction, _ := strings.Cut(given, ".")
	seconds, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || len(fraction) > 9 {
		return time.Time{}, netd.Errorf(netd.ErrInvalid, "failed to parse value as time or duration: %q", given)
	}
	nanos, err := strconv.ParseUint("0"+fraction+strings.Repeat("0", 9-len(fraction)), 10, 31)
	if err != nil {
		return time.Time{}, netd.Errorf(netd.ErrInvalid, "failed to parse value as time or duration: %q", given)
	}
	return time.Unix(seconds, int64(nanos)), nil
}

// until reads the filter of that name, which takes one value.
func (f filters) until(now time.Time) (time.Time, error) {
	switch values := f["until"]; len(values) {
	case 0:
		return time.Time{}, nil
	case 1:
		return parseTime(values[0], now)
	default:
		return time.Time{}, netd.Errorf(netd.ErrInvalid, "more than one until filter specified")
	}
}
