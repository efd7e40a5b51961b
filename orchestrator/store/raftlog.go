package store

import (
	"io"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLogger gives raft a logger that ends in log. What raft calls information
// (each vote, each state) is for debugging here.
func raftLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Off})
	l.RegisterSink(raftSink{log})
	return l
}

type raftSink struct{ log *slog.Logger }

// Accept passes one message of raft on.
func (s raftSink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	switch level {
	case hclog.Warn:
		s.log.Warn("raft: "+msg, args...)
	case hclog.Error:
		s.log.Error("raft: "+msg, args...)
	default:
		s.log.Debug("raft: "+msg, args...)
	}
}
