package task

import (
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

// Unsupported names the first part of a service's task template that the process
// runtime would have to leave out; nil when it can do all that is asked. Better no
// task than one that lacks its secrets or mounts. Pure.
func Unsupported(t swarm.TaskSpec) error {
	c := t.ContainerSpec
	if c == nil {
		return netd.Errorf(netd.ErrUnsupported, "the process runtime runs container tasks only")
	}
	var limits, reservations struct{ swap, generic bool }
	if r := t.Resources; r != nil {
		limits.swap = r.SwapBytes != nil || r.MemorySwappiness != nil
		reservations.generic = r.Reservations != nil && len(r.Reservations.GenericResources) > 0
	}
	for _, field := range []struct {
		what string
		used bool
	}{
		{"mounts", len(c.Mounts) > 0},
		{"secrets", len(c.Secrets) > 0},
		{"configs", len(c.Configs) > 0},
		{"a user other than root", !slices.Contains([]string{"", "0", "root", "0:0", "root:root"}, c.User)},
		{"additional groups", len(c.Groups) > 0},
		{"name servers (dns)", c.DNSConfig != nil && len(c.DNSConfig.Nameservers) > 0},
		{"a terminal (tty)", c.TTY},
		{"an open standard input", c.OpenStdin},
		{"a read-only root", c.ReadOnly},
		{"sysctls", len(c.Sysctls) > 0},
		{"added capabilities", len(c.CapabilityAdd) > 0},
		{"dropped capabilities", len(c.CapabilityDrop) > 0},
		{"ulimits", len(c.Ulimits) > 0},
		{"an OOM score", c.OomScoreAdj != 0},
		{"isolation " + string(c.Isolation), c.Isolation != "" && c.Isolation != "default"},
		{"security options", privileged(c.Privileges)},
		{"swap settings", limits.swap},
		{"generic resources", reservations.generic},
		{"log driver", t.LogDriver != nil && !slices.Contains([]string{"", "json-file", "local"}, t.LogDriver.Name)},
	} {
		if field.used {
			return netd.Errorf(netd.ErrUnsupported,
				"%s: not supported by this version, whose tasks are processes of the image netd/echo; leave it out", field.what)
		}
	}
	return nil
}

// privileged says whether p asks for more than what every task has anyway.
func privileged(p *swarm.Privileges) bool {
	if p == nil {
		return false
	}
	seccomp := p.Seccomp != nil && p.Seccomp.Mode == swarm.SeccompModeCustom
	return p.CredentialSpec != nil || p.SELinuxContext != nil && !p.SELinuxContext.Disable || seccomp
}
