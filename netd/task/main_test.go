package task

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// The test binary is also what the netd binary is to a task: its init process and
// the program in its image.
func TestMain(m *testing.M) {
	if len(os.Args) < 2 {
		os.Exit(runTests(m))
	}
	switch os.Args[1] {
	case InitCommand:
		os.Exit(Init(os.Args[2:]))
	case echoCommand:
		if err := Echo(context.Background(), os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "helper":
		os.Exit(helper(os.Args[2], os.Args[3:]))
	default:
		os.Exit(runTests(m))
	}
}

// runTests fails if a test leaves a goroutine or the handle of a process behind.
func runTests(m *testing.M) int {
	defer removeBuilt()
	if code := m.Run(); code != 0 {
		return code
	}
	return run(func() error {
		files, err := os.ReadDir("/proc/self/fd")
		for _, file := range files {
			if target, _ := os.Readlink("/proc/self/fd/" + file.Name()); strings.Contains(target, "pidfd") {
				err = errors.Join(err, fmt.Errorf("descriptor %s is left: %s", file.Name(), target))
			}
		}
		return errors.Join(err, goleak.Find())
	})
}

// staticBinary returns a binary that runs in a task's root, where no libraries
// are: this one, or, where the tests were built with cgo (as -race does), one that
// is built for the purpose.
func staticBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file, err := elf.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if file.Section(".interp") == nil {
		return self
	}
	built := filepath.Join(os.TempDir(), fmt.Sprintf("netd-task-%d.test", os.Getpid()))
	if _, err := os.Stat(built); err == nil {
		return built
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", built, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build static test binary: %v\n%s", err, out)
	}
	return built
}

// removeBuilt removes what staticBinary built.
func removeBuilt() {
	os.Remove(filepath.Join(os.TempDir(), fmt.Sprintf("netd-task-%d.test", os.Getpid())))
}

// helper is a program for tests, run in a task or as a daemon.
func helper(name string, args []string) int {
	switch name {
	case "exit":
		code, _ := strconv.Atoi(args[0])
		fmt.Println("bye", code)
		return code
	case "inside": // 0 if this is the task of that hostname, with its rights, and pid 1 is its init process
		status, _ := os.ReadFile("/proc/self/status")
		first, _ := os.ReadFile("/proc/1/cmdline")
		if name, _ := os.Hostname(); name == args[0] && strings.Contains(string(status), "CapEff:\t00000000a00425fb\n") && strings.Contains(string(first), InitCommand) {
			return 0
		}
		fmt.Printf("%s %s", status, first)
		return 1
	case "die":
		n, _ := strconv.Atoi(args[0])
		signal.Reset()
		if err := unix.Kill(os.Getpid(), syscall.Signal(n)); err != nil {
			return 65
		}
		select {}
	case "look":
		return look(args)
	case "signals": // exits with the number of the first signal; SIGTERM is ignored
		signals := make(chan os.Signal, 1)
		signal.Ignore(unix.SIGTERM)
		signal.Notify(signals, unix.SIGUSR1, syscall.Signal(sigRTMin+3))
		fmt.Println("ready")
		return int((<-signals).(syscall.Signal))
	case "orphans":
		return orphans()
	case "orphan": // leaves a child behind
		return run(exec.Command(binaryPath, "helper", "exit", "0").Start)
	case "hog": // takes 200 MB
		block := make([]byte, 200<<20)
		for i := range block {
			block[i] = 1
		}
		return 0
	case "once":
		return once(args[0], args[1], args[2])
	case "daemon":
		return daemon(args)
	}
	return 64
}

func run(fn func() error) int {
	if err := fn(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// sight is what a program in a task sees.
type sight struct {
	Args, Env                  []string
	Dir, Hostname, Name        string
	Pid, Uid                   int
	ResolvConf, Hosts          string
	Root, Files, Mounts, Links []string
	Status                     string
	SysRq, SysWrite            string
}

func look(args []string) int {
	var s sight
	s.Args, s.Env, s.Pid, s.Uid = args, os.Environ(), os.Getpid(), os.Getuid()
	s.Dir, _ = os.Getwd()
	s.Hostname, _ = os.Hostname()
	read := func(path string) string { data, _ := os.ReadFile(path); return string(data) }
	s.ResolvConf, s.Hosts, s.Name, s.Status = read("/etc/resolv.conf"), read("/etc/hosts"), read("/etc/hostname"), read("/proc/self/status")
	s.Mounts = strings.Split(strings.TrimSpace(read("/proc/self/mountinfo")), "\n")
	for _, line := range strings.Split(read("/proc/net/dev"), "\n")[2:] {
		if name, _, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			s.Links = append(s.Links, name)
		}
	}
	root, _ := os.ReadDir("/")
	for _, entry := range root {
		s.Root = append(s.Root, entry.Name())
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, _ := os.Readlink("/proc/self/fd/" + fd.Name())
		s.Files = append(s.Files, fd.Name()+" "+target)
	}
	s.SysRq = fmt.Sprint(os.WriteFile("/proc/sysrq-trigger", nil, 0))
	s.SysWrite = fmt.Sprint(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
	return run(func() error { return json.NewEncoder(os.Stdout).Encode(s) })
}

// orphans makes processes that lose their parent and end, and returns 0 when none
// of them stays in the process table.
func orphans() int {
	for range 5 {
		if err := exec.Command(binaryPath, "helper", "orphan").Run(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	tick := time.NewTicker(10 * time.Millisecond)
	for range 500 {
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		if len(stats) == 2 { // init and this process
			return 0
		}
		<-tick.C
	}
	return 2
}

// daemon prepares and starts a task and waits to be killed.
func daemon(args []string) int {
	var s Spec
	if err := json.Unmarshal([]byte(args[2]), &s); err != nil {
		return 65
	}
	ctx := context.Background()
	return run(func() error {
		r, err := Open(Config{DataDir: args[0], RunDir: args[1], Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
		if err != nil {
			return err
		}
		if _, err := r.Prepare(ctx, s); err != nil {
			return err
		}
		if err := r.Start(ctx, s.ID); err != nil {
			return err
		}
		fmt.Println(r.List()[0].Pid)
		_, err = io.Copy(io.Discard, os.Stdin) // as long as the test holds it open
		return err
	})
}

// once removes a file, if one is named, and runs one task from its start to its end.
func once(data, runDir, file string) int {
	if file != "" {
		os.Remove(file)
	}
	ctx := context.Background()
	return run(func() error {
		r, err := Open(Config{DataDir: data, RunDir: runDir})
		if err != nil {
			return err
		}
		defer r.Close()
		s := Spec{ID: fmt.Sprint("once", os.Getpid()), Image: "netd/echo", StopGrace: -1}
		if _, err := r.Prepare(ctx, s); err != nil {
			return err
		}
		return errors.Join(r.Start(ctx, s.ID), r.Stop(ctx, s.ID), r.Remove(ctx, s.ID))
	})
}
