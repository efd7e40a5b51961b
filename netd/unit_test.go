package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The systemd unit never gives up starting the daemon, spares the tasks when it
// stops it, and leaves it in the host's mount namespace, where the pins of the
// network namespaces are.
func TestSystemdUnit(t *testing.T) {
	data, err := os.ReadFile("../vagrant/netd.service")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{} // by section and key
	section := ""
	private := regexp.MustCompile(`^(Private(Tmp|Devices|Mounts|Users|IPC|Network)|Protect\w+|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths|` +
		`Bind(ReadOnly)?Paths|Root(Directory|Image)|TemporaryFileSystem|MountAPIVFS|DynamicUser|(State|Cache|Logs|Runtime|Configuration)Directory)$`)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = line
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		got[section+key] = value
		if private.MatchString(key) {
			t.Errorf("%s gives the daemon a mount namespace or a folder that systemd removes", line)
		}
	}
	for key, want := range map[string]string{
		"[Unit]StartLimitIntervalSec": "0",
		"[Service]KillMode":           "process",
		"[Service]Restart":            "always",
		"[Service]Delegate":           "yes",
	} {
		if got[key] != want {
			t.Errorf("%s: got %q, want %q", key, got[key], want)
		}
	}
}
