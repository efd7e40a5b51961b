// Package netns makes, pins and enters network namespaces. It is the only place
// where a thread changes its namespace.
//
// A namespace is named by a path: a pin made by Create, /proc/PID/ns/net, or
// "" for the one that the calling thread is in. The package does not know what
// the namespaces are for, and sets nothing in them but the loopback device.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// threadNS is the namespace of the calling thread. /proc/self would be that of
// the process's first thread.
const threadNS = "/proc/thread-self/ns/net"

// Do runs fn on a locked thread inside the namespace at path and waits for it.
// Sockets and handles that fn opens stay in that namespace for ever; goroutines
// that fn starts are NOT in it. Do may be nested: "" inside fn is fn's namespace.
func Do(path string, fn func() error) error {
	if path == "" {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return fn()
	}
	target, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer target.Close()
	return onThread(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %q: %w", path, err)
		}
		return fn()
	})
}

// onThread runs fn on a thread of its own and puts the thread's namespace back.
// A goroutine of its own, so that a thread that cannot be put back dies with it
// (a goroutine that ends locked takes its thread along) and is never used again.
func onThread(fn func() error) error {
	var err error
	finished, done := false, make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, openErr := os.Open(threadNS)
		if openErr != nil {
			err, finished = fmt.Errorf("open own network namespace: %w", openErr), true
			runtime.UnlockOSThread()
			return
		}
		defer func() {
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			home.Close()
		}()
		err = fn()
		finished = true
	}()
	<-done
	if !finished { // fn ended its goroutine, as testing.T.FailNow does
		runtime.Goexit()
	}
	return err
}

// Create makes a network namespace with its loopback device up and pins it at
// path by a bind mount, so that it outlives the process. Where path is already a
// live pin it is left as it is. Missing directories are made.
func Create(path string) error {
	if Exists(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	file.Close()
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("set loopback up: %w", err)
		}
		return unix.Mount(threadNS, path, "", unix.MS_BIND, "")
	})
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("create network namespace %q: %w", path, err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

// Delete removes the pin at path. The namespace itself ends with its last
// process, socket and handle. A path that does not exist is no error.
//
// Removing the file also detaches the copies of the pin in other mount
// namespaces (kernel fs/namei.c, vfs_unlink: detach_mounts), so that a task's
// private mounts do not keep a namespace alive.
func Delete(path string) error {
	for Exists(path) { // pins may be stacked by two mounts on one path
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount network namespace %q: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete network namespace: %w", err)
	}
	return nil
}

// Exists reports whether path is a live pin: a namespace, not the empty file
// that a crash between two steps of Create leaves.
func Exists(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// List returns the names of the live pins in dir, sorted. A missing dir has none.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, entry := range entries {
		if Exists(filepath.Join(dir, entry.Name())) {
			names = append(names, entry.Name())
		}
	}
	return names, nil
}

// GetSysctl reads a kernel setting of the namespace at path. The key is as in
// sysctl(8): net.ipv4.ip_forward, or net/ipv4/conf/eth0.5/rp_filter where a part
// has a dot in it.
func GetSysctl(path, key string) (string, error) {
	var value string
	err := Do(path, func() error {
		data, err := os.ReadFile(sysctlFile(key))
		value = strings.TrimSpace(string(data))
		return err
	})
	if err != nil {
		return "", fmt.Errorf("get sysctl %q: %w", key, err)
	}
	return value, nil
}

// SetSysctl sets a kernel setting of the namespace at path (key as in GetSysctl).
// A setting that already has the value is not written, so that a read-only
// /proc/sys is an error only where something would have to change.
func SetSysctl(path, key, value string) error {
	err := Do(path, func() error {
		file := sysctlFile(key)
		if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == value {
			return nil
		}
		return os.WriteFile(file, []byte(value), 0o644)
	})
	if err != nil {
		return fmt.Errorf("set sysctl %q to %q: %w", key, value, err)
	}
	return nil
}

func sysctlFile(key string) string {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	return filepath.Join("/proc/sys", key)
}
