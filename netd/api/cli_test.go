package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"netd/internal/nettest"
)

// serve puts the fake on a unix socket and returns its address for docker -H.
func serve(t *testing.T, f *fake) string {
	t.Helper()
	return listen(t, handler(f, io.Discard))
}

func listen(t *testing.T, h http.Handler) string {
	t.Helper()
	// A socket's path has at most 107 bytes, too few for t.TempDir.
	dir, err := os.MkdirTemp("", "netd-api-")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return t.Context() },
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(listener) }()
	t.Cleanup(func() {
		_ = srv.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return "unix://" + listener.Addr().String()
}

// cli is a stock docker command that talks to one socket.
type cli struct {
	path, host string
}

// stockCLIs finds the docker commands of this machine: an old one by
// NETD_DOCKER_OLD or as docker-20.10, and the usual one.
func stockCLIs(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, name := range []string{os.Getenv("NETD_DOCKER_OLD"), "docker-20.10", "docker"} {
		path, err := exec.LookPath(name)
		if name == "" || err != nil {
			continue
		}
		out, err := exec.CommandContext(t.Context(), path, "--version").Output()
		if m := regexp.MustCompile(`version ([0-9.]+)`).FindSubmatch(out); err == nil && m != nil {
			found[string(m[1])] = path
		}
	}
	if len(found) == 0 {
		nettest.Require(t, "docker-cli")
		t.Fatal("no docker command was found")
	}
	return found
}

// withCLIs runs a test once for each stock docker command.
func withCLIs(t *testing.T, test func(t *testing.T, path string)) {
	for version, path := range stockCLIs(t) {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			test(t, path)
		})
	}
}

// result is what a command did.
type result struct {
	out, err string
	code     int
}

func (c cli) run(t *testing.T, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, append([]string{"-H", c.host}, args...)...)
	config := t.TempDir()
	cmd.Env = []string{"HOME=" + config, "DOCKER_CONFIG=" + config, "PATH=/usr/bin:/bin", "DOCKER_CLI_HINTS=false"}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("docker %q: %v", args, err)
	}
	t.Logf("$ docker %s → %d\n%s%s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), &out, &errOut)
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must succeed without a word on stderr, and returns its
// output.
func (c cli) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, args...)
	if r.code != 0 || r.err != "" {
		t.Fatalf("docker %q: exit %d, stderr %q", args, r.code, r.err)
	}
	return strings.TrimSpace(r.out)
}

// fails runs a command that must fail with a message.
func (c cli) fails(t *testing.T, want string, args ...string) {
	t.Helper()
	if r := c.run(t, args...); r.code == 0 || !strings.Contains(r.err, want) {
		t.Errorf("docker %q: exit %d, stderr %q; want a failure that says %q", args, r.code, r.err, want)
	}
}

// contains fails the test where a text lacks one of the parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in:\n%s", part, text)
		}
	}
}

// fields returns each line of a table, without its heading, as columns.
func fields(text string) [][]string {
	var rows [][]string
	for line := range strings.Lines(text) {
		rows = append(rows, regexp.MustCompile(`\s{2,}`).Split(strings.TrimSpace(line), -1))
	}
	return slices.Delete(rows, 0, 1)
}
