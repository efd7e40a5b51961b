// Package nettest helps tests that need root and a real kernel: namespaces that
// end with the test, wires between them, servers inside them.
//
// It never touches the machine's own namespace, and it is imported by tests only.
package nettest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netd/internal/netns"
)

// strict makes a missing kernel feature a failure instead of a skip.
const strict = "NETD_TEST_STRICT"

// Root skips the test where it does not run as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "the test needs root")
	}
}

// Require skips the test where the kernel lacks a feature: ip_vs, nf_tables, or
// a kind of link such as vxlan. With NETD_TEST_STRICT=1 it fails instead.
func Require(t testing.TB, features ...string) {
	t.Helper()
	for _, feature := range features {
		if err := netns.Do(NS(t), func() error { return probe(feature) }); err != nil {
			missing(t, "the kernel has no "+feature+": "+err.Error())
		}
	}
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv(strict) == "1" {
		t.Fatal(why + " (" + strict + "=1)")
	}
	t.Skip(why)
}

func probe(feature string) error {
	switch feature {
	case "ip_vs":
		h, err := netns.Open("", unix.NETLINK_GENERIC)
		if err != nil {
			return err
		}
		defer h.Close()
		_, err = h.GenlFamilyGet("IPVS")
		return err
	case "nf_tables":
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "probe"})
		return conn.Flush()
	default:
		h, err := netns.Open("")
		if err != nil {
			return err
		}
		defer h.Close()
		name := netlink.LinkAttrs{Name: "probe"}
		if feature == "vxlan" {
			return h.LinkAdd(&netlink.Vxlan{LinkAttrs: name, VxlanId: 4096, Port: 4789})
		}
		return h.LinkAdd(&netlink.GenericLink{LinkAttrs: name, LinkType: feature})
	}
}

// Dir returns a new directory under /run, where pins can be mounted; the test's
// end removes it with all pins below it.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "netd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			if err == nil && netns.Exists(path) {
				return netns.Delete(path)
			}
			return err
		})
		if err != nil {
			t.Errorf("clean up %s: %v", dir, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// NS returns the path of a new network namespace with its loopback up, which
// ends with the test.
func NS(t testing.TB) string {
	t.Helper()
	Root(t)
	path := filepath.Join(Dir(t), "ns")
	if err := netns.Create(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// Eventually polls cond until it returns nil, and fails the test with its last
// error when that takes longer than within.
func Eventually(t testing.TB, within time.Duration, what string, cond func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); ; <-tick.C {
		err := cond()
		if err == nil {
			return
		}
		if time.Since(start) > within {
			t.Fatalf("%s: not within %s: %v", what, within, err)
		}
	}
}
