package api

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host is what docker info says of the machine. None of it changes while the
// daemon runs.
type host struct {
	kernel, machine string // uname -r, uname -m
	name, release   string // of the distribution
	memory          int64  // bytes
	cgroups         string // "1" or "2"
}

// readHost never fails: what cannot be read stays empty.
func readHost() host {
	h := host{cgroups: "1"}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.kernel, h.machine = text(uts.Release[:]), text(uts.Machine[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		h.memory = int64(info.Totalram) * int64(info.Unit) // in units of Unit bytes, sysinfo(2)
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		h.cgroups = "2"
	}
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if data, err := os.ReadFile(file); err == nil {
			h.name, h.release = osRelease(string(data))
			break
		}
	}
	return h
}

func text(field []byte) string {
	head, _, _ := bytes.Cut(field, []byte{0})
	return string(head)
}

// osRelease reads the names from an os-release(5) file.
func osRelease(data string) (name, release string) {
	for line := range strings.Lines(data) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if plain, err := strconv.Unquote(value); err == nil {
			value = plain
		}
		switch key {
		case "PRETTY_NAME":
			name = value
		case "VERSION_ID":
			release = value
		}
	}
	return name, release
}
