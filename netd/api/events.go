package api

import (
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types"

	"netd"
)

// streamEvents keeps a client's event stream open, header first, until the client
// goes away or its until has come. No event is published yet.
func (s *server) streamEvents(w http.ResponseWriter, r *http.Request) error {
	_, err := readFilters(r, "config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
		"scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	now := time.Now()
	since, err := parseTime(r.URL.Query().Get("since"), now)
	if err != nil {
		return err
	}
	until, err := parseTime(r.URL.Query().Get("until"), now)
	if err != nil {
		return err
	}
	var end <-chan time.Time
	if !until.IsZero() {
		if until.Before(since) {
			return netd.Errorf(netd.ErrInvalid, "`since` time (%s) cannot be after `until` time (%s)", r.URL.Query().Get("since"), r.URL.Query().Get("until"))
		}
		timer := time.NewTimer(until.Sub(now))
		defer timer.Stop()
		end = timer.C
	}
	w.Header().Set("Content-Type", eventType(r))
	w.WriteHeader(http.StatusOK)
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	select {
	case <-end:
	case <-r.Context().Done():
	}
	return nil
}

// eventType chooses the stream's media type: what a client of 1.52 or newer asks
// for, and application/json (which it is not, quite) for all others.
func eventType(r *http.Request) string {
	if versionOf(r) < 52 {
		return types.MediaTypeJSON
	}
	for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		media, _, err := mime.ParseMediaType(part)
		switch {
		case err != nil:
		case media == types.MediaTypeJSONLines, media == types.MediaTypeNDJSON, media == types.MediaTypeJSONSequence:
			return media
		}
	}
	return types.MediaTypeJSON
}
