package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// The test binary is netd too: daemons and tasks of the root tests run it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		main()
	}
	goleak.VerifyTestMain(m)
}

// Wrong usage ends with 64, help and version with 0, a failure with 1 and one
// line that begins with the command.
func TestRun(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		out    string // what standard output has
		errOut string // what standard error has
	}{
		{"", 0, "", "usage: netd COMMAND"},
		{"help", 0, "", "usage: netd COMMAND"},
		{"--help", 0, "", "usage: netd COMMAND"},
		{"frobnicate", 64, "", `netd: "frobnicate" is not a command`},
		{"version", 0, "netd dev\n", ""},
		{"daemon --help", 0, "", ""},
		{"daemon --frobnicate", 64, "", ""},
		{"daemon now", 1, "", `netd daemon: unexpected argument "now"`},
		{"daemon --data-path-port 80", 1, "", "netd daemon: --data-path-port 80: the port must be 1024 to 49151"},
		{"daemon --gossip-port 0", 1, "", "netd daemon: --gossip-port 0: the port must be 1 to 65535"},
		{"daemon --balancer magic", 1, "", `netd daemon: --balancer "magic": want ipvs or nftables`},
		{"cleanup --data-path-port 1", 1, "", "netd cleanup: --data-path-port 1"},
		{"status --socket /nonexistent/netd.sock", 3, "", ""},
		{"status now", 1, "", `netd status: unexpected argument "now"`},
		{"drift --socket /nonexistent/netd.sock", 3, "", ""},
		{"drift now", 1, "", `netd drift: unexpected argument "now"`},
		{"trace web.1", 1, "", "netd trace: want a task and a service"},
		{"trace --frobnicate", 64, "", ""},
		{"demo --dir here", 1, "", `netd demo: --dir "here": want an absolute path`},
		{"demo --balancer magic", 1, "", `netd demo: --balancer "magic": want ipvs or nftables`},
		{"demo rm --dir here", 1, "", `netd demo: --dir "here": want an absolute path`},
		{"cleanup now", 1, "", `netd cleanup: unexpected argument "now"`},
		{"demo --frobnicate", 64, "", ""},
	} {
		var out, errOut bytes.Buffer
		status := run(strings.Fields(c.args), &out, &errOut)
		if status != c.status || out.String() != c.out || !strings.Contains(errOut.String(), c.errOut) {
			t.Errorf("netd %s: status %d, output %q, errors %q; want %d, %q, %q", c.args, status, &out, &errOut, c.status, c.out, c.errOut)
		}
		if c.status == 1 && strings.Count(errOut.String(), "\n") != 1 {
			t.Errorf("netd %s: want one line, got %q", c.args, &errOut)
		}
	}
}

// An error's own status wins over 1, however deep it is, and says nothing twice.
func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{nil, 0, ""},
		{flag.ErrHelp, 0, ""},
		{fmt.Errorf("parse: %w", flag.ErrHelp), 0, ""},
		{exitError(3), 3, ""},
		{errors.Join(errors.New("x"), exitError(2)), 2, ""},
		{errors.New("it broke"), 1, "netd demo: it broke\n"},
	} {
		var out bytes.Buffer
		if got := exitCode("demo", c.err, &out); got != c.status || out.String() != c.text {
			t.Errorf("%v: got %d %q, want %d %q", c.err, got, &out, c.status, c.text)
		}
	}
	if got := exitError(3).Error(); got != "exit status 3" {
		t.Errorf("got %q", got)
	}
}
