package task

import (
	"slices"
	"strings"

	"github.com/distribution/reference"

	"netd"
)

// The image netd/echo: the netd binary and nothing else.
const (
	echoImage   = "docker.io/netd/echo"
	binaryPath  = "/bin/netd"
	echoCommand = "echo"
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// checkImage accepts netd/echo with any tag or digest: all are this binary.
func checkImage(image string) error {
	name, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return netd.Errorf(netd.ErrInvalid, "image %q: %w", image, err)
	}
	if name.Name() != echoImage {
		return netd.Errorf(netd.ErrUnsupported,
			"image %q cannot be run by this version, which only has the built-in image netd/echo", image)
	}
	return nil
}

// argv is the command line inside the task. A Command drops the image's
// arguments along with its entrypoint, as in Docker.
func (s Spec) argv() []string {
	switch {
	case len(s.Command) > 0:
		return slices.Concat(s.Command, s.Args)
	case len(s.Args) > 0:
		return slices.Concat([]string{binaryPath}, s.Args)
	default:
		return []string{binaryPath, echoCommand}
	}
}

// environ is the command's environment: Docker's defaults, changed by Env.
func (s Spec) environ() []string {
	env := []string{defaultPath, "HOSTNAME=" + s.hostname(), "HOME=/root", "NETD_TASK=" + s.Name}
	for _, entry := range s.Env {
		key, _, isSet := strings.Cut(entry, "=")
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, key+"=") })
		if isSet {
			env = append(env, entry)
		}
	}
	return env
}

// builtin returns the ports on which the image's own check can be made without
// a process: those of an unchanged netd echo. None for any other command.
func (s Spec) builtin() []uint16 {
	argv := s.argv()
	if len(argv) < 2 || argv[0] != binaryPath || argv[1] != echoCommand {
		return nil
	}
	o, err := parseEcho(argv[2:])
	if err != nil {
		return nil
	}
	return o.ports
}
