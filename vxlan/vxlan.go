// Package vxlan is the routed overlay of one node: for each network a router
// namespace with its VXLAN device, the veths of the node's containers, the
// routes to every other container, and the uplink by which the network reaches
// the outside.
//
// It owns, and removes when they are not wanted: the namespaces net-* pinned in
// its directory with all that is in them; in the host's namespace the links
// nd-up*, what hangs on them, and the nft table netd-egress; in a container's
// namespace the other end of its veth and the routes with protocol 78 on it.
//
// It does NOT balance (a VIP is only a local address here), resolve names,
// encrypt, or choose addresses, and it leaves net.ipv4.ip_forward of the host on.
package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// MAC is a hardware address that can be compared.
type MAC [6]byte

// String formats m as 02:00:5e:10:00:01.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Config is everything that the overlay of this node shall be. The zero value is
// nothing. Sorted by VNI, and the slices of a Network by their first field, so
// that equal configs are deeply equal; empty slices are nil.
type Config struct {
	Networks []Network
}

// Network is one overlay network on this node.
type Network struct {
	// Router is the path of the router's namespace: <dir>/net-<anything>.
	Router string
	VNI    uint32
	// MTU is that of every link of the network, in bytes of inner IP packet.
	MTU int
	// Local and Port are where this node's VXLAN packets come from and go to.
	Local netip.Addr
	Port  uint16
	// MAC is the router's own on the VXLAN device; the peers must know it.
	MAC    MAC
	Subnet netip.Prefix
	// Addrs are local addresses of the router: its gateway address, the
	// link-local address that all routers share, and the VIPs.
	Addrs []netip.Addr
	// Alias is the source that a container sees when it calls itself by a VIP.
	Alias netip.Addr
	// Uplink connects the router to the host: the network is not internal.
	Uplink bool
	// Return takes connections that other nodes' routers send on from outside of
	// the subnet, with the client's own address as the source, and sends each
	// answer back through the node that it came by. Needs Uplink.
	Return  bool
	Peers   []Peer
	Remotes []Remote
	Ports   []Port
}

// Peer is the router of the same network on another node.
type Peer struct {
	VTEP netip.Addr
	MAC  MAC
}

// Remote is a container on another node, reached through that node's VTEP.
type Remote struct {
	Addr, VTEP netip.Addr
}

// Port is a container of this node.
type Port struct {
	// Name is the veth's name in the router, 15 bytes at most.
	Name string
	// NetNS is the path of the container's namespace and, with Iface and Addr,
	// the port's identity: when one changes, the veth is made anew.
	NetNS string
	Iface string
	Addr  netip.Prefix
	// First puts the route to the routers' shared address here; Default the
	// default route. Each is wanted on at most one interface of a container.
	First   bool
	Default bool
}

// routerPrefix starts the name of every router's pin in the directory.
const routerPrefix = "net-"

// Overlay reads and sets the overlay of the namespace in which New was called.
// Get and Diff may run beside one Set; two Sets may not.
type Overlay struct {
	dir  string
	host *os.File // the host's namespace
	log  *slog.Logger
}

// New returns the overlay of the calling thread's namespace, with its routers
// pinned in dir. It changes nothing.
func New(dir string, log *slog.Logger) (*Overlay, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open overlay: %w", err)
	}
	return &Overlay{dir: abs, host: host, log: log}, nil
}

// Close lets go of the namespace; the overlay itself stays as it is.
func (o *Overlay) Close() error { return o.host.Close() }

// path is the file of a namespace as objects name it: "" is the host's.
func (o *Overlay) path(ns string) string {
	if ns == "" {
		return fmt.Sprintf("/proc/self/fd/%d", o.host.Fd())
	}
	return ns
}

// Get reads the overlay from the kernel. What is there only in part (a port
// whose container has no address, a peer without its FDB entry) is left out, so
// that a Config equal to the wanted one means a whole overlay.
func (o *Overlay) Get() (Config, error) {
	have, broken, err := o.read()
	return describe(have), errors.Join(err, joinBroken(broken))
}

// Diff returns what Set would do, in the words of ip(8).
func (o *Overlay) Diff(want Config) ([]string, error) {
	ops, err := o.plan(want)
	var texts []string
	for _, op := range ops {
		texts = append(texts, op.String())
	}
	return texts, err
}

// Set makes the kernel's overlay equal to want from whatever state it is in, and
// returns what it did. An error of one network or port leaves the others set.
func (o *Overlay) Set(ctx context.Context, want Config) ([]string, error) {
	ops, err := o.plan(want)
	errs := []error{err}
	s := newSession(o)
	defer s.close()
	var done []string
	for _, op := range ops {
		if err := ctx.Err(); err != nil {
			return done, errors.Join(append(errs, err)...)
		}
		if s.blocked(op) {
			continue
		}
		if err := s.do(op); err != nil {
			s.fail(op)
			errs = append(errs, fmt.Errorf("set overlay: %s: %w", op, err))
			continue
		}
		o.log.Debug("overlay changed", "op", op.String())
		done = append(done, op.String())
	}
	return done, errors.Join(errs...)
}

// plan compares the kernel with want. A network that is invalid, or whose router
// cannot be read, is reported and left as it is, with what all networks share.
func (o *Overlay) plan(want Config) ([]op, error) {
	have, broken, err := o.read()
	if err != nil {
		return nil, err
	}
	wanted := Config{}
	for _, n := range want.Networks {
		if err := n.check(o.dir); err != nil {
			broken[n.Router] = err
		} else {
			wanted.Networks = append(wanted.Networks, n)
		}
	}
	objects, err := objectsOf(wanted)
	var ops []op
	for _, op := range plan(have, objects) {
		shared := op.key.router == "" && op.verb == verbDel
		if broken[op.key.router] == nil && !(shared && len(broken) > 0) {
			ops = append(ops, op)
		}
	}
	return ops, errors.Join(joinBroken(broken), err)
}

func joinBroken(broken map[string]error) error {
	var errs []error
	for _, router := range sortedKeys(broken) {
		errs = append(errs, fmt.Errorf("overlay router %q: %w", router, broken[router]))
	}
	return errors.Join(errs...)
}

// check finds what the kernel would refuse without saying why, and what would
// make the network impossible to find again.
func (n Network) check(dir string) error {
	switch {
	case filepath.Dir(n.Router) != dir || !strings.HasPrefix(filepath.Base(n.Router), routerPrefix):
		return fmt.Errorf("router path must be %s<name>", filepath.Join(dir, routerPrefix))
	case n.VNI == 0 || n.VNI >= 1<<24:
		return fmt.Errorf("vni %d is not within 1 and 2^24-1", n.VNI)
	case n.MTU < 68 || n.MTU > 65535:
		return fmt.Errorf("mtu %d is not within 68 and 65535", n.MTU)
	case !n.Local.IsValid() || n.Port == 0:
		return errors.New("local address and port must be set")
	case !n.Subnet.IsValid() || !n.Subnet.Addr().Is4() || n.Subnet != n.Subnet.Masked():
		return fmt.Errorf("subnet %s is no IPv4 network", n.Subnet)
	case n.MAC == MAC{} || n.MAC[0]&1 != 0:
		return fmt.Errorf("mac %s is no unicast address", n.MAC)
	}
	for _, p := range n.Ports {
		switch {
		case p.Name == "" || len(p.Name) > 15 || p.Name == vxlanName || p.Name == uplinkName:
			return fmt.Errorf("port name %q is empty, longer than 15 bytes or taken", p.Name)
		case !filepath.IsAbs(p.NetNS) || len(p.NetNS) > 200:
			return fmt.Errorf("port %q: namespace path %q must be absolute and 200 bytes at most", p.Name, p.NetNS)
		case p.Iface == "" || len(p.Iface) > 15 || !p.Addr.IsValid() || !p.Addr.Addr().Is4():
			return fmt.Errorf("port %q: needs an interface name and an IPv4 address", p.Name)
		}
	}
	return nil
}
