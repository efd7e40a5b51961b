package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"netd"
	"netd/balancer"
	"netd/netd/debug"
	"netd/netd/demo"
)

// unreachable is the exit status where no daemon answers.
const unreachable = 3

// look asks a running daemon and shows the answer, as text or as JSON.
type look struct {
	socket string
	json   bool
}

// parse reads the flags, which may stand before and after the arguments.
func (l *look) parse(name string, args []string) ([]string, error) {
	f := flag.NewFlagSet("netd "+name, flag.ContinueOnError)
	f.StringVar(&l.socket, "socket", "/run/netd/netd.sock", "ask the daemon at `PATH`")
	f.BoolVar(&l.json, "json", false, "print the answer as JSON")
	return parseAll(f, args)
}

// parseAll parses flags that may stand before, between and after the arguments.
func parseAll(f *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		if err := f.Parse(args); err != nil {
			return nil, exitFlag(err)
		}
		if f.NArg() == 0 {
			return rest, nil
		}
		rest, args = append(rest, f.Arg(0)), f.Args()[1:]
	}
}

// get fetches path into v. With --json it prints the answer, and shown is true.
func (l *look) get(ctx context.Context, path string, v any, out io.Writer) (shown bool, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.socket)
	}}, Timeout: 30 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://netd"+path, nil)
	if err != nil {
		return false, err
	}
	response, err := client.Do(request)
	if err != nil {
		fmt.Fprintf(os.Stderr, "netd: no daemon answers at %s: %v; is it running ('netd daemon'), and are you root?\n", l.socket, errors.Unwrap(err))
		return false, exitError(unreachable)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
	if err != nil {
		return false, err
	}
	if response.StatusCode != http.StatusOK {
		var problem struct{ Message string }
		if json.Unmarshal(body, &problem) != nil || problem.Message == "" {
			problem.Message = strings.TrimSpace(string(body))
		}
		return false, errors.New(problem.Message)
	}
	if l.json {
		_, err := out.Write(body)
		return true, errors.Join(err, json.Unmarshal(body, v))
	}
	return false, json.Unmarshal(body, v)
}

func runStatus(ctx context.Context, args []string, out io.Writer) error {
	var l look
	var s debug.Status
	if rest, err := l.parse("status", args); err != nil || len(rest) > 0 {
		return errors.Join(err, surplus(rest))
	}
	shown, err := l.get(ctx, "/netd/v1/status", &s, out)
	if err != nil {
		return err
	}
	if !shown {
		s.Print(out)
	}
	return code(s.Code())
}

func runDrift(ctx context.Context, args []string, out io.Writer) error {
	var l look
	var d debug.Drift
	if rest, err := l.parse("drift", args); err != nil || len(rest) > 0 {
		return errors.Join(err, surplus(rest))
	}
	shown, err := l.get(ctx, "/netd/v1/drift", &d, out)
	if err != nil {
		return err
	}
	if !shown {
		for _, o := range d.Objects {
			fmt.Fprintln(out, o)
		}
		fmt.Fprintf(out, "%d objects differ from what is wanted\n", len(d.Objects))
	}
	if len(d.Objects) > 0 {
		return exitError(1)
	}
	return nil
}

func runTrace(ctx context.Context, args []string, out io.Writer) error {
	var l look
	var t debug.Trace
	rest, err := l.parse("trace", args)
	if err != nil {
		return err
	}
	if len(rest) != 2 {
		return netd.Errorf(netd.ErrInvalid, "want a task and a service: netd trace web.1 api:8080")
	}
	service, port, _ := strings.Cut(rest[1], ":")
	q := url.Values{"task": {rest[0]}, "service": {service}, "port": {port}}
	shown, err := l.get(ctx, "/netd/v1/trace?"+q.Encode(), &t, out)
	if err != nil {
		return err
	}
	if !shown {
		t.Print(out)
	}
	if !t.OK {
		return exitError(2)
	}
	return nil
}

// code turns an exit status into an error, none for 0.
func code(status int) error {
	if status == 0 {
		return nil
	}
	return exitError(status)
}

func surplus(args []string) error {
	if len(args) == 0 {
		return nil
	}
	return netd.Errorf(netd.ErrInvalid, "unexpected argument %q", args[0])
}

func runDemo(ctx context.Context, args []string, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find netd's own file: %w", err)
	}
	c := demo.Config{Binary: self, Out: out}
	f := flag.NewFlagSet("netd demo", flag.ContinueOnError)
	f.BoolVar(&c.Keep, "keep", false, "leave the swarm up and say how to use it")
	f.StringVar(&c.Dir, "dir", "/run/netd-demo", "keep the demo's nodes in `DIR`")
	f.StringVar(&c.Balancer, "balancer", "", "`KIND` that renders VIPs: ipvs or nftables (default what the kernel can)")
	rest, err := parseAll(f, args)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(c.Dir) {
		return netd.Errorf(netd.ErrInvalid, "--dir %q: want an absolute path", c.Dir)
	}
	if k := balancer.Kind(c.Balancer); k != "" && k != balancer.IPVS && k != balancer.NFTables {
		return netd.Errorf(netd.ErrInvalid, "--balancer %q: want ipvs or nftables", c.Balancer)
	}
	if os.Geteuid() != 0 {
		return netd.Errorf(netd.ErrForbidden, "the demo makes network namespaces and needs root; run it with sudo")
	}
	switch {
	case len(rest) == 0:
		return demo.Run(ctx, c)
	case len(rest) == 1 && rest[0] == "rm":
		if err := demo.Remove(ctx, c); err != nil {
			return err
		}
		fmt.Fprintln(out, "demo removed: no process, namespace, mount or file of it is left")
		return nil
	}
	return surplus(rest)
}
