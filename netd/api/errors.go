package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/moby/moby/api/types/common"

	"netd"
)

// Kinds of error that only this package makes.
var (
	errConflict = errors.New("conflict")
	errTooLarge = errors.New("request too large")
)

// statusOf maps an error's kind to the HTTP status that Docker gives it. The
// statuses matter: clients decide by them whether an object is absent (404), a
// call hopeless (4xx) or worth another try (503).
func statusOf(err error) int {
	for _, m := range [...]struct {
		kind   error
		status int
	}{
		{netd.ErrInvalid, http.StatusBadRequest},
		{netd.ErrForbidden, http.StatusForbidden},
		{netd.ErrNotFound, http.StatusNotFound},
		{netd.ErrExists, http.StatusConflict},
		{errConflict, http.StatusConflict},
		{errTooLarge, http.StatusRequestEntityTooLarge},
		{netd.ErrUnavailable, http.StatusServiceUnavailable},
		{context.DeadlineExceeded, http.StatusServiceUnavailable},
		{netd.ErrUnsupported, http.StatusNotImplemented},
		// Docker answers a stale version with 500, and clients match the text.
		{netd.ErrOutOfSequence, http.StatusInternalServerError},
	} {
		if errors.Is(err, m.kind) {
			return m.status
		}
	}
	return http.StatusInternalServerError
}

// writeError answers with Docker's error body. A response that has begun can
// only be cut off.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	if rec, ok := w.(*recorder); ok {
		rec.err = err
		if rec.status != 0 {
			return
		}
	}
	text := err.Error()
	if errors.Is(err, context.DeadlineExceeded) {
		text = "the swarm's managers did not answer in time: " + text
	}
	_ = writeJSON(w, statusOf(err), common.ErrorResponse{Message: text})
}
