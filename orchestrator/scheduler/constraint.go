package scheduler

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// The forms that Docker accepts. A value has no comparison sign but may have
// those of patterns, which match literally.
var (
	constraintKey   = regexp.MustCompile(`(?i)^[a-z_][a-z0-9\-_.]+$`)
	constraintValue = regexp.MustCompile(`(?i)^[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$`)
)

// Constraints must all hold.
type Constraints []constraint

type constraint struct {
	key, value string
	equal      bool
}

// ParseConstraints reads expressions such as node.labels.zone==a and
// node.role!=manager.
func ParseConstraints(expressions []string) (Constraints, error) {
	var all Constraints
	for _, e := range expressions {
		c := constraint{equal: true}
		key, value, found := strings.Cut(e, "==")
		if !found {
			c.equal = false
			key, value, found = strings.Cut(e, "!=")
		}
		if !found {
			return nil, errors.New("constraint expected one operator from ==, !=")
		}
		c.key, c.value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !constraintKey.MatchString(c.key) {
			return nil, fmt.Errorf("key '%s' is invalid", c.key)
		}
		if !constraintValue.MatchString(c.value) {
			return nil, fmt.Errorf("value '%s' is invalid", c.value)
		}
		all = append(all, c)
	}
	return all, nil
}

// Match reports whether the node satisfies every constraint.
func (cs Constraints) Match(n *swarm.Node) bool {
	for _, c := range cs {
		if !c.match(n) {
			return false
		}
	}
	return true
}

// match compares without regard to case. An unknown key never holds; a missing
// label is an empty value, which no expression can name, so == fails and != holds.
func (c constraint) match(n *swarm.Node) bool {
	var have string
	switch key := strings.ToLower(c.key); key {
	case "node.id":
		have = n.ID
	case "node.hostname":
		have = n.Description.Hostname
	case "node.ip":
		return c.matchAddr(n.Status.Addr)
	case "node.role":
		have = string(n.Spec.Role)
	case "node.platform.os":
		have = n.Description.Platform.OS
	case "node.platform.arch":
		return c.equal == (architecture(c.value) == architecture(n.Description.Platform.Architecture))
	default:
		value, known := labelOf(n, c.key)
		if !known {
			return false
		}
		have = value
	}
	return c.equal == strings.EqualFold(have, c.value)
}

// matchAddr compares with one address or with a subnet.
func (c constraint) matchAddr(addr string) bool {
	have, err := netip.ParseAddr(addr)
	if err != nil {
		return false
	}
	have = have.Unmap()
	if want, err := netip.ParseAddr(c.value); err == nil {
		return c.equal == (have == want.Unmap())
	}
	if want, err := netip.ParsePrefix(c.value); err == nil {
		return c.equal == want.Contains(have)
	}
	return false
}
