package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"netd"
	"netd/dispatch"
)

// joinTimeout is Docker's own (daemon/cluster/cluster.go, swarmConnectTimeout).
const joinTimeout = 20 * time.Second

// askToJoin asks one manager after the other, until one admits or refuses the
// node, each for its part of the time.
func askToJoin(ctx context.Context, managers []string, r dispatch.JoinRequest) (dispatch.JoinReply, error) {
	var texts []string
	for _, manager := range managers {
		addr, err := managerAddress(manager)
		if err != nil {
			return dispatch.JoinReply{}, err
		}
		one, cancel := context.WithTimeout(ctx, joinTimeout/time.Duration(len(managers)))
		reply, err := dispatch.Join(one, addr, r)
		cancel()
		if err == nil {
			return reply, nil
		}
		err = joinError(addr, err)
		if !errors.Is(err, netd.ErrUnavailable) || len(managers) == 1 || ctx.Err() != nil {
			return dispatch.JoinReply{}, err
		}
		texts = append(texts, err.Error())
	}
	return dispatch.JoinReply{}, netd.Errorf(netd.ErrUnavailable, "%s", strings.Join(texts, "; "))
}

// managerAddress completes the address of a manager, an IP address or a name.
func managerAddress(given string) (string, error) {
	host, port, err := splitPort(given)
	if err != nil || host == "" {
		return "", netd.Errorf(netd.ErrInvalid, "invalid address of a manager %q: want HOST or HOST:PORT, as 'docker swarm join-token worker' shows it on a manager", given)
	}
	if port == 0 {
		port = defaultPort
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port))), nil
}

// joinError says what to do about a join that did not work. It begins with what
// Docker says, where Docker says something.
func joinError(manager string, err error) error {
	const rotated = "get the present one with 'docker swarm join-token worker' on a manager"
	switch text := err.Error(); {
	case errors.Is(err, context.DeadlineExceeded):
		return netd.Errorf(netd.ErrUnavailable, "Timeout was reached before node joined: no manager answers at %s. Check the address, and that its TCP port can be reached from here; then join again, this node is still in no swarm", manager)
	case strings.Contains(text, "A valid join token is necessary"):
		return fmt.Errorf("%w: the token was rotated or mistyped; %s", err, rotated)
	case strings.Contains(text, "does not match fingerprint"):
		return fmt.Errorf("%w: the token is of another swarm than that of this manager; %s", err, rotated)
	case strings.Contains(text, "invalid join token"):
		return fmt.Errorf("%w: a token has the form SWMTKN-1-...-...; %s", err, rotated)
	case errors.Is(err, netd.ErrUnavailable):
		return fmt.Errorf("%w: is a manager there? 'docker info' on it shows under Manager Addresses where", err)
	}
	return err
}
