package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"

	"netd"
	"netd/ingress"
	"netd/internal/netns"
	"netd/netd/task"
	"netd/vxlan"
)

// runCleanup removes what a stopped daemon left: its tasks and its part of the
// kernel. Certificates and the raft log stay; they are in the data directory.
func runCleanup(ctx context.Context, args []string, out io.Writer) error {
	o := options{}
	f := o.flags("netd cleanup")
	if rest, err := parseAll(f, args); err != nil || len(rest) > 0 {
		return errors.Join(err, surplus(rest))
	}
	if err := o.complete(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return netd.Errorf(netd.ErrForbidden, "cleanup changes network namespaces and needs root; run it with sudo")
	}
	unlock, err := lockDir(o.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	if c, err := net.Dial("unix", o.Socket); err == nil {
		c.Close()
		return netd.Errorf(netd.ErrExists, "a daemon with another data directory answers at %q: stop it, or say with --data-dir and --run-dir whose tasks are meant", o.Socket)
	}
	forsaken, err := task.RemoveForsaken(ctx, task.Config{DataDir: o.DataDir, RunDir: o.RunDir})
	for _, id := range forsaken {
		fmt.Fprintf(out, "removed task %s, whose files were damaged or gone\n", id)
	}
	// What cannot be removed must not keep the rest.
	if err := errors.Join(err, clearHost(ctx, o, slog.New(slog.NewTextHandler(os.Stderr, nil)))); err != nil {
		return err
	}
	// Without the kept assignment the next start begins none of these tasks again:
	// it waits for the managers, who learn that they are gone and replace them.
	if err := os.RemoveAll(files{o.DataDir}.node()); err != nil {
		return fmt.Errorf("forget the assignment: %w", err)
	}
	pins, err := netns.List(o.netnsDir())
	if err == nil && len(pins) > 0 {
		err = fmt.Errorf("network namespaces are left in %q: %s; if nobody else uses them, unmount and remove them", o.netnsDir(), strings.Join(pins, ", "))
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "nothing of netd is left in the kernel; its state is still in %s\n", o.DataDir)
	return nil
}

// clearHost stops every task and takes all that is ours out of the kernel. The
// router namespaces hold VIPs, balancers and routes: those go with them.
func clearHost(ctx context.Context, o options, log *slog.Logger) error {
	runtime, err := openRuntime(o, log)
	if err != nil {
		return err
	}
	var stops errgroup.Group
	for _, s := range runtime.List() {
		stops.Go(func() error {
			return errors.Join(runtime.Stop(ctx, s.ID), runtime.Remove(ctx, s.ID))
		})
	}
	err = stops.Wait()
	ports, perr := ingress.New(log)
	if perr == nil {
		_, perr = ports.Set(ctx, ingress.Config{})
		perr = errors.Join(perr, ports.Close())
	}
	err = errors.Join(err, perr)
	overlay, oerr := vxlan.New(o.netnsDir(), log)
	if oerr != nil {
		return errors.Join(err, oerr)
	}
	_, oerr = overlay.Set(ctx, vxlan.Config{})
	return errors.Join(err, oerr)
}
