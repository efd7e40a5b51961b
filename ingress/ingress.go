// Package ingress opens published ports on this node: what is sent to one, at any
// of the node's own addresses, goes to the address that serves it on a network of
// the swarm, from outside, from a process of the node and from a container.
//
// It owns, in the host's namespace, the nft table netd-ingress and the setting
// route_localnet of the uplinks nd-up*, and removes both when they are not wanted.
//
// It does NOT balance (the address that serves a port is a virtual IP or a task),
// make routes or send answers back through other nodes (vxlan does), or listen:
// a port that a process of the host has open is taken from it as long as it is
// published. The client's address stays as it is, except that a container calling
// its own node, and localhost, become the node's address: their answers would
// else not find back through here.
package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol is an IP protocol that has ports.
type Protocol uint8

// The protocols that can be published.
const (
	TCP  Protocol = unix.IPPROTO_TCP
	UDP  Protocol = unix.IPPROTO_UDP
	SCTP Protocol = unix.IPPROTO_SCTP
)

// String returns the protocol's name.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	default:
		return fmt.Sprintf("protocol %d", uint8(p))
	}
}

// Config is what this node publishes. The zero value is nothing.
type Config struct {
	// Ports are sorted by protocol and number; nil when there are none.
	Ports []Port
	// Local are the names of uplinks by which connections to localhost leave,
	// sorted; nil when there are none.
	Local []string
}

// Port is one published port and where it leads.
type Port struct {
	Protocol Protocol
	Port     uint16
	To       netip.AddrPort
}

func (p Port) compare(o Port) int {
	if p.Protocol != o.Protocol {
		return int(p.Protocol) - int(o.Protocol)
	}
	return int(p.Port) - int(o.Port)
}

// Ingress reads and sets the ports of the namespace in which New was called. Get
// and Diff may run beside one Set; two Sets may not.
type Ingress struct {
	host *os.File // the host's namespace
	log  *slog.Logger
}

// New returns the ingress of the calling thread's namespace. It changes nothing.
func New(log *slog.Logger) (*Ingress, error) {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open ingress: %w", err)
	}
	return &Ingress{host: host, log: log}, nil
}

// Close lets go of the namespace; the ports stay as they are.
func (i *Ingress) Close() error { return i.host.Close() }

// Get reads from the kernel what is published.
func (i *Ingress) Get() (Config, error) {
	have, err := i.read()
	if err != nil {
		return Config{}, fmt.Errorf("get ingress: %w", err)
	}
	return have.config(), nil
}

// Diff returns what Set would do, in the words of nft(8) and sysctl(8).
func (i *Ingress) Diff(want Config) ([]string, error) {
	ops, err := i.plan(want)
	return texts(ops), err
}

// Set makes the kernel's ports equal to want from whatever state they are in, and
// returns what it did. Connections of ports that stay are not disturbed.
func (i *Ingress) Set(ctx context.Context, want Config) ([]string, error) {
	ops, err := i.plan(want)
	if err != nil {
		return nil, err
	}
	var errs []error
	var done []op
	for _, step := range steps(ops) {
		if err := ctx.Err(); err != nil {
			return texts(done), errors.Join(append(errs, err)...)
		}
		if err := i.do(step); err != nil {
			errs = append(errs, fmt.Errorf("set ingress: %s: %w", step[0], err))
			continue
		}
		for _, op := range step {
			i.log.Debug("ingress changed", "op", op.String())
		}
		done = append(done, step...)
	}
	return texts(done), errors.Join(errs...)
}

func (i *Ingress) plan(want Config) ([]op, error) {
	if err := want.check(); err != nil {
		return nil, err
	}
	have, err := i.read()
	if err != nil {
		return nil, fmt.Errorf("plan ingress: %w", err)
	}
	return plan(have, stateOf(want)), nil
}

// check refuses what the kernel could not hold.
func (c Config) check() error {
	if !slices.IsSortedFunc(c.Ports, Port.compare) || !slices.IsSorted(c.Local) {
		return errors.New("check ingress: the config is not sorted")
	}
	for i, p := range c.Ports {
		switch {
		case p.Protocol != TCP && p.Protocol != UDP && p.Protocol != SCTP:
			return fmt.Errorf("check published port %d: %s has no ports", p.Port, p.Protocol)
		case p.Port == 0 || !p.To.IsValid() || !p.To.Addr().Is4() || p.To.Port() == 0:
			return fmt.Errorf("check published port %d/%s: leads to %q, which is no IPv4 address and port", p.Port, p.Protocol, p.To)
		case i > 0 && p.compare(c.Ports[i-1]) == 0:
			return fmt.Errorf("check published port %d/%s: published twice", p.Port, p.Protocol)
		}
	}
	return nil
}
