package task

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// A template that the runtime would have to cut down is refused by the name of
// what it lacks; a plain one is not.
func TestUnsupported(t *testing.T) {
	swap := int64(1)
	for want, spec := range map[string]swarm.TaskSpec{
		"container tasks only":         {},
		"mounts: not supported":        {ContainerSpec: &swarm.ContainerSpec{Mounts: []mount.Mount{{Target: "/x"}}}},
		"secrets: not supported":       {ContainerSpec: &swarm.ContainerSpec{Secrets: []*swarm.SecretReference{{}}}},
		"name servers (dns): not":      {ContainerSpec: &swarm.ContainerSpec{DNSConfig: &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}}},
		"a user other than root":       {ContainerSpec: &swarm.ContainerSpec{User: "www-data"}},
		"a terminal (tty)":             {ContainerSpec: &swarm.ContainerSpec{TTY: true}},
		"isolation hyperv":             {ContainerSpec: &swarm.ContainerSpec{Isolation: "hyperv"}},
		"security options":             {ContainerSpec: &swarm.ContainerSpec{Privileges: &swarm.Privileges{Seccomp: &swarm.SeccompOpts{Mode: swarm.SeccompModeCustom}}}},
		"swap settings: not supported": {ContainerSpec: &swarm.ContainerSpec{}, Resources: &swarm.ResourceRequirements{SwapBytes: &swap}},
		"log driver: not supported":    {ContainerSpec: &swarm.ContainerSpec{}, LogDriver: &swarm.Driver{Name: "syslog"}},
	} {
		if err := Unsupported(spec); err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, netd.ErrUnsupported) || strings.Contains(err.Error(), "Docker Engine") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	init := true
	plain := swarm.TaskSpec{
		ContainerSpec: &swarm.ContainerSpec{
			Image: "netd/echo", User: "root", Init: &init, Isolation: "default",
			Privileges: &swarm.Privileges{NoNewPrivileges: true, AppArmor: &swarm.AppArmorOpts{Mode: swarm.AppArmorModeDefault}},
		},
		Resources: &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 1 << 26}, Reservations: &swarm.Resources{NanoCPUs: 1}},
		LogDriver: &swarm.Driver{Name: "json-file"},
	}
	if err := Unsupported(plain); err != nil {
		t.Error(err)
	}
}
