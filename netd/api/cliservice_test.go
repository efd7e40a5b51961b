package api_test

import (
	"slices"
	"strings"
	"testing"
)

// A service's whole life by the stock CLIs, with the progress display.
func TestCLIServices(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		c.ok(t, "network", "create", "-d", "overlay", "app")
		out := c.ok(t, "service", "create", "--name", "web", "--network", "app", "--publish", "8080:80", "--replicas", "3",
			"--update-monitor", "10ms", "--rollback-monitor", "10ms", "--env", "A=1", "--constraint", "node.role==manager", "netd/echo", "arg")
		contains(t, out, "overall progress: 0 out of 3 tasks", "overall progress: 3 out of 3 tasks", "verify: ", "converged")
		c.fails(t, "service web already exists", "service", "create", "--name", "web", "netd/echo")

		rows := fields(c.ok(t, "service", "ls"))
		if len(rows) != 1 || !slices.Equal(rows[0][1:], []string{"web", "replicated", "3/3", "netd/echo:latest", "*:8080->80/tcp"}) {
			t.Errorf("service ls: %q", rows)
		}
		rows = fields(c.ok(t, "service", "ps", "web"))
		if len(rows) != 3 || rows[0][1] != "web.1" || rows[1][3] != "n2" || !strings.HasPrefix(rows[2][5], "Running ") {
			t.Errorf("service ps: %q", rows)
		}
		contains(t, c.ok(t, "service", "inspect", "--pretty", "web"), "Name:\t\tweb", " Replicas:\t3", " Image:\t\tnetd/echo:latest",
			"Networks: app", "Endpoint Mode:\tvip", "PublishedPort = 8080", "Constraints:\t[node.role==manager]")

		contains(t, c.ok(t, "service", "scale", "web=5"), "web scaled to 5", "5 out of 5 tasks", "converged")
		contains(t, c.ok(t, "service", "update", "--replicas", "2", "web"), "2 out of 2 tasks", "converged")
		contains(t, c.ok(t, "service", "update", "--env-add", "B=2", "web"), "converged")
		contains(t, c.ok(t, "service", "update", "--force", "web"), "converged")
		spec := f.services[0].Spec.TaskTemplate
		env := slices.Sorted(slices.Values(spec.ContainerSpec.Env)) // the CLI keeps it in a map
		if !slices.Equal(env, []string{"A=1", "B=2"}) || spec.ForceUpdate != 1 || !slices.Equal(spec.ContainerSpec.Args, []string{"arg"}) {
			t.Errorf("the spec lost something on its way: %+v", spec)
		}
		contains(t, c.ok(t, "service", "rollback", "web"), "rolling back update", "converged")
		if got := f.services[0].Spec.TaskTemplate.ForceUpdate; got != 0 {
			t.Errorf("ForceUpdate after the rollback: %d", got)
		}
		r := c.run(t, "service", "update", "--detach", "--image", "other:1", "web")
		contains(t, r.err, "image other:1 could not be accessed on a registry")
		if got := f.services[0].Spec.TaskTemplate.ContainerSpec.Image; r.code != 0 || got != "other:1" {
			t.Errorf("update --image: exit %d, image %q", r.code, got)
		}
		if rows := fields(c.ok(t, "service", "ps", "-f", "desired-state=running", "web")); len(rows) != 2 {
			t.Errorf("service ps of running tasks: %q", rows)
		}
		c.ok(t, "service", "rm", "web")
		c.fails(t, "no such service: web", "service", "ps", "web")
	})
}

// Global services, detached creation, filters, and endpoint mode dnsrr.
func TestCLIServiceModes(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		contains(t, c.ok(t, "service", "create", "--name", "agent", "--mode", "global", "--label", "team=net", "--update-monitor", "10ms", "netd/echo"), "3 out of 3 tasks", "converged")
		id := c.ok(t, "service", "create", "--detach", "--name", "db", "--endpoint-mode", "dnsrr", "netd/echo")
		if !slices.ContainsFunc(f.services, func(s swarmService) bool { return s.ID == id }) {
			t.Errorf("service create printed %q", id)
		}
		for filter, want := range map[string]int{"mode=global": 1, "label=team": 1, "label=team=x": 0, "name=d": 1, "id=" + id[:8]: 1} {
			if rows := fields(c.ok(t, "service", "ls", "--filter", filter)); len(rows) != want {
				t.Errorf("service ls --filter %s: %q, want %d", filter, rows, want)
			}
		}
		contains(t, c.ok(t, "service", "inspect", "--pretty", "db"), "Endpoint Mode:\tdnsrr")
		c.fails(t, "update out of sequence", staleUpdate(t, c, f)...)
	})
}

// staleUpdate makes the managers' copy newer whenever it is read, and returns an
// update that so comes too late.
func staleUpdate(t *testing.T, c cli, f *fake) []string {
	t.Helper()
	c.ok(t, "service", "create", "--detach", "--name", "stale", "netd/echo")
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restless = true
	return []string{"service", "update", "--detach", "--env-add", "X=1", "stale"}
}
