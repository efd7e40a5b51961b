package task

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// rootMount is one mount(2) in the task's root. Paths are relative to it.
type rootMount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

const (
	inert = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// readOnly binds need a second call: mount(2) ignores all flags but MS_REC
	// beside MS_BIND.
	readOnly = unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY
)

// enterRoot builds the image's root in the task's directory, the working
// directory, and makes it the root of this mount namespace; nothing of the host's
// files stays reachable. Only the mounts of this namespace are changed.
func enterRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	err := unix.Mount("tmpfs", rootDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m")
	if err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "tmp"} {
		if err := os.Mkdir(filepath.Join(rootDir, dir), 0o755); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(rootDir, "tmp"), 0o1777), os.Chmod(filepath.Join(rootDir, "root"), 0o700)); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	if err := mountBinary(filepath.Join(rootDir, binaryPath)); err != nil {
		return err
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := bindFile(filepath.Join(etcDir, name), filepath.Join(rootDir, "etc", name)); err != nil {
			return err
		}
	}
	// pivot_root(2), "pivot_root(".", ".")": the old root ends up below the new one.
	if err := os.Chdir(rootDir); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	return fillRoot()
}

// cloneBinary returns a mount of the netd binary alone, for mountBinary in another
// mount namespace: there, the file that this process runs could not be mounted,
// because it lies in a foreign namespace. A binary that was deleted, as an upgrade
// does it under a running daemon, cannot be mounted at all (kernel fs/namespace.c,
// d_set_mounted): then a copy is made in dir, which Open clears.
func cloneBinary(binary, dir string) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Stat(binary, &st); err != nil {
		return nil, fmt.Errorf("find binary %q: %w", binary, err)
	}
	if st.Nlink == 0 {
		kept, err := copyBinary(binary, filepath.Join(dir, fmt.Sprintf(".netd-%d", os.Getpid())))
		if err != nil {
			return nil, fmt.Errorf("copy deleted binary %q: %w", binary, err)
		}
		binary = kept
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	fd, err := unix.OpenTree(unix.AT_FDCWD, binary, flags)
	if err == unix.EINVAL { // the same for this process; then there may be a path to it
		if target, linkErr := os.Readlink(binary); linkErr == nil {
			fd, err = unix.OpenTree(unix.AT_FDCWD, target, flags)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("clone mount of %q: %w", binary, err)
	}
	return os.NewFile(uintptr(fd), binary), nil
}

// copyBinary copies a file, unless the copy is there already.
func copyBinary(from, to string) (string, error) {
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	source, err := os.Open(from)
	if err != nil {
		return "", err
	}
	defer source.Close()
	target, err := os.CreateTemp(filepath.Dir(to), ".copy")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(target, source)
	err = errors.Join(err, target.Chmod(0o755), target.Close())
	if err == nil {
		err = os.Rename(target.Name(), to)
	}
	if err != nil {
		os.Remove(target.Name())
	}
	return to, err
}

// mountBinary mounts what cloneBinary made, read-only.
func mountBinary(target string) error {
	if err := createEmpty(target); err != nil {
		return err
	}
	if err := unix.MoveMount(binaryFD, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount binary on %s: %w", target, err)
	}
	unix.Close(binaryFD)
	if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", target, err)
	}
	if err := unix.Mount("", target, "", readOnly|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

func createEmpty(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	return file.Close()
}

// bindFile mounts a file read-only on a new file.
func bindFile(source, target string) error {
	if err := createEmpty(target); err != nil {
		return err
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	if err := unix.Mount("", target, "", readOnly|inert, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", target, err)
	}
	return nil
}

// fillRoot mounts what every Docker container has, but for /sys.
func fillRoot() error {
	for _, m := range []rootMount{
		{"proc", "/proc", "proc", inert, ""},
		{"tmpfs", "/dev", "tmpfs", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=755,size=64k"},
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"},
		{"shm", "/dev/shm", "tmpfs", inert, "mode=1777,size=64m"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	// Numbers from Documentation/admin-guide/devices.txt: 1 memory, 5 terminals.
	for name, dev := range map[string]uint64{
		"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "full": unix.Mkdev(1, 7),
		"random": unix.Mkdev(1, 8), "urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0),
	} {
		file := filepath.Join("/dev", name)
		err := unix.Mknod(file, unix.S_IFCHR|0o666, int(dev))
		if err = errors.Join(err, unix.Chmod(file, 0o666)); err != nil {
			return fmt.Errorf("make %s: %w", file, err)
		}
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil {
			return fmt.Errorf("make root: %w", err)
		}
	}
	return maskProc()
}

// maskProc hides the files of /proc that speak of, or to, the whole machine:
// Docker's lists (moby daemon/pkg/oci, DefaultLinuxSpec). The task's root is the
// host's, and /proc/sysrq-trigger asks only for that.
func maskProc() error {
	for _, name := range []string{"bus", "fs", "irq", "sys", "sysrq-trigger"} {
		file := filepath.Join("/proc", name)
		if _, err := os.Lstat(file); err != nil {
			continue
		}
		if err := unix.Mount(file, file, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mask %s: %w", file, err)
		}
		if err := unix.Mount("", file, "", readOnly|inert, ""); err != nil {
			return fmt.Errorf("mask %s: %w", file, err)
		}
	}
	for _, name := range []string{
		"acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list", "timer_stats",
	} {
		file := filepath.Join("/proc", name)
		info, err := os.Lstat(file)
		if err != nil {
			continue
		}
		if info.IsDir() {
			err = unix.Mount("tmpfs", file, "tmpfs", unix.MS_RDONLY|inert, "size=0k")
		} else {
			err = unix.Mount("/dev/null", file, "", unix.MS_BIND, "")
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", file, err)
		}
	}
	return nil
}

// restrict takes from the calling thread, and so from what it starts, the
// capabilities that a task must not have, and any way to gain more. The program's
// own capabilities follow from the bounding set (capabilities(7)).
//
// The rest is Docker's default set, without MKNOD: there is no device cgroup that
// would keep the host's disks out of reach.
func restrict() error {
	runtime.LockOSThread()
	keep := map[uintptr]bool{
		unix.CAP_AUDIT_WRITE: true, unix.CAP_CHOWN: true, unix.CAP_DAC_OVERRIDE: true, unix.CAP_FOWNER: true,
		unix.CAP_FSETID: true, unix.CAP_KILL: true, unix.CAP_NET_BIND_SERVICE: true, unix.CAP_NET_RAW: true,
		unix.CAP_SETFCAP: true, unix.CAP_SETGID: true, unix.CAP_SETPCAP: true, unix.CAP_SETUID: true, unix.CAP_SYS_CHROOT: true,
	}
	for capability := uintptr(0); ; capability++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, capability, 0, 0, 0); err != nil {
			break // beyond the kernel's last
		}
		if keep[capability] {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	// What is inheritable would be added to the bounding set for a root program.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}
