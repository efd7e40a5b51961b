package main

import (
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netd"
)

// Options complete each other: folders become absolute, the socket is in the run
// directory, the name is the host's.
func TestOptionsComplete(t *testing.T) {
	o := options{}
	f := o.flags("netd daemon")
	if err := f.Parse([]string{"--data-dir", "data", "--run-dir", "run"}); err != nil {
		t.Fatal(err)
	}
	if err := o.complete(); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	want := options{
		DataDir: filepath.Join(here, "data"), RunDir: filepath.Join(here, "run"), Socket: filepath.Join(here, "run", "netd.sock"),
		NodeName: name, DataPathPort: 4789, GossipPort: 7946,
	}
	if o != want {
		t.Errorf("got %+v, want %+v", o, want)
	}
	if got := o.netnsDir(); got != filepath.Join(here, "run", "netns") {
		t.Errorf("namespaces in %q", got)
	}
}

// A value that cannot be is refused by the name of its flag.
func TestOptionsErrors(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"--data-path-port 1023", "--data-path-port 1023: the port must be 1024 to 49151"},
		{"--data-path-port 49152", "--data-path-port 49152: the port must be 1024 to 49151"},
		{"--gossip-port 0", "--gossip-port 0: the port must be 1 to 65535"},
		{"--gossip-port 65536", "--gossip-port 65536: the port must be 1 to 65535"},
		{"--balancer ipvsadm", `--balancer "ipvsadm": want ipvs or nftables`},
		{"--balancer ipvs", ""},
		{"--balancer nftables", ""},
		{"--data-path-port 49151 --gossip-port 65535", ""},
	} {
		o := options{}
		f := o.flags("netd daemon")
		f.SetOutput(io.Discard)
		if err := f.Parse(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		checkError(t, c.args, o.complete(), c.want)
	}
	if err := exitFlag(flag.ErrHelp); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: got %v", err)
	}
	if err := exitFlag(errors.New("no such flag")); !errors.Is(err, exitError(64)) {
		t.Errorf("wrong flag: got %v", err)
	}
}

// One daemon at a time has a data directory; the next one can have it after.
func TestLockDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory is %v, %v", info.Mode(), err)
	}
	_, err = lockDir(dir)
	if !errors.Is(err, netd.ErrExists) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("a second daemon: got %v", err)
	}
	unlock()
	again, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// A socket that nobody answers on is left from a crash and replaced; one that is
// answered is another daemon's, and what is no socket is never touched.
func TestListenSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "netd.sock")
	stale, err := listenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if _, err := listenSocket(path); !errors.Is(err, netd.ErrExists) || !strings.Contains(err.Error(), path) {
		t.Errorf("while it is answered: got %v", err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := listenSocket(path)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	file := filepath.Join(dir, "passwd")
	if err := os.WriteFile(file, []byte("root"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{file, dir} {
		if _, err := listenSocket(other); !errors.Is(err, netd.ErrInvalid) || !strings.Contains(err.Error(), "left as it is") {
			t.Errorf("%s: got %v", other, err)
		}
	}
	if data, err := os.ReadFile(file); string(data) != "root" || err != nil {
		t.Errorf("the file holds %q, %v", data, err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 100), "netd.sock")
	if _, err := listenSocket(long); !errors.Is(err, netd.ErrInvalid) || !strings.Contains(err.Error(), "--socket") {
		t.Errorf("a long path: got %v", err)
	}
}
