package task

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"netd"
)

// Command and Args replace the image's entrypoint and arguments as Docker does it.
func TestArgv(t *testing.T) {
	for name, c := range map[string]struct {
		command, args, want []string
	}{
		"image's own":      {nil, nil, []string{"/bin/netd", "echo"}},
		"args":             {nil, []string{"echo", "--port", "9000"}, []string{"/bin/netd", "echo", "--port", "9000"}},
		"command":          {[]string{"/bin/x"}, nil, []string{"/bin/x"}},
		"command and args": {[]string{"/bin/x", "a"}, []string{"b"}, []string{"/bin/x", "a", "b"}},
	} {
		if got := (Spec{Command: c.command, Args: c.args}).argv(); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// The environment is Docker's default one; Env adds to it, replaces and removes.
func TestEnviron(t *testing.T) {
	s := Spec{ID: "abcdefghijklmnop", Name: "web.1.x", Env: []string{"A=1=2", "HOME=/x", "PATH", "A=3", "NETD_NODE=n1"}}
	want := []string{"HOSTNAME=abcdefghijkl", "NETD_TASK=web.1.x", "HOME=/x", "A=3", "NETD_NODE=n1"}
	if diff := cmp.Diff(want, s.environ()); diff != "" {
		t.Error(diff)
	}
}

// The files of /etc hold what the spec says and nothing of the host.
func TestEtcFiles(t *testing.T) {
	s := Spec{
		ID: "abc", Hostname: "web", DNS: []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fd00::1")},
		DNSSearch: []string{"a.example", "b.example"}, DNSOptions: []string{"ndots:0", "timeout:1"},
		Hosts: []string{"10.0.0.5  db   db.local"},
	}
	files := s.etcFiles()
	want := "# written by netd\nnameserver 169.254.1.1\nnameserver fd00::1\nsearch a.example b.example\noptions ndots:0 timeout:1\n"
	if files["resolv.conf"] != want {
		t.Errorf("resolv.conf: %s", cmp.Diff(want, files["resolv.conf"]))
	}
	if files["hostname"] != "web\n" {
		t.Errorf("hostname: %q", files["hostname"])
	}
	for _, line := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.5\tdb db.local\n"} {
		if !strings.Contains(files["hosts"], line) {
			t.Errorf("hosts %q has no line %q", files["hosts"], line)
		}
	}
	if got := (Spec{ID: "abc"}).resolvConf(); got != "# written by netd\n" {
		t.Errorf("empty resolv.conf: %q", got)
	}
}

// Stop signals are read as Docker reads them.
func TestParseSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"": unix.SIGTERM, "TERM": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "sigquit": unix.SIGQUIT, "9": unix.SIGKILL,
		"WINCH": unix.SIGWINCH, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "64": 64, "IOT": unix.SIGABRT, "POLL": unix.SIGIO,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "65", "-1", "TERMINATE", "RTMIN+31", "RTMAX+1", "RTMINX", "SIG"} {
		_, err := parseSignal(text)
		if err == nil || err.Error() != "invalid signal: "+text || !errors.Is(err, netd.ErrInvalid) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// What cannot run here is refused with a reason, and every form of the image's
// name is accepted.
func TestCheck(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("ab", 32)
	for _, image := range []string{"netd/echo", "netd/echo:latest", "docker.io/netd/echo:1.0", "index.docker.io/netd/echo", "netd/echo:latest" + digest, "netd/echo" + digest} {
		if err := (Spec{ID: "a", Image: image}).check(); err != nil {
			t.Errorf("image %q: %v", image, err)
		}
	}
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
		kind   error
	}{
		"other image": {func(s *Spec) { s.Image = "nginx:1.27" },
			`image "nginx:1.27" cannot be run by this version, which only has the built-in image netd/echo`, netd.ErrUnsupported},
		"other registry":   {func(s *Spec) { s.Image = "ghcr.io/netd/echo" }, "cannot be run by this version", netd.ErrUnsupported},
		"no image":         {func(s *Spec) { s.Image = "" }, "invalid reference format", netd.ErrInvalid},
		"path in id":       {func(s *Spec) { s.ID = "../x" }, "task id", netd.ErrInvalid},
		"relative dir":     {func(s *Spec) { s.Dir = "x" }, "absolute path", netd.ErrInvalid},
		"hostname":         {func(s *Spec) { s.Hostname = "a b" }, "hostname", netd.ErrInvalid},
		"signal":           {func(s *Spec) { s.StopSignal = "FOO" }, "invalid signal: FOO", netd.ErrInvalid},
		"memory":           {func(s *Spec) { s.MemoryLimit = -1 }, "negative", netd.ErrInvalid},
		"zero byte":        {func(s *Spec) { s.Env = []string{"A=\x00"} }, "zero byte", netd.ErrInvalid},
		"host":             {func(s *Spec) { s.Hosts = []string{"db 10.0.0.5"} }, "not an address", netd.ErrInvalid},
		"host line":        {func(s *Spec) { s.Hosts = []string{"10.0.0.5 a\n10.0.0.6 b"} }, "host entry", netd.ErrInvalid},
		"search":           {func(s *Spec) { s.DNSSearch = []string{"a\nnameserver 1.1.1.1"} }, "one word", netd.ErrInvalid},
		"shell":            {func(s *Spec) { s.Health = &HealthCheck{Test: []string{"CMD-SHELL", "true"}} }, "has none", netd.ErrUnsupported},
		"empty CMD":        {func(s *Spec) { s.Health = &HealthCheck{Test: []string{"CMD"}} }, "want []", netd.ErrInvalid},
		"health interval":  {func(s *Spec) { s.Health = &HealthCheck{Interval: time.Microsecond} }, "at least 1ms", netd.ErrInvalid},
		"negative retries": {func(s *Spec) { s.Health = &HealthCheck{Retries: -1} }, "negative", netd.ErrInvalid},
	} {
		s := Spec{ID: "a", Image: "netd/echo"}
		c.change(&s)
		err := s.check()
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// Limits are worded as the kernel wants them.
func TestLimits(t *testing.T) {
	got := Spec{MemoryLimit: 64 << 20, NanoCPUs: 15e8, PidsLimit: 10}.limits()
	want := []limit{
		{"memory limit", "memory", "memory.max", "67108864"},
		{"CPU limit", "cpu", "cpu.max", "150000 100000"},
		{"process limit", "pids", "pids.max", "22"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := (Spec{NanoCPUs: 1}).limits()[0].value; got != "1000 100000" {
		t.Errorf("least CPU limit: got %q", got)
	}
}

// A grace period of zero is the default, less is none.
func TestStopGrace(t *testing.T) {
	for grace, want := range map[time.Duration]time.Duration{0: 10 * time.Second, -1: 0, time.Minute: time.Minute} {
		if got := (Spec{StopGrace: grace}).stopGrace(); got != want {
			t.Errorf("%s: got %s, want %s", grace, got, want)
		}
	}
}

// An init process that left no word was killed by us, or failed.
func TestUnwitnessed(t *testing.T) {
	now := time.Unix(1, 0)
	if got := unwitnessed("why", now); got.Code != 137 || got.Failed || got.Err != "why" {
		t.Errorf("killed: got %+v", got)
	}
	if got := unwitnessed("", now); got.Code != 137 || !got.Failed || got.Err == "" {
		t.Errorf("lost: got %+v", got)
	}
}
