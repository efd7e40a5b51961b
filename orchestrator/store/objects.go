package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// Cluster is the swarm itself: exactly one object.
type Cluster struct {
	ID string
	swarm.Meta
	Spec       swarm.Spec
	JoinTokens swarm.JoinTokens
	// CACert and CAKey are the root of the node certificates, in PEM.
	CACert, CAKey []byte
	// GossipKeys are the AES keys of the nodes' gossip, the first one primary.
	GossipKeys      [][]byte
	DefaultAddrPool []netip.Prefix
	// SubnetSize is the prefix length of the subnets cut from DefaultAddrPool.
	SubnetSize uint32
	// DataPathPort is the UDP port of VXLAN.
	DataPathPort uint32
}

// kind names a table, in the log and in snapshots too: never change one.
type kind string

const (
	kindNode    kind = "node"
	kindService kind = "service"
	kindTask    kind = "task"
	kindNetwork kind = "network"
	kindSecret  kind = "secret"
	kindConfig  kind = "config"
	kindCluster kind = "cluster"
)

// kinds returns every table in the order of a snapshot.
func kinds() []kind {
	return []kind{kindCluster, kindNode, kindNetwork, kindService, kindTask, kindSecret, kindConfig}
}

// uniqueNames tells whether two objects of the kind may not share a name. Nodes
// are named by their host and tasks by their service: neither is unique.
func (k kind) uniqueNames() bool {
	switch k {
	case kindService, kindNetwork, kindSecret, kindConfig:
		return true
	}
	return false
}

// record is an object as the tables hold it. The object is a shallow copy that
// nobody changes once it is in a table.
type record struct {
	kind kind
	id   string
	name string
	meta *swarm.Meta
	obj  any
}

// newRecord copies obj, which must be a non-nil pointer to one of the kinds.
func newRecord(obj any) (*record, error) {
	if v := reflect.ValueOf(obj); v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, netd.Errorf(netd.ErrInvalid, "store object: it is a nil %T", obj)
	}
	var r *record
	switch o := obj.(type) {
	case *swarm.Node:
		c := *o
		r = &record{kindNode, c.ID, c.Description.Hostname, &c.Meta, &c}
	case *swarm.Service:
		c := *o
		r = &record{kindService, c.ID, c.Spec.Name, &c.Meta, &c}
	case *swarm.Task:
		c := *o
		r = &record{kindTask, c.ID, "", &c.Meta, &c}
	case *swarm.Network:
		c := *o
		r = &record{kindNetwork, c.ID, c.Spec.Name, &c.Meta, &c}
	case *swarm.Secret:
		c := *o
		r = &record{kindSecret, c.ID, c.Spec.Name, &c.Meta, &c}
	case *swarm.Config:
		c := *o
		r = &record{kindConfig, c.ID, c.Spec.Name, &c.Meta, &c}
	case *Cluster:
		c := *o
		r = &record{kindCluster, c.ID, c.Spec.Name, &c.Meta, &c}
	default:
		return nil, netd.Errorf(netd.ErrInvalid, "store object: the store has no kind for a %T", obj)
	}
	if r.id == "" || strings.ContainsAny(r.id, "\n\x00") {
		return nil, netd.Errorf(netd.ErrInvalid, "store %s %q: %q is no ID", r.kind, r.name, r.id)
	}
	return r, nil
}

// decodeRecord is the inverse of marshalling a record's object.
func decodeRecord(k kind, data []byte) (*record, error) {
	var obj any
	switch k {
	case kindNode:
		obj = new(swarm.Node)
	case kindService:
		obj = new(swarm.Service)
	case kindTask:
		obj = new(swarm.Task)
	case kindNetwork:
		obj = new(swarm.Network)
	case kindSecret:
		obj = new(swarm.Secret)
	case kindConfig:
		obj = new(swarm.Config)
	case kindCluster:
		obj = new(Cluster)
	default:
		return nil, fmt.Errorf("decode object: unknown kind %q: it was written by a newer netd; upgrade this node", k)
	}
	if err := json.Unmarshal(data, obj); err != nil {
		return nil, fmt.Errorf("decode %s: %w", k, err)
	}
	return newRecord(obj)
}
