package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"
)

// keys is memberlist's keyring, replaced as a whole.
type keys struct {
	ring *memberlist.Keyring
	mu   sync.Mutex // one change at a time
}

func newKeys(list [][]byte) (*keys, error) {
	if err := validKeys(list); err != nil {
		return nil, err
	}
	k := &keys{}
	var err error
	if k.ring, err = memberlist.NewKeyring(copyKeys(list), bytes.Clone(list[0])); err != nil {
		return nil, fmt.Errorf("make gossip keyring: %w", err)
	}
	return k, nil
}

func copyKeys(list [][]byte) [][]byte {
	out := make([][]byte, len(list))
	for i, key := range list {
		out[i] = bytes.Clone(key)
	}
	return out
}

func validKeys(list [][]byte) error {
	if len(list) == 0 {
		return errors.New("gossip keys: none given: netd does not gossip in the clear")
	}
	for i, key := range list {
		if err := memberlist.ValidateKey(key); err != nil {
			return fmt.Errorf("gossip key %d of %d bytes: want 16, 24 or 32", i, len(key))
		}
	}
	return nil
}

// SetKeys replaces the keys: the first encrypts, all decrypt. To rotate without
// loss, first add the new key on every node, then make it the first, then drop
// the old one.
func (t *Table) SetKeys(list [][]byte) error {
	if err := validKeys(list); err != nil {
		return err
	}
	return t.keys.set(copyKeys(list))
}

func (k *keys) set(list [][]byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var drop [][]byte
	for _, key := range k.ring.GetKeys() {
		if !slices.ContainsFunc(list, func(want []byte) bool { return bytes.Equal(want, key) }) {
			drop = append(drop, key)
		}
	}
	for _, key := range list {
		if err := k.ring.AddKey(key); err != nil {
			return fmt.Errorf("add gossip key: %w", err)
		}
	}
	// RemoveKey edits the slice that GetKeys hands to readers, in place, from the
	// removed key on. With the wanted keys moved to the front, first the last and
	// the primary at the end, only tails are cut off and no reader sees a change.
	order := list[:1]
	if len(drop) > 0 {
		order = slices.Clone(list)
		slices.Reverse(order)
	}
	for _, key := range order {
		if err := k.ring.UseKey(key); err != nil {
			return fmt.Errorf("use gossip key: %w", err)
		}
	}
	for _, key := range slices.Backward(drop) {
		if err := k.ring.RemoveKey(key); err != nil {
			return fmt.Errorf("remove gossip key: %w", err)
		}
	}
	return nil
}

// logWriter turns memberlist's lines ("[WARN] memberlist: text") into records:
// warnings and errors at warn, the rest at debug. Anybody can send us packets
// that do not decrypt, so warnings are limited; what is above goes to debug.
type logWriter struct {
	log   *slog.Logger
	limit *rate.Limiter
}

func newLogWriter(log *slog.Logger) *logWriter {
	return &logWriter{log: log, limit: rate.NewLimiter(1, 10)}
}

func (w *logWriter) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	warn := true
	if tag, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(tag, "[") {
		warn = tag != "[DEBUG" && tag != "[INFO"
		text = rest
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	if warn && w.limit.Allow() {
		w.log.Warn("memberlist", "text", text)
	} else {
		w.log.Debug("memberlist", "text", text)
	}
	return len(line), nil
}
