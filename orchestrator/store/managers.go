package store

import (
	"context"
	"net"

	"github.com/hashicorp/raft"

	"netd"
)

// Member is one manager as raft knows it.
type Member struct {
	ID     string
	Addr   string // host:port
	Leader bool
}

// Members returns the managers that vote, in no particular order.
func (s *Store) Members() []Member {
	_, leader := s.raft.LeaderWithID()
	var all []Member
	for _, server := range s.raft.GetConfiguration().Configuration().Servers {
		all = append(all, Member{ID: string(server.ID), Addr: string(server.Address), Leader: server.ID == leader})
	}
	return all
}

// AddMember gives a manager a vote. Its store must be open and empty, and this
// node must lead.
func (s *Store) AddMember(ctx context.Context, id, addr string) error {
	return s.changeMembers(ctx, func() raft.IndexFuture {
		return s.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(addr), 0, 0)
	})
}

// RemoveMember takes a manager's vote away. This node must lead; a leader that
// removes itself leads no more.
func (s *Store) RemoveMember(ctx context.Context, id string) error {
	return s.changeMembers(ctx, func() raft.IndexFuture {
		return s.raft.RemoveServer(raft.ServerID(id), 0, 0)
	})
}

// TransferLeadership makes another manager the leader, as before this one stops.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if err := await(ctx, func() error { return s.raft.LeadershipTransfer().Error() }); err != nil {
		return netd.Errorf(netd.ErrUnavailable, "hand over leadership: %w", err)
	}
	return nil
}

func (s *Store) changeMembers(ctx context.Context, change func() raft.IndexFuture) error {
	if s.raft.State() != raft.Leader {
		return s.notLeader()
	}
	if err := await(ctx, func() error { return change().Error() }); err != nil {
		return s.unavailable("the managers may or may not be changed", err)
	}
	return nil
}

// advertised is a stream layer under the address that other managers know.
type advertised struct {
	raft.StreamLayer
	at addr
}

// Addr returns the advertised address instead of the one listened on.
func (a advertised) Addr() net.Addr { return a.at }

// addr is a host:port.
type addr string

// Network returns tcp.
func (addr) Network() string { return "tcp" }

func (a addr) String() string { return string(a) }
