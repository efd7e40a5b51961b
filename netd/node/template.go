package node

import (
	"slices"
	"strings"
	"text/template"
	"text/template/parse"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/dispatch"
	"netd/netd/task"
)

// placeholders are what the hostname and the values of the environment may name,
// as Docker defines it: {{.Service.Name}}, {{.Node.Hostname}}, {{.Task.Slot}} ...
type placeholders struct {
	Service struct{ ID, Name string }
	Node    struct {
		ID, Hostname string
		Platform     swarm.Platform
	}
	// Slot of a task of a global service is its node's ID.
	Task struct{ ID, Name, Slot string }
}

func placeholdersOf(t *swarm.Task, a *dispatch.Assignment, name, node string) placeholders {
	var p placeholders
	p.Service.ID, p.Service.Name = t.ServiceID, a.ServiceNames[t.ServiceID]
	p.Node.ID, p.Node.Hostname, p.Node.Platform = t.NodeID, node, a.Node.Description.Platform
	p.Task.ID, p.Task.Name, p.Task.Slot = t.ID, name, slot(t)
	return p
}

// fill replaces the placeholders in s.
func (p placeholders) fill(s *task.Spec) (err error) {
	if s.Hostname, err = p.expand(s.Hostname); err != nil {
		return netd.Errorf(netd.ErrInvalid, "hostname: %w", err)
	}
	s.Env = slices.Clone(s.Env)
	for i, entry := range s.Env {
		key, value, _ := strings.Cut(entry, "=")
		expanded, err := p.expand(value)
		if err != nil {
			return netd.Errorf(netd.ErrInvalid, "environment variable %q: %w", key, err)
		}
		if expanded != value {
			s.Env[i] = key + "=" + expanded
		}
	}
	return nil
}

func (p placeholders) expand(text string) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	functions := template.FuncMap{"join": func(separator string, parts ...string) string { return strings.Join(parts, separator) }}
	t, err := template.New("template").Funcs(functions).Parse(text)
	if err != nil {
		return "", netd.Errorf(netd.ErrInvalid, "%w", err)
	}
	var out strings.Builder
	if t.Tree == nil {
		return "", nil
	}
	for _, n := range t.Root.Nodes {
		switch n.Type() {
		case parse.NodeText, parse.NodeAction, parse.NodeComment:
		default: // a loop would hold the node up
			return "", netd.Errorf(netd.ErrUnsupported, "template %q: only values such as {{.Task.Slot}} are supported, no conditions and loops", text)
		}
	}
	if err := t.Execute(&out, p); err != nil {
		return "", netd.Errorf(netd.ErrInvalid, "%w; known are .Service.ID and .Name, .Node.ID, .Hostname and .Platform, .Task.ID, .Name and .Slot", err)
	}
	return out.String(), nil
}
