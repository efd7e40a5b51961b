package task

import (
	"fmt"
	"strings"
)

// etcFiles are the files that the task finds in its /etc. Pure.
func (s Spec) etcFiles() map[string]string {
	return map[string]string{
		"resolv.conf": s.resolvConf(),
		"hosts":       s.hosts(),
		"hostname":    s.hostname() + "\n",
	}
}

// resolvConf renders resolv.conf(5).
func (s Spec) resolvConf() string {
	var b strings.Builder
	b.WriteString("# written by netd\n")
	for _, addr := range s.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", addr)
	}
	if len(s.DNSSearch) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(s.DNSSearch, " "))
	}
	if len(s.DNSOptions) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(s.DNSOptions, " "))
	}
	return b.String()
}

// hosts renders hosts(5): what Docker writes into every container, then the
// entries of the spec.
func (s Spec) hosts() string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n")
	b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\n")
	b.WriteString("fe00::\tip6-localnet\n")
	b.WriteString("ff00::\tip6-mcastprefix\n")
	b.WriteString("ff02::1\tip6-allnodes\n")
	b.WriteString("ff02::2\tip6-allrouters\n")
	for _, line := range s.Hosts {
		fields := strings.Fields(line)
		fmt.Fprintf(&b, "%s\t%s\n", fields[0], strings.Join(fields[1:], " "))
	}
	return b.String()
}
