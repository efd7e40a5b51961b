package api_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// Docker's newest Go client negotiates our newest version and decodes every answer.
func TestGoClient(t *testing.T) {
	f := newFake()
	c, err := client.New(client.WithHost(serve(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ping, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	check(err)
	if ping.APIVersion != "1.56" || ping.OSType != "linux" || ping.SwarmStatus.NodeState != swarm.LocalNodeStateInactive || c.ClientVersion() != client.MaxAPIVersion {
		t.Errorf("ping: %+v, client speaks %s", ping, c.ClientVersion())
	}
	init, err := c.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377"})
	check(err)
	if init.NodeID != f.nodeID {
		t.Errorf("init: %+v", init)
	}
	_, err = c.NetworkCreate(ctx, "app", client.NetworkCreateOptions{Driver: "overlay"})
	check(err)
	replicas := uint64(2)
	created, err := c.ServiceCreate(ctx, client.ServiceCreateOptions{QueryRegistry: true, Spec: swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: "web"}, Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "netd/echo"}, Networks: []swarm.NetworkAttachmentConfig{{Target: "app"}}},
	}})
	check(err)
	if len(created.Warnings) != 0 {
		t.Errorf("warnings: %q", created.Warnings)
	}
	svc, err := c.ServiceInspect(ctx, "web", client.ServiceInspectOptions{})
	check(err)
	svc.Service.Spec.TaskTemplate.ForceUpdate++
	_, err = c.ServiceUpdate(ctx, created.ID, client.ServiceUpdateOptions{Version: svc.Service.Version, Spec: svc.Service.Spec, RegistryAuthFrom: swarm.RegistryAuthFromSpec})
	check(err)
	services, err := c.ServiceList(ctx, client.ServiceListOptions{Status: true, Filters: make(client.Filters).Add("name", "web")})
	check(err)
	tasks, err := c.TaskList(ctx, client.TaskListOptions{Filters: make(client.Filters).Add("service", "web").Add("_up-to-date", "true")})
	check(err)
	if len(services.Items) != 1 || services.Items[0].ServiceStatus.DesiredTasks != 2 || len(tasks.Items) != 2 {
		t.Errorf("services %+v, tasks %+v", services.Items, tasks.Items)
	}
	verbose, err := c.NetworkInspect(ctx, "app", client.NetworkInspectOptions{Verbose: true})
	check(err)
	if got := verbose.Network.Services["web"].VIP; !got.IsValid() {
		t.Errorf("network: %+v", verbose.Network)
	}
	info, err := c.Info(ctx, client.InfoOptions{})
	check(err)
	if info.Info.Swarm.Nodes != 1 || info.Info.Swarm.Cluster.ID != f.cluster.ID {
		t.Errorf("info: %+v", info.Info.Swarm)
	}
	_, err = c.ServerVersion(ctx, client.ServerVersionOptions{})
	check(err)
	_, err = c.DiskUsage(ctx, client.DiskUsageOptions{})
	check(err)
	_, err = c.SwarmInspect(ctx, client.SwarmInspectOptions{})
	check(err)
	_, err = c.NodeList(ctx, client.NodeListOptions{Filters: make(client.Filters).Add("role", "manager")})
	check(err)
	_, err = c.VolumeList(ctx, client.VolumeListOptions{})
	check(err)
	_, err = c.ServiceRemove(ctx, "web", client.ServiceRemoveOptions{})
	check(err)
	pruned, err := c.NetworkPrune(ctx, client.NetworkPruneOptions{})
	check(err)
	if got := pruned.Report.NetworksDeleted; len(got) != 1 || got[0] != "app" {
		t.Errorf("pruned: %v", got)
	}
}

// Every page of Docker's own description of the API is answered: with a result, a
// refusal or an object that is not found, but never as an unknown page.
func TestEveryPageIsKnown(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatalf("find the API's description: %v", err)
	}
	file, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	h := handler(newSwarm(t), io.Discard)
	path, pages := "", 0
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if m := regexp.MustCompile(`^  (/[^ ]*):$`).FindStringSubmatch(lines.Text()); m != nil {
			path = regexp.MustCompile(`\{[a-z]+\}`).ReplaceAllString(m[1], "x")
		}
		m := regexp.MustCompile(`^    (get|head|post|put|delete):$`).FindStringSubmatch(lines.Text())
		if m == nil || path == "" || path == "/events" {
			continue
		}
		pages++
		w := request(t, h, strings.ToUpper(m[1]), path, "")
		if strings.Contains(w.Body.String(), "page not found") || w.Code >= 500 && w.Code != 501 && w.Code != 503 {
			t.Errorf("%s %s: %d %s", m[1], path, w.Code, w.Body)
		}
	}
	if pages < 100 {
		t.Errorf("the description has %d pages only: is it read rightly?", pages)
	}
}
