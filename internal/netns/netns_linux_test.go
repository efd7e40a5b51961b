//go:build linux

package netns_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"netd/internal/netns"
	"netd/internal/nettest"
)

// inode tells namespaces apart, whatever path or thread they are reached by.
func inode(t *testing.T, path string) string {
	t.Helper()
	link, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// Do runs fn in the namespace, nests, and leaves the caller where it was.
func TestRootDo(t *testing.T) {
	nettest.Root(t)
	a, b := nettest.NS(t), nettest.NS(t)
	const self = "/proc/thread-self/ns/net"
	home := inode(t, self)
	var inA, inB, inner, again string
	err := netns.Do(a, func() error {
		inA = inode(t, self)
		if err := netns.Do("", func() error { inner = inode(t, self); return nil }); err != nil {
			return err
		}
		err := netns.Do(b, func() error { inB = inode(t, self); return nil })
		again = inode(t, self)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if inA == home || inB == home || inA == inB || inner != inA || again != inA {
		t.Errorf("home %s, a %s, inside a %s, b %s, a after b %s", home, inA, inner, inB, again)
	}
	if got := inode(t, self); got != home {
		t.Errorf("after Do the test is in %s, was in %s", got, home)
	}
}

// A socket opened in Do stays in its namespace: the same port is free in the other.
func TestRootSocketStays(t *testing.T) {
	nettest.Root(t)
	for _, ns := range []string{nettest.NS(t), nettest.NS(t)} {
		err := netns.Do(ns, func() error {
			l, err := net.Listen("tcp", "127.0.0.1:5353")
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			t.Errorf("listen in %s: %v", ns, err)
		}
	}
}

// Do returns fn's error as it is, and names the path when the namespace is missing.
func TestRootDoErrors(t *testing.T) {
	nettest.Root(t)
	boom := errors.New("boom")
	if err := netns.Do(nettest.NS(t), func() error { return boom }); !errors.Is(err, boom) {
		t.Errorf("got %v, want boom", err)
	}
	if err := netns.Do("/nonexistent/ns", func() error { return nil }); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
}

// Create and Delete are idempotent, and a file without a namespace is no pin.
func TestRootPins(t *testing.T) {
	nettest.Root(t)
	dir := filepath.Join(nettest.Dir(t), "deep", "netns")
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for range 2 {
		if err := netns.Create(one); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(two, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if netns.Exists(two) || !netns.Exists(one) {
		t.Errorf("exists: one %v, two %v; want true, false", netns.Exists(one), netns.Exists(two))
	}
	if names, err := netns.List(dir); err != nil || !slices.Equal(names, []string{"one"}) {
		t.Errorf("list: %v, %v", names, err)
	}
	if err := netns.Create(two); err != nil || !netns.Exists(two) {
		t.Errorf("create over a leftover file: %v", err)
	}
	for _, path := range []string{one, two, one, filepath.Join(dir, "never")} {
		if err := netns.Delete(path); err != nil {
			t.Errorf("delete %s: %v", path, err)
		}
	}
	if names, err := netns.List(dir); err != nil || len(names) != 0 {
		t.Errorf("list after delete: %v, %v", names, err)
	}
	if names, err := netns.List(filepath.Join(dir, "missing")); err != nil || names != nil {
		t.Errorf("list of a missing dir: %v, %v", names, err)
	}
}

// Sysctls are those of the namespace, in both spellings of the key.
func TestRootSysctl(t *testing.T) {
	nettest.Root(t)
	a, b := nettest.NS(t), nettest.NS(t)
	for ns, value := range map[string]string{a: "1", b: "0"} {
		if err := netns.SetSysctl(ns, "net.ipv4.ip_forward", value); err != nil {
			t.Fatal(err)
		}
	}
	for ns, want := range map[string]string{a: "1", b: "0"} {
		if got, err := netns.GetSysctl(ns, "net/ipv4/ip_forward"); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := netns.GetSysctl(a, "net.ipv4.nonsense"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want not exist", err)
	}
}

// A handle sees its own namespace's links only.
func TestRootHandle(t *testing.T) {
	nettest.Root(t)
	a, b := nettest.NS(t), nettest.NS(t)
	nettest.Link(t, a, b, "10.1.0.1/24", "10.1.0.2/24")
	for _, ns := range []string{a, b} {
		h, err := netns.Open(ns)
		if err != nil {
			t.Fatal(err)
		}
		links, err := h.LinkList()
		h.Close()
		if err != nil || len(links) != 2 {
			t.Errorf("%s: %d links, %v; want lo and eth0", ns, len(links), err)
		}
	}
}
