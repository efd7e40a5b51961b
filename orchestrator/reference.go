package orchestrator

import (
	"fmt"
	"strings"

	"netd"
)

// swarmError formats an error as swarmkit's clients know it, for they match on
// the text: "rpc error: code = InvalidArgument desc = ...".
func swarmError(kind error, code, format string, args ...any) error {
	return netd.Errorf(kind, "rpc error: code = %s desc = %s", code, fmt.Sprintf(format, args...))
}

func invalid(format string, args ...any) error {
	return swarmError(netd.ErrInvalid, "InvalidArgument", format, args...)
}

// precondition is a request that is right in itself and may be so later.
func precondition(format string, args ...any) error {
	return swarmError(netd.ErrInvalid, "FailedPrecondition", format, args...)
}

func unimplemented(format string, args ...any) error {
	return swarmError(netd.ErrUnsupported, "Unimplemented", format, args...)
}

func outOfSequence() error {
	return swarmError(netd.ErrOutOfSequence, "Unknown", "update out of sequence")
}

// lookup is how the objects of one kind are found by a user.
type lookup[T any] struct {
	kind string // for messages
	ref  string
	get  func(id string) *T
	all  func() []*T
	id   func(*T) string
	name func(*T) string
}

// find returns the object that the reference means: the one with that ID, else
// that name, else the only one whose ID begins so.
func (l lookup[T]) find() (*T, error) {
	if o := l.get(l.ref); o != nil {
		return o, nil
	}
	var named, prefixed []*T
	for _, o := range l.all() {
		if l.ref != "" && strings.EqualFold(l.name(o), l.ref) {
			named = append(named, o)
		}
		if l.ref != "" && strings.HasPrefix(l.id(o), l.ref) {
			prefixed = append(prefixed, o)
		}
	}
	if len(named) == 0 {
		named = prefixed
	}
	switch len(named) {
	case 0:
		return nil, netd.Errorf(netd.ErrNotFound, "%s %s not found", l.kind, l.ref)
	case 1:
		return named[0], nil
	}
	return nil, netd.Errorf(netd.ErrInvalid, "%s %s is ambiguous (%d matches found)", l.kind, l.ref, len(named))
}
