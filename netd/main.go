// Package main is netd, one binary: the daemon of every host, and the commands
// that look into it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"netd/netd/task"
)

// version is set by the linker.
var version = "dev"

// command is one verb of netd.
type command struct {
	name, usage string
	run         func(ctx context.Context, args []string, out io.Writer) error
}

func commands() []command {
	return []command{
		{"daemon", "run this host's part of the swarm", runDaemon},
		{"status", "say in one verdict how this node is, and why", runStatus},
		{"drift", "compare what is wanted with what the kernel holds", runDrift},
		{"trace", "TASK SERVICE[:PORT]: explain each hop of a connection", runTrace},
		{"demo", "run three nodes on this machine and check the main job ('demo rm' removes all of it)", runDemo},
		{"cleanup", "remove every trace of a stopped daemon from the kernel", runCleanup},
		{"echo", "answer with the task's name and the client's address (the image netd/echo)", task.Echo},
		{"version", "print the version", func(_ context.Context, _ []string, out io.Writer) error {
			_, err := fmt.Fprintln(out, "netd", version)
			return err
		}},
	}
}

func main() {
	// The first process of a task is this binary too; it must stay small.
	if len(os.Args) > 1 && os.Args[1] == task.InitCommand {
		os.Exit(task.Init(os.Args[2:]))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run looks the verb up and returns the exit status: 0 done, 1 failed, 64 wrong
// usage, or what the error says of itself.
func run(args []string, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 {
		for _, c := range commands() {
			if c.name == args[0] {
				return exitCode(c.name, c.run(ctx, args[1:], out), errOut)
			}
		}
	}
	usage(errOut)
	if len(args) > 0 && args[0] != "help" && args[0] != "--help" && args[0] != "-h" {
		fmt.Fprintf(errOut, "\nnetd: %q is not a command\n", args[0])
		return 64
	}
	return 0
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "usage: netd COMMAND [ARG...]")
	fmt.Fprintln(w, "\nThe swarm is driven by the docker command: docker -H unix:///run/netd/netd.sock swarm init")
	fmt.Fprintln(w)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-9s %s\n", c.name, c.usage)
	}
}

// exitError ends the program with a status of its own; its text was printed.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func exitCode(name string, err error, errOut io.Writer) int {
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &exit):
		return int(exit)
	}
	fmt.Fprintf(errOut, "netd %s: %v\n", name, err)
	return 1
}
