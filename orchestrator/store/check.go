package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"

	"github.com/hashicorp/raft"
)

// checkLog reads every page and every sealed value of the bbolt file at path and
// returns what it says of itself. It does not use bbolt, which panics, faults on
// its memory map, or silently goes back by one transaction when a file is
// damaged, and creates what is missing.
func checkLog(path string, seal sealer) (about, error) {
	f, err := os.Open(path)
	if err != nil {
		return about{}, err
	}
	defer f.Close()
	c, root, err := openPages(f)
	if err != nil {
		return about{}, err
	}
	v := logValues{seal: seal}
	if err := c.tree(root, bounds{}, v.bucket(c)); err != nil {
		return about{}, err
	}
	if err := c.complete(); err != nil {
		return about{}, err
	}
	return v.result()
}

// pages reads a bbolt file as bbolt 1.5 writes it (internal/common: meta.go,
// page.go, bucket.go): numbers in the machine's byte order, a page's header of
// 16 bytes before its elements of 16 bytes each.
type pages struct {
	f    *os.File
	size int64  // of a page
	end  uint64 // the first page that was never used
	seen []bool // each page belongs to one owner
	free uint64 // the page that lists the free pages
}

const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2
	pageHeader  = 16
	elementSize = 16

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketValue  = 0x01 // flag of a leaf element
)

// meta is bbolt's head of a file.
type meta struct {
	pageSize                 uint32
	root, freelist, end, txn uint64
}

func readMeta(b []byte) (meta, error) {
	ne := binary.NativeEndian
	b = b[pageHeader:]
	sum := fnv.New64a()
	sum.Write(b[:56])
	if ne.Uint32(b) != boltMagic || ne.Uint32(b[4:]) != boltVersion || ne.Uint64(b[56:]) != sum.Sum64() {
		return meta{}, errors.New("its head is damaged")
	}
	return meta{
		pageSize: ne.Uint32(b[8:]), root: ne.Uint64(b[16:]), freelist: ne.Uint64(b[32:]),
		end: ne.Uint64(b[40:]), txn: ne.Uint64(b[48:]),
	}, nil
}

// openPages reads the two heads. Both must be whole: bbolt would take the older
// one for a damaged newer one and lose a transaction that raft relies on. A
// crash damages neither, since a head lies within one disk sector.
func openPages(f *os.File) (*pages, uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	head := make([]byte, pageHeader+64)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, 0, errors.New("it is too short")
	}
	m, err := readMeta(head)
	if err != nil {
		return nil, 0, err
	}
	if m.pageSize < 512 || m.pageSize > 1<<20 {
		return nil, 0, errors.New("its page size is impossible")
	}
	if _, err := f.ReadAt(head, int64(m.pageSize)); err != nil {
		return nil, 0, errors.New("it is too short")
	}
	other, err := readMeta(head)
	if err != nil {
		return nil, 0, err
	}
	if m.txn%2 != 0 || other.txn%2 != 1 || other.pageSize != m.pageSize || (other.txn != m.txn+1 && m.txn != other.txn+1) {
		return nil, 0, errors.New("its two heads do not belong together")
	}
	if other.txn > m.txn {
		m = other
	}
	if m.end < 4 || m.end > uint64(info.Size())/uint64(m.pageSize) {
		return nil, 0, errors.New("it is cut short")
	}
	return &pages{f: f, size: int64(m.pageSize), end: m.end, free: m.freelist, seen: make([]bool, m.end)}, m.root, nil
}

// page is one page, with its overflow pages.
type page struct {
	flags, count uint16
	data         []byte
}

func (c *pages) read(id uint64) (page, error) {
	bad := fmt.Errorf("page %d is damaged", id)
	head := make([]byte, pageHeader)
	if id < 2 || id >= c.end {
		return page{}, bad
	}
	if _, err := c.f.ReadAt(head, int64(id)*c.size); err != nil {
		return page{}, err
	}
	ne := binary.NativeEndian
	more := uint64(ne.Uint32(head[12:]))
	if ne.Uint64(head) != id || id+more >= c.end {
		return page{}, bad
	}
	for i := id; i <= id+more; i++ {
		if c.seen[i] {
			return page{}, bad
		}
		c.seen[i] = true
	}
	p := page{flags: ne.Uint16(head[8:]), count: ne.Uint16(head[10:]), data: make([]byte, int64(more+1)*c.size)}
	if _, err := c.f.ReadAt(p.data, int64(id)*c.size); err != nil {
		return page{}, err
	}
	return p, nil
}

// element is one entry of a branch or leaf page; a leaf's has a value, a
// branch's a child.
type element struct {
	key, value []byte
	flags      uint32
	child      uint64
}

func (p page) element(i uint16) (element, error) {
	ne := binary.NativeEndian
	at := uint64(pageHeader) + uint64(i)*elementSize
	if at+elementSize > uint64(len(p.data)) {
		return element{}, errors.New("a page is damaged")
	}
	b := p.data[at:]
	var e element
	var pos, klen, vlen uint64
	if p.flags == branchPage {
		pos, klen, e.child = uint64(ne.Uint32(b)), uint64(ne.Uint32(b[4:])), ne.Uint64(b[8:])
	} else {
		e.flags = ne.Uint32(b)
		pos, klen, vlen = uint64(ne.Uint32(b[4:])), uint64(ne.Uint32(b[8:])), uint64(ne.Uint32(b[12:]))
	}
	if pos < elementSize || at+pos+klen+vlen > uint64(len(p.data)) {
		return element{}, errors.New("a page is damaged")
	}
	e.key, e.value = p.data[at+pos:at+pos+klen], p.data[at+pos+klen:at+pos+klen+vlen]
	return e, nil
}

// bounds are the keys that a subtree may hold: lo <= key < hi, nil without limit.
type bounds struct{ lo, hi []byte }

// tree calls leaf for each element under the page, in the order of the keys.
func (c *pages) tree(id uint64, in bounds, leaf func(element) error) error {
	p, err := c.read(id)
	if err != nil {
		return err
	}
	if p.flags == leafPage {
		return p.leaves(in, leaf)
	}
	if p.flags != branchPage || p.count == 0 {
		return fmt.Errorf("page %d is damaged", id)
	}
	var all []element
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		all = append(all, e)
	}
	for i, e := range all {
		sub := bounds{e.key, in.hi}
		if i+1 < len(all) {
			sub.hi = all[i+1].key
		}
		if bytes.Compare(e.key, in.lo) < 0 || (sub.hi != nil && bytes.Compare(e.key, sub.hi) >= 0) {
			return fmt.Errorf("page %d is damaged", id)
		}
		if err := c.tree(e.child, sub, leaf); err != nil {
			return err
		}
	}
	return nil
}

func (p page) leaves(in bounds, leaf func(element) error) error {
	last := in.lo
	for i := range p.count {
		e, err := p.element(i)
		if err != nil {
			return err
		}
		low := bytes.Compare(e.key, last)
		if low < 0 || (low == 0 && i > 0) || (in.hi != nil && bytes.Compare(e.key, in.hi) >= 0) {
			return errors.New("its keys are out of order")
		}
		last = e.key
		if err := leaf(e); err != nil {
			return err
		}
	}
	return nil
}

// bucket calls leaf for each element of the bucket whose value is given: the
// number of its root page, or for a small one that page itself.
func (c *pages) bucket(value []byte, leaf func(element) error) error {
	if len(value) < 16 {
		return errors.New("a bucket is damaged")
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.tree(root, bounds{}, leaf)
	}
	inline := value[16:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != leafPage {
		return errors.New("a bucket is damaged")
	}
	return page{flags: leafPage, count: binary.NativeEndian.Uint16(inline[10:]), data: inline}.leaves(bounds{}, leaf)
}

// complete checks that each page that the trees did not use is free.
func (c *pages) complete() error {
	p, err := c.read(c.free)
	if err != nil {
		return err
	}
	if p.flags != freelistPage {
		return errors.New("its list of free pages is damaged")
	}
	ne := binary.NativeEndian
	ids, n := p.data[pageHeader:], uint64(p.count)
	if p.count == 0xFFFF && len(ids) >= 8 { // too many for 16 bits
		n, ids = ne.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return errors.New("its list of free pages is damaged")
	}
	for i := range n {
		id := ne.Uint64(ids[8*i:])
		if id < 2 || id >= c.end || c.seen[id] {
			return errors.New("its list of free pages is damaged")
		}
		c.seen[id] = true
	}
	for id := uint64(2); id < c.end; id++ {
		if !c.seen[id] {
			return fmt.Errorf("page %d belongs to nothing", id)
		}
	}
	return nil
}

// logValues opens every value of the log and sees that none is missing.
type logValues struct {
	seal        sealer
	about       *about
	first, last uint64
	buckets     int
}

func (v *logValues) bucket(c *pages) func(element) error {
	return func(e element) error {
		if e.flags != bucketValue {
			return errors.New("a bucket is damaged")
		}
		v.buckets++
		switch string(e.key) {
		case bucketLog:
			return c.bucket(e.value, v.entry)
		case bucketAbout:
			return c.bucket(e.value, v.head)
		}
		return errors.New("it holds a bucket that is not the store's")
	}
}

func (v *logValues) entry(e element) error {
	if len(e.key) != 8 || e.flags != 0 {
		return errors.New("an entry is damaged")
	}
	index := binary.BigEndian.Uint64(e.key)
	plain, err := v.seal.open(e.value, logPlace(index))
	if err != nil {
		return fmt.Errorf("entry %d: %w", index, err)
	}
	var l raft.Log
	if err := decodeLog(plain, &l); err != nil || l.Index != index || index == 0 {
		return fmt.Errorf("entry %d is damaged", index)
	}
	if v.first == 0 {
		v.first = index
	} else if index != v.last+1 {
		return fmt.Errorf("the entries between %d and %d are missing", v.last, index)
	}
	v.last = index
	return nil
}

func (v *logValues) head(e element) error {
	if string(e.key) != keyAbout || e.flags != 0 {
		return errors.New("its description is damaged")
	}
	plain, err := v.seal.open(e.value, aboutPlace())
	if err != nil {
		return fmt.Errorf("its description: %w", err)
	}
	v.about = new(about)
	return json.Unmarshal(plain, v.about)
}

func (v *logValues) result() (about, error) {
	switch {
	case v.about == nil || v.buckets != 2:
		return about{}, errors.New("a bucket is missing")
	case v.about.Format != logFormat:
		return about{}, fmt.Errorf("its format is %d, this netd knows %d", v.about.Format, logFormat)
	case v.first != v.about.First || v.last != v.about.Last:
		return about{}, fmt.Errorf("it holds the entries %d to %d instead of %d to %d", v.first, v.last, v.about.First, v.about.Last)
	}
	return *v.about, nil
}
