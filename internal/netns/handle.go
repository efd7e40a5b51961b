package netns

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often an interrupted dump is repeated. The kernel flags a
// dump whose table changed while it was read; under churn several in a row may be.
const dumpTries = 20

// Handle is a netlink handle bound to one namespace. Its list calls are whole:
// an interrupted dump, which netlink.Handle returns in part, is read again.
// The zero value is not usable. One goroutine at a time.
type Handle struct {
	*netlink.Handle
}

// Open returns a handle in the namespace at path ("" = the calling thread's).
// Families are netlink protocols; none given means NETLINK_ROUTE alone.
func Open(path string, families ...int) (*Handle, error) {
	if len(families) == 0 {
		families = []int{unix.NETLINK_ROUTE}
	}
	var h *netlink.Handle
	err := Do(path, func() (err error) {
		h, err = netlink.NewHandle(families...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink in %q: %w", path, err)
	}
	return &Handle{h}, nil
}

func whole[T any](list func() (T, error)) (result T, err error) {
	for range dumpTries {
		result, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return result, err
}

// LinkList returns every link of the namespace.
func (h *Handle) LinkList() ([]netlink.Link, error) {
	return whole(h.Handle.LinkList)
}

// LinkByName returns the link of that name; netlink.LinkNotFoundError if there is none.
func (h *Handle) LinkByName(name string) (netlink.Link, error) {
	return whole(func() (netlink.Link, error) { return h.Handle.LinkByName(name) })
}

// AddrList returns the addresses of link, or of all links when it is nil.
func (h *Handle) AddrList(link netlink.Link, family int) ([]netlink.Addr, error) {
	return whole(func() ([]netlink.Addr, error) { return h.Handle.AddrList(link, family) })
}

// RouteList returns the main table's routes of link, or of all links when it is nil.
func (h *Handle) RouteList(link netlink.Link, family int) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) { return h.Handle.RouteList(link, family) })
}

// RouteListFiltered returns the routes that match filter in the fields of mask.
func (h *Handle) RouteListFiltered(family int, filter *netlink.Route, mask uint64) ([]netlink.Route, error) {
	return whole(func() ([]netlink.Route, error) { return h.Handle.RouteListFiltered(family, filter, mask) })
}

// NeighList returns the neighbours (or, for AF_BRIDGE, the FDB) of the link; all when index is 0.
func (h *Handle) NeighList(index, family int) ([]netlink.Neigh, error) {
	return whole(func() ([]netlink.Neigh, error) { return h.Handle.NeighList(index, family) })
}

// NeighListExecute returns the neighbours that match msg.
func (h *Handle) NeighListExecute(msg netlink.Ndmsg) ([]netlink.Neigh, error) {
	return whole(func() ([]netlink.Neigh, error) { return h.Handle.NeighListExecute(msg) })
}

// RuleList returns the policy rules.
func (h *Handle) RuleList(family int) ([]netlink.Rule, error) {
	return whole(func() ([]netlink.Rule, error) { return h.Handle.RuleList(family) })
}

// GenlFamilyList returns the generic netlink families; the handle needs NETLINK_GENERIC.
func (h *Handle) GenlFamilyList() ([]*netlink.GenlFamily, error) {
	return whole(h.Handle.GenlFamilyList)
}
