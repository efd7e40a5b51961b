package netd

import (
	"errors"
	"fmt"
)

// The kinds of error that cross a package border. A caller tests for them with
// errors.Is; the API maps each to one HTTP status, in one file.
var (
	// ErrInvalid: the request itself is wrong and will stay wrong.
	ErrInvalid = errors.New("invalid")
	// ErrNotFound: the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, address or port is taken.
	ErrExists = errors.New("already exists")
	// ErrForbidden: the object exists but may not be used so.
	ErrForbidden = errors.New("forbidden")
	// ErrOutOfSequence: the caller's copy of the object is older than the store's.
	ErrOutOfSequence = errors.New("update out of sequence")
	// ErrUnavailable: not now, or not on this node; a later or another call may succeed.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnsupported: this kernel, node or version cannot do it.
	ErrUnsupported = errors.New("unsupported")
)

// kindError carries a message for the user and a kind for the program.
type kindError struct {
	kind error
	err  error
}

func (e *kindError) Error() string        { return e.err.Error() }
func (e *kindError) Unwrap() error        { return e.err }
func (e *kindError) Is(target error) bool { return target == e.kind }

// Errorf formats an error whose text is the message alone and which answers
// errors.Is for kind (one of the Err values above). A %w in format is kept.
func Errorf(kind error, format string, args ...any) error {
	return &kindError{kind: kind, err: fmt.Errorf(format, args...)}
}
