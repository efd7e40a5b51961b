package api_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The stock CLIs take a node into a swarm, show it, change it and take it out.
func TestCLISwarm(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newFake()
		c := cli{path, serve(t, f)}
		c.fails(t, `This node is not a swarm manager. Use "docker swarm init"`, "node", "ls")
		c.fails(t, "This node is not part of a swarm", "swarm", "leave")
		if rows := fields(c.ok(t, "network", "ls")); len(rows) != 0 {
			t.Errorf("an inactive node lists networks: %v", rows)
		}

		out := c.ok(t, "swarm", "init", "--advertise-addr", "10.99.0.1")
		contains(t, out, "Swarm initialized: current node ("+f.nodeID+") is now a manager", "docker swarm join --token SWMTKN-1-root-worker1 10.99.0.1:2377")
		c.fails(t, "This node is already part of a swarm", "swarm", "init")
		contains(t, c.ok(t, "swarm", "join-token", "manager"), "docker swarm join --token SWMTKN-1-root-manager1 10.99.0.1:2377")
		if token := c.ok(t, "swarm", "join-token", "--rotate", "-q", "worker"); token != "SWMTKN-1-root-worker1x" {
			t.Errorf("the rotated token is %q", token)
		}
		contains(t, c.ok(t, "swarm", "update", "--task-history-limit", "3"), "Swarm updated.")
		if got := *f.cluster.Spec.Orchestration.TaskHistoryRetentionLimit; got != 3 {
			t.Errorf("the task history limit is %d", got)
		}
		c.fails(t, "autolock is not supported", "swarm", "update", "--autolock")
		c.fails(t, "no unlock key is set", "swarm", "unlock-key")
		contains(t, c.ok(t, "swarm", "ca"), "BEGIN CERTIFICATE")
		c.fails(t, "participating as a manager", "swarm", "leave")
		contains(t, c.ok(t, "swarm", "leave", "--force"), "Node left the swarm.")

		c.fails(t, "A valid join token is necessary", "swarm", "join", "--token", "SWMTKN-1-x-y", "10.99.0.1:2377")
		contains(t, c.ok(t, "swarm", "join", "--token", "SWMTKN-1-root-worker1", "10.99.0.1:2377"), "This node joined a swarm as a worker.")
		c.fails(t, "Worker nodes can't be used to view or modify cluster state", "service", "ls")
		contains(t, c.ok(t, "swarm", "leave"), "Node left the swarm.")
	})
}

// docker version and docker info are complete, with and without a swarm, and say
// that there is no Docker Engine.
func TestCLIInfo(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newFake()
		c := cli{path, serve(t, f)}
		contains(t, c.ok(t, "version"), "Server: netd", "1.56 (minimum version 1.24)")
		r := c.run(t, "info")
		contains(t, r.out, "Swarm: inactive", "Server Version: 0.1.0", "Runtimes: netd", "Name: n1", "Containers: 0", "CPUs: ", "Total Memory: ", "Kernel Version: ")
		if warnings := strings.Count(r.err, "WARNING"); warnings != 1 || r.code != 0 {
			t.Errorf("docker info: exit %d, warnings:\n%s", r.code, r.err)
		}
		contains(t, r.err, "No Docker Engine is attached")
		c.ok(t, "swarm", "init", "--advertise-addr", "10.99.0.1")
		contains(t, c.run(t, "info").out, "Swarm: active", "NodeID: "+f.nodeID, "Is Manager: true", "ClusterID: "+f.cluster.ID,
			"Managers: 1", "Nodes: 1", "Default Address Pool: 10.0.0.0/8", "Data Path Port: 4789", "Node Address: 10.99.0.1")
		if got := c.run(t, "info", "--format", "{{.Swarm.LocalNodeState}} {{.Swarm.ControlAvailable}}").out; got != "active true\n" {
			t.Errorf("info --format: %q", got)
		}
	})
}

// Nodes are listed, inspected, changed and removed.
func TestCLINodes(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		rows := fields(c.ok(t, "node", "ls"))
		if len(rows) != 3 || rows[0][0] != f.nodeID+" *" || rows[0][4] != "Leader" {
			t.Errorf("node ls: %q", rows)
		}
		if rows := fields(c.ok(t, "node", "ls", "-f", "role=worker", "-f", "name=n2")); len(rows) != 1 {
			t.Errorf("node ls with filters: %q", rows)
		}
		contains(t, c.ok(t, "node", "inspect", "self", "--pretty"), "Hostname:              \tn1", "Raft Status:\t\tReachable", "Leader:\t\tYes", "CPUs:\t\t\t2")
		c.ok(t, "node", "update", "--availability", "drain", "--label-add", "zone=a", "n2")
		contains(t, c.ok(t, "node", "inspect", "--pretty", "n2"), "Availability:         \tDrain", "zone=a")
		if rows := fields(c.ok(t, "node", "ls", "--filter", "node.label=zone=a")); len(rows) != 1 {
			t.Errorf("node ls by label: %q", rows)
		}
		c.fails(t, "is not down and can't be removed", "node", "rm", "n3")
		c.ok(t, "node", "rm", "--force", "n3")
		c.fails(t, "n3", "node", "inspect", "n3")

		c.ok(t, "service", "create", "--detach", "--name", "web", "--replicas", "2", "netd/echo")
		if rows := fields(c.ok(t, "node", "ps", "self")); len(rows) != 1 || rows[0][1] != "web.1" {
			t.Errorf("node ps: %q", rows)
		}
	})
}

// Overlay networks are made, listed, inspected and removed; other kinds, which
// need an engine, are refused with a hint.
func TestCLINetworks(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		id := c.ok(t, "network", "create", "-d", "overlay", "--attachable", "--label", "tier=front", "app")
		rows := fields(c.ok(t, "network", "ls"))
		if len(rows) != 2 || strings.Join(rows[0], " ") != id[:12]+" app overlay swarm" {
			t.Errorf("network ls: %q", rows)
		}
		if rows := fields(c.ok(t, "network", "ls", "-f", "label=tier=front", "-f", "scope=swarm", "-f", "driver=overlay")); len(rows) != 1 {
			t.Errorf("network ls with filters: %q", rows)
		}
		contains(t, c.ok(t, "network", "inspect", "app"), `"Subnet": "10.0.1.0/24"`, `"Scope": "swarm"`, `"Attachable": true`, `"Containers": {}`)
		c.fails(t, "network with name app already exists", "network", "create", "-d", "overlay", "app")
		c.fails(t, "driver \"bridge\" needs a Docker Engine", "network", "create", "other")
		c.fails(t, "predefined", "network", "create", "-d", "overlay", "host")
		c.fails(t, "no Docker Engine is attached", "network", "connect", "app", "something")
		c.fails(t, "nope", "network", "inspect", "nope")

		c.ok(t, "service", "create", "--replicas", "2", "--name", "web", "--network", "app", "--update-monitor", "10ms", "netd/echo")
		contains(t, c.ok(t, "network", "inspect", "--verbose", "app"), `"VIP": "10.0.1.2"`, `"Host IP": "10.99.0.1"`, `"Name": "web.1.`)
		c.fails(t, "is in use by service", "network", "rm", "app")
		c.ok(t, "service", "rm", "web")
		c.ok(t, "network", "rm", "app")
		c.ok(t, "network", "create", "-d", "overlay", "unused")
		contains(t, c.ok(t, "network", "prune", "--force"), "unused")
		if rows := fields(c.ok(t, "network", "ls")); len(rows) != 1 || rows[0][1] != "ingress" {
			t.Errorf("after the prune: %q", rows)
		}
	})
}

// Without an engine its commands list nothing, or fail with the reason.
func TestCLIWithoutEngine(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		for _, args := range [][]string{{"ps"}, {"images"}, {"volume", "ls"}, {"plugin", "ls"}, {"secret", "ls"}, {"config", "ls"}, {"stack", "ls"}, {"service", "ls"}} {
			if rows := fields(c.ok(t, args...)); len(rows) != 0 {
				t.Errorf("docker %q lists %q", args, rows)
			}
		}
		c.ok(t, "system", "df")
		c.ok(t, "system", "prune", "--force")
		c.ok(t, "events", "--since", "10s", "--until", "0s")
		c.fails(t, "no Docker Engine is attached", "run", "busybox")
		c.fails(t, "no Docker Engine is attached", "pull", "busybox")
		c.fails(t, "No such container: x", "logs", "x")
		c.fails(t, "No such object: x", "inspect", "x")
		c.ok(t, "service", "create", "--detach", "--name", "web", "netd/echo")
		contains(t, c.ok(t, "inspect", "web"), `"Image": "netd/echo:latest"`)
		c.fails(t, "logs of service web", "service", "logs", "web")
		c.fails(t, "secrets are not supported", "secret", "create", "s", "/etc/passwd")
	})
}

// A stack is deployed, listed and removed by its labels.
func TestCLIStack(t *testing.T) {
	withCLIs(t, func(t *testing.T, path string) {
		f := newSwarm(t)
		c := cli{path, serve(t, f)}
		file := filepath.Join(t.TempDir(), "stack.yml")
		if err := os.WriteFile(file, []byte("version: '3.8'\nservices:\n  web:\n    image: netd/echo\n    deploy: {replicas: 2}\n    ports: ['8080:80']\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if r := c.run(t, "stack", "deploy", "-c", file, "shop"); r.code != 0 {
				t.Fatalf("stack deploy: %s", r.err)
			}
		}
		rows := fields(c.ok(t, "stack", "services", "shop"))
		if len(rows) != 1 || rows[0][1] != "shop_web" {
			t.Errorf("stack services: %q", rows)
		}
		if rows := fields(c.ok(t, "stack", "ps", "shop")); len(rows) != 2 {
			t.Errorf("stack ps: %q", rows)
		}
		c.run(t, "stack", "rm", "shop")
		if len(f.services) != 0 || len(f.networks) != 1 {
			t.Errorf("left after stack rm: %d services, %d networks", len(f.services), len(f.networks))
		}
	})
}
