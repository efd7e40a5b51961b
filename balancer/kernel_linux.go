package balancer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// kernel reads and changes one router. It lives inside one netns.Do, whose
// thread is in the router's namespace.
type kernel struct {
	nft  *nftables.Conn
	ipvs *ipvsHandle // nil where the kernel has no ip_vs
}

// open runs fn with the router's kernel.
func (b *Balancer) open(path string, fn func(*kernel) error) error {
	if path == "" {
		return errors.New("no namespace; the machine's own is never balanced")
	}
	return netns.Do(path, func() error {
		k := &kernel{}
		var err error
		if k.nft, err = openNFT(); err != nil {
			return err
		}
		defer k.nft.CloseLasting()
		if b.ipvs {
			if k.ipvs, err = openIPVS(); err != nil {
				return err
			}
			defer k.ipvs.Close()
		}
		return fn(k)
	})
}

// read returns what the kernel holds.
func (k *kernel) read() (state, error) {
	have := state{settings: map[string]string{}}
	for _, kind := range []Kind{IPVS, NFTables} {
		for key := range settingsOf(kind) {
			value, err := readSetting(key)
			if err != nil {
				return have, err
			}
			if value != "" {
				have.settings[key] = value
			}
		}
	}
	if k.ipvs != nil {
		if err := k.ipvs.read(&have); err != nil {
			return have, fmt.Errorf("read IPVS: %w", err)
		}
	}
	if err := readNFT(k.nft, &have.table); err != nil {
		return have, fmt.Errorf("read nftables table %q: %w", tableName, err)
	}
	return have, nil
}

// readSetting returns "" for a setting that the kernel, or a module that is not
// loaded yet, does not have.
func readSetting(key string) (string, error) {
	data, err := os.ReadFile(filepath.Join("/proc/sys", key))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(data)), err
}

// apply does the operations in order, those of nftables that follow each other
// in one transaction, and returns how many were done.
func (k *kernel) apply(ops []op) (done int, err error) {
	for done < len(ops) {
		run := leading[nftOp](ops[done:])
		switch {
		case run > 0:
			err = transact(k.nft, ops[done:done+run])
		case leading[endOthers](ops[done:]) > 0:
			run = leading[endOthers](ops[done:])
			err = withConntrack(func(c *conntrack) error { return c.end(ops[done : done+run]) })
		default:
			run = 1
			err = k.do(ops[done])
		}
		if err != nil {
			return done, fmt.Errorf("%s: %w", summary(ops[done:done+run]), err)
		}
		done += run
	}
	return done, nil
}

// leading counts the operations of a kind at the start of ops.
func leading[T any](ops []op) int {
	i := slices.IndexFunc(ops, func(o op) bool { _, ok := o.(T); return !ok })
	if i < 0 {
		return len(ops)
	}
	return i
}

// summary names the operations of one step in an error. The kernel does not say
// which of a transaction it refused.
func summary(ops []op) string {
	const most = 3
	texts := make([]string, 0, most)
	for _, o := range ops[:min(most, len(ops))] {
		texts = append(texts, o.String())
	}
	text := strings.Join(texts, "; ")
	if len(ops) > most {
		text += fmt.Sprintf("; and %d more in one transaction", len(ops)-most)
	}
	return text
}

func (k *kernel) do(o op) error {
	switch o := o.(type) {
	case setSetting:
		return os.WriteFile(filepath.Join("/proc/sys", o.key), []byte(o.value), 0o644)
	case endAll:
		return withConntrack((*conntrack).flush)
	default:
		if k.ipvs == nil {
			return errors.New("the kernel has no ip_vs")
		}
		return k.ipvs.do(o)
	}
}

// familyExists returns nil where the kernel has ip_vs; asking makes a kernel
// that can load the module do so. It has to be asked before the IPVS library is
// used, which reports success for everything where the module is missing.
func familyExists() error {
	h, err := netns.Open("", unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer h.Close()
	_, err = h.GenlFamilyGet("IPVS")
	return err
}
