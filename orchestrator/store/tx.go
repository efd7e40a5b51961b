package store

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// Tx is one consistent state of the tables, and in an Update the writes to it.
// Objects that it hands out are shared and must not be changed: copy the struct,
// replace what changes (with new slices and maps), and Put the copy. A single
// object that does not exist is nil; lists are sorted by ID.
//
// A read-only Tx may be used by several goroutines, that of an Update only by
// its function.
type Tx struct {
	txn     *memdb.Txn
	writing bool
	now     time.Time
	changes []change
	at      map[key]int // where in changes the last write to an object is
}

// change is one write of an Update: a put, or a delete when obj is nil.
type change struct {
	key
	rec *record
}

type key struct {
	kind kind
	id   string
}

// newWriteTx opens a Tx over a copy of db, to be thrown away: the tables change
// only when the entry made of its changes is applied.
func newWriteTx(db *memdb.MemDB, now time.Time) *Tx {
	return &Tx{txn: db.Snapshot().Txn(true), writing: true, now: now, at: make(map[key]int)}
}

// Node returns the node with the ID.
func (tx *Tx) Node(id string) *swarm.Node { return get[swarm.Node](tx, kindNode, id) }

// NodeByName returns the node with the host name, nil also when several have it.
func (tx *Tx) NodeByName(name string) *swarm.Node {
	if all := list[swarm.Node](tx, kindNode, indexName, foldName(name)); len(all) == 1 {
		return all[0]
	}
	return nil
}

// Nodes returns all nodes.
func (tx *Tx) Nodes() []*swarm.Node { return list[swarm.Node](tx, kindNode, indexID) }

// Service returns the service with the ID.
func (tx *Tx) Service(id string) *swarm.Service { return get[swarm.Service](tx, kindService, id) }

// ServiceByName returns the service with the name, in upper or lower case.
func (tx *Tx) ServiceByName(name string) *swarm.Service {
	return byName[swarm.Service](tx, kindService, name)
}

// Services returns all services.
func (tx *Tx) Services() []*swarm.Service { return list[swarm.Service](tx, kindService, indexID) }

// Task returns the task with the ID.
func (tx *Tx) Task(id string) *swarm.Task { return get[swarm.Task](tx, kindTask, id) }

// Tasks returns all tasks.
func (tx *Tx) Tasks() []*swarm.Task { return list[swarm.Task](tx, kindTask, indexID) }

// TasksByService returns the tasks of the service.
func (tx *Tx) TasksByService(id string) []*swarm.Task {
	all := list[swarm.Task](tx, kindTask, indexService+"_prefix", id)
	slices.SortFunc(all, func(a, b *swarm.Task) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// TasksBySlot returns the tasks that are or were in the service's slot.
func (tx *Tx) TasksBySlot(service string, slot int) []*swarm.Task {
	return list[swarm.Task](tx, kindTask, indexService, service, strconv.Itoa(slot))
}

// TasksByNode returns the tasks of the node; of the empty ID, those of no node yet.
func (tx *Tx) TasksByNode(id string) []*swarm.Task {
	return list[swarm.Task](tx, kindTask, indexNode, id)
}

// Network returns the network with the ID.
func (tx *Tx) Network(id string) *swarm.Network { return get[swarm.Network](tx, kindNetwork, id) }

// NetworkByName returns the network with the name, in upper or lower case.
func (tx *Tx) NetworkByName(name string) *swarm.Network {
	return byName[swarm.Network](tx, kindNetwork, name)
}

// Networks returns all networks.
func (tx *Tx) Networks() []*swarm.Network { return list[swarm.Network](tx, kindNetwork, indexID) }

// Secret returns the secret with the ID, its data included.
func (tx *Tx) Secret(id string) *swarm.Secret { return get[swarm.Secret](tx, kindSecret, id) }

// SecretByName returns the secret with the name, in upper or lower case.
func (tx *Tx) SecretByName(name string) *swarm.Secret {
	return byName[swarm.Secret](tx, kindSecret, name)
}

// Secrets returns all secrets.
func (tx *Tx) Secrets() []*swarm.Secret { return list[swarm.Secret](tx, kindSecret, indexID) }

// Config returns the config with the ID.
func (tx *Tx) Config(id string) *swarm.Config { return get[swarm.Config](tx, kindConfig, id) }

// ConfigByName returns the config with the name, in upper or lower case.
func (tx *Tx) ConfigByName(name string) *swarm.Config {
	return byName[swarm.Config](tx, kindConfig, name)
}

// Configs returns all configs.
func (tx *Tx) Configs() []*swarm.Config { return list[swarm.Config](tx, kindConfig, indexID) }

// Cluster returns the swarm itself, nil before it is written.
func (tx *Tx) Cluster() *Cluster {
	if all := list[Cluster](tx, kindCluster, indexID); len(all) > 0 {
		return all[0]
	}
	return nil
}

// Put writes a copy of obj, a pointer to one of the store's kinds, in place of
// the object with its ID. It stamps CreatedAt and UpdatedAt; Version.Index is
// set when the entry is applied. A name that another object of the kind has is a
// netd.ErrExists.
func (tx *Tx) Put(obj any) error {
	if !tx.writing {
		return netd.Errorf(netd.ErrInvalid, "store a %T: the transaction is read-only", obj)
	}
	rec, err := newRecord(obj)
	if err != nil {
		return err
	}
	if err := tx.checkUnique(rec); err != nil {
		return err
	}
	rec.meta.UpdatedAt = tx.now
	if old := tx.record(rec.kind, rec.id); old != nil {
		rec.meta.CreatedAt = old.meta.CreatedAt
		rec.meta.Version = old.meta.Version
	} else {
		rec.meta.CreatedAt = tx.now
		rec.meta.Version = swarm.Version{}
	}
	if err := tx.txn.Insert(string(rec.kind), rec); err != nil {
		return err
	}
	tx.note(change{key{rec.kind, rec.id}, rec})
	return nil
}

// Delete removes the object with obj's kind and ID; netd.ErrNotFound when there
// is none.
func (tx *Tx) Delete(obj any) error {
	if !tx.writing {
		return netd.Errorf(netd.ErrInvalid, "delete a %T: the transaction is read-only", obj)
	}
	rec, err := newRecord(obj)
	if err != nil {
		return err
	}
	old := tx.record(rec.kind, rec.id)
	if old == nil {
		return netd.Errorf(netd.ErrNotFound, "%s %s not found", rec.kind, rec.id)
	}
	if err := tx.txn.Delete(string(rec.kind), old); err != nil {
		return err
	}
	tx.note(change{key{rec.kind, rec.id}, nil})
	return nil
}

func (tx *Tx) checkUnique(rec *record) error {
	if rec.kind == kindCluster {
		if c := tx.Cluster(); c != nil && c.ID != rec.id {
			return netd.Errorf(netd.ErrExists, "store cluster %s: this swarm is %s already", rec.id, c.ID)
		}
		return nil
	}
	if !rec.kind.uniqueNames() || rec.name == "" {
		return nil
	}
	for _, other := range tx.records(rec.kind, indexName, foldName(rec.name)) {
		if other.id != rec.id {
			return netd.Errorf(netd.ErrExists, "name conflicts with an existing object: %s %s already exists", rec.kind, rec.name)
		}
	}
	return nil
}

// note keeps one change per object: its last.
func (tx *Tx) note(c change) {
	if i, ok := tx.at[c.key]; ok {
		tx.changes[i] = c
		return
	}
	tx.at[c.key] = len(tx.changes)
	tx.changes = append(tx.changes, c)
}

func (tx *Tx) record(k kind, id string) *record {
	raw, err := tx.txn.First(string(k), indexID, id)
	if err != nil {
		panic(err) // the schema lacks the table or the index: a bug here
	}
	r, _ := raw.(*record)
	return r
}

func (tx *Tx) records(k kind, index string, args ...any) []*record {
	it, err := tx.txn.Get(string(k), index, args...)
	if err != nil {
		panic(err) // the schema lacks the table or the index: a bug here
	}
	var all []*record
	for raw := it.Next(); raw != nil; raw = it.Next() {
		all = append(all, raw.(*record))
	}
	return all
}

func get[T any](tx *Tx, k kind, id string) *T {
	if r := tx.record(k, id); r != nil {
		return r.obj.(*T)
	}
	return nil
}

func byName[T any](tx *Tx, k kind, name string) *T {
	if all := list[T](tx, k, indexName, foldName(name)); len(all) > 0 {
		return all[0]
	}
	return nil
}

func list[T any](tx *Tx, k kind, index string, args ...any) []*T {
	recs := tx.records(k, index, args...)
	all := make([]*T, len(recs))
	for i, r := range recs {
		all[i] = r.obj.(*T)
	}
	return all
}
