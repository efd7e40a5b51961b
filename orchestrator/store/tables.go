package store

import (
	"fmt"
	"strings"

	"github.com/hashicorp/go-memdb"
	"github.com/moby/moby/api/types/swarm"
)

// The indexes of the tables. go-memdb wants the primary one to be called id.
const (
	indexID      = "id"
	indexName    = "name"
	indexService = "service"
	indexSlot    = "slot"
	indexNode    = "node"
)

// index is a memdb indexer over one string of a record.
type index struct {
	key func(*record) (string, bool)
}

// FromObject returns the index's value for the record raw.
func (x index) FromObject(raw any) (bool, []byte, error) {
	r, ok := raw.(*record)
	if !ok {
		return false, nil, fmt.Errorf("index a %T: not a record", raw)
	}
	k, ok := x.key(r)
	return ok, terminated(k), nil
}

// FromArgs returns the value to look up for the one string in args.
func (x index) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("look up %d values: want one", len(args))
	}
	k, ok := args[0].(string)
	if !ok {
		return nil, fmt.Errorf("look up a %T: want a string", args[0])
	}
	return terminated(k), nil
}

// terminated ends a key with a zero byte, so that no key is a prefix of another.
func terminated(key string) []byte { return append([]byte(key), 0) }

// foldName makes names that differ in case only the same name, as DNS does.
func foldName(name string) string { return strings.ToLower(name) }

// slotKey is a service's slot in the slot index.
func slotKey(service string, slot int) string { return fmt.Sprintf("%s\x00%d", service, slot) }

func task(r *record) *swarm.Task {
	t, _ := r.obj.(*swarm.Task)
	return t
}

func newTables() (*memdb.MemDB, error) {
	schema := &memdb.DBSchema{Tables: make(map[string]*memdb.TableSchema)}
	for _, k := range kinds() {
		t := &memdb.TableSchema{Name: string(k), Indexes: map[string]*memdb.IndexSchema{
			indexID: {Name: indexID, Unique: true, Indexer: index{func(r *record) (string, bool) { return r.id, true }}},
			indexName: {Name: indexName, AllowMissing: true, Indexer: index{func(r *record) (string, bool) {
				return foldName(r.name), r.name != ""
			}}},
		}}
		if k == kindTask {
			addTaskIndexes(t)
		}
		schema.Tables[string(k)] = t
	}
	db, err := memdb.NewMemDB(schema)
	if err != nil {
		return nil, fmt.Errorf("make tables: %w", err)
	}
	return db, nil
}

func addTaskIndexes(t *memdb.TableSchema) {
	t.Indexes[indexService] = &memdb.IndexSchema{Name: indexService, Indexer: index{func(r *record) (string, bool) {
		return task(r).ServiceID, true
	}}}
	t.Indexes[indexNode] = &memdb.IndexSchema{Name: indexNode, Indexer: index{func(r *record) (string, bool) {
		return task(r).NodeID, true
	}}}
	t.Indexes[indexSlot] = &memdb.IndexSchema{Name: indexSlot, AllowMissing: true, Indexer: index{func(r *record) (string, bool) {
		return slotKey(task(r).ServiceID, task(r).Slot), task(r).Slot != 0
	}}}
}
