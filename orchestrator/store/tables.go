package store

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hashicorp/go-memdb"
	"github.com/moby/moby/api/types/swarm"
)

// The indexes of the tables. go-memdb wants the primary one to be called id.
const (
	indexID      = "id"
	indexName    = "name"
	indexService = "service" // of tasks: by service and slot
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

// FromArgs returns the value to look up for the parts of a key in args.
func (x index) FromArgs(args ...any) ([]byte, error) {
	var k []byte
	for _, arg := range args {
		part, ok := arg.(string)
		if !ok {
			return nil, fmt.Errorf("look up a %T: want a string", arg)
		}
		k = append(k, terminated(part)...)
	}
	return k, nil
}

// PrefixFromArgs returns what all values begin with whose first parts are args.
func (x index) PrefixFromArgs(args ...any) ([]byte, error) { return x.FromArgs(args...) }

// terminated ends a part of a key with a zero byte, so that no part is a prefix
// of another.
func terminated(part string) []byte { return append([]byte(part), 0) }

// foldName makes names that differ in case only the same name, as DNS does.
func foldName(name string) string { return strings.ToLower(name) }

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
		return task(r).ServiceID + "\x00" + strconv.Itoa(task(r).Slot), true
	}}}
	t.Indexes[indexNode] = &memdb.IndexSchema{Name: indexNode, Indexer: index{func(r *record) (string, bool) {
		return task(r).NodeID, true
	}}}
}
