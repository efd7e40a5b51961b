package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"
)

// checks is the demo's story. An error ends it; a failed check does not.
func (d *demo) checks(ctx context.Context) error {
	if err := d.build(ctx); err != nil {
		return err
	}
	if err := d.swarm(ctx); err != nil {
		return err
	}
	if err := d.services(ctx); err != nil {
		return err
	}
	d.check("the name resolves to the VIP", func() (string, error) { return d.resolvesToVIP(ctx) })
	d.check("30 requests reach all three tasks on all three nodes", func() (string, error) { return d.spread(ctx) })
	d.check("tasks.web lists three", func() (string, error) { return d.listsTasks(ctx, 3) })
	d.check("a task calls its own service's VIP 20 times", func() (string, error) { return d.callsItself(ctx) })
	d.check("every daemon is killed and restarted, traffic and tasks go on", func() (string, error) { return d.survivesRestart(ctx) })
	d.check("scale to 5 while requests run, none lost", func() (string, error) { return d.scaleUnderLoad(ctx, 5) })
	d.check("scale to 2 while requests run, none lost", func() (string, error) { return d.scaleUnderLoad(ctx, 2) })
	d.check("a killed task is replaced", func() (string, error) { return d.replacesKilled(ctx) })
	d.cutAndHeal(ctx)
	d.check("the kernels hold what is wanted", func() (string, error) { return d.noDrift(ctx) })
	return nil
}

// swarm joins the three nodes by real tokens.
func (d *demo) swarm(ctx context.Context) error {
	first := d.nodes[0]
	if _, err := first.docker.SwarmInit(ctx, client.SwarmInitOptions{ListenAddr: "0.0.0.0:2377", AdvertiseAddr: first.addr.String()}); err != nil {
		return fmt.Errorf("swarm init on %s: %w", first.name, err)
	}
	sw, err := first.docker.SwarmInspect(ctx, client.SwarmInspectOptions{})
	if err != nil {
		return fmt.Errorf("swarm inspect: %w", err)
	}
	for _, n := range d.nodes[1:] {
		_, err := n.docker.SwarmJoin(ctx, client.SwarmJoinOptions{
			ListenAddr: "0.0.0.0:2377", AdvertiseAddr: n.addr.String(),
			RemoteAddrs: []string{first.addr.String() + ":2377"}, JoinToken: sw.Swarm.JoinTokens.Worker,
		})
		if err != nil {
			return fmt.Errorf("swarm join of %s: %w", n.name, err)
		}
	}
	d.check("three nodes joined by token are ready", func() (string, error) { return d.nodesReady(ctx) })
	return nil
}

func (d *demo) nodesReady(ctx context.Context) (string, error) {
	err := eventually(ctx, 15*time.Second, func() error {
		list, err := d.nodes[0].docker.NodeList(ctx, client.NodeListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for _, n := range list.Items {
			for _, mine := range d.nodes {
				if mine.name == n.Description.Hostname && n.Status.State == swarm.NodeStateReady {
					mine.id = n.ID
					ready++
				}
			}
		}
		if ready != size {
			return fmt.Errorf("%d of %d nodes ready", ready, size)
		}
		return nil
	})
	return "n1 (leader), n2, n3", err
}

// services makes the network, the service web and its client.
func (d *demo) services(ctx context.Context) error {
	docker := d.nodes[0].docker
	made, err := docker.NetworkCreate(ctx, "shop", client.NetworkCreateOptions{Driver: "overlay"})
	if err != nil {
		return fmt.Errorf("network create: %w", err)
	}
	d.network = made.ID
	for name, replicas := range map[string]uint64{"web": size, "client": 1} {
		spec := swarm.ServiceSpec{
			Annotations: swarm.Annotations{Name: name},
			Mode:        swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
			TaskTemplate: swarm.TaskSpec{
				ContainerSpec: &swarm.ContainerSpec{Image: "netd/echo"},
				Networks:      []swarm.NetworkAttachmentConfig{{Target: made.ID}},
			},
		}
		// A killed task comes back at once, so that the demo need not wait.
		delay := time.Duration(0)
		spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay}
		if _, err := docker.ServiceCreate(ctx, client.ServiceCreateOptions{Spec: spec}); err != nil {
			return fmt.Errorf("service create %s: %w", name, err)
		}
	}
	d.check("web 3/3 and client 1/1 run", func() (string, error) {
		web, err := d.running(ctx, "web", size)
		if err != nil {
			return "", err
		}
		if _, err := d.running(ctx, "client", 1); err != nil {
			return "", err
		}
		if on := d.placed(web); len(on) != size {
			return "", fmt.Errorf("web runs on %v, not on all nodes", on)
		}
		return "one task of web on each node", nil
	})
	return nil
}

// running waits until exactly n tasks of the service run and no other of them is
// left, and returns them.
func (d *demo) running(ctx context.Context, service string, n int) ([]swarm.Task, error) {
	var tasks []swarm.Task
	err := eventually(ctx, 60*time.Second, func() error {
		list, err := d.nodes[0].docker.TaskList(ctx, client.TaskListOptions{
			Filters: client.Filters{}.Add("service", service).Add("desired-state", "running"),
		})
		if err != nil {
			return err
		}
		tasks = slices.DeleteFunc(list.Items, func(t swarm.Task) bool { return t.Status.State != swarm.TaskStateRunning })
		if len(tasks) != n || len(list.Items) != n {
			return fmt.Errorf("%d of %d tasks of %s run%s", len(tasks), n, service, complaints(list.Items))
		}
		return nil
	})
	return tasks, err
}

// complaints gathers what tasks say of themselves.
func complaints(tasks []swarm.Task) string {
	said := map[string]bool{}
	for _, t := range tasks {
		if t.Status.Err != "" {
			said[t.Status.Err] = true
		}
	}
	if len(said) == 0 {
		return ""
	}
	return ": " + strings.Join(slices.Sorted(maps.Keys(said)), "; ")
}

// placed names the nodes of the tasks.
func (d *demo) placed(tasks []swarm.Task) []string {
	on := map[string]bool{}
	for _, t := range tasks {
		if n := d.nodeOf(t); n != nil {
			on[n.name] = true
		}
	}
	return slices.Sorted(maps.Keys(on))
}

func (d *demo) nodeOf(t swarm.Task) *node {
	for _, n := range d.nodes {
		if n.id == t.NodeID {
			return n
		}
	}
	return nil
}

func addressOf(t swarm.Task) netip.Addr {
	for _, a := range t.NetworksAttachments {
		if !a.Network.Spec.Ingress && len(a.Addresses) > 0 {
			return a.Addresses[0].Addr()
		}
	}
	return netip.Addr{}
}

// one returns a running task of the service and the way into it.
func (d *demo) one(ctx context.Context, service string, n int) (swarm.Task, inside, error) {
	tasks, err := d.running(ctx, service, n)
	if err != nil {
		return swarm.Task{}, inside{}, err
	}
	return tasks[0], d.inside(service, tasks[0]), nil
}

func (d *demo) resolvesToVIP(ctx context.Context) (string, error) {
	_, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	vip, err := d.vip(ctx, "web")
	if err != nil {
		return "", err
	}
	got, err := in.resolve(ctx, "web")
	if err != nil {
		return "", err
	}
	if len(got) != 1 || got[0] != vip {
		return "", fmt.Errorf("web resolves to %v, its VIP is %s", got, vip)
	}
	return fmt.Sprintf("web is %s", vip), nil
}

// spread sends 30 requests from the client task and looks at who answered and
// whom they saw.
func (d *demo) spread(ctx context.Context) (string, error) {
	task, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	calls, err := in.call(ctx, "http://web/", 30)
	if err != nil {
		return "", err
	}
	if calls.Failed > 0 {
		return "", fmt.Errorf("%d of 30 requests failed: %s", calls.Failed, calls.Error)
	}
	want := addressOf(task).String()
	d.check("each task saw the client task's own address", func() (string, error) {
		if len(calls.Clients) != 1 || calls.Clients[want] != calls.OK {
			return "", fmt.Errorf("they saw %v, the client is %s", calls.Clients, want)
		}
		return want, nil
	})
	if len(calls.Tasks) != size || len(calls.Nodes) != size {
		return "", fmt.Errorf("answered by tasks %v on nodes %v", calls.Tasks, calls.Nodes)
	}
	return fmt.Sprintf("%v", calls.Nodes), nil
}

func (d *demo) listsTasks(ctx context.Context, n int) (string, error) {
	tasks, err := d.running(ctx, "web", n)
	if err != nil {
		return "", err
	}
	want := []netip.Addr{}
	for _, t := range tasks {
		want = append(want, addressOf(t))
	}
	slices.SortFunc(want, netip.Addr.Compare)
	_, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	err = eventually(ctx, 5*time.Second, func() error {
		got, err := in.resolve(ctx, "tasks.web")
		if err != nil || !slices.Equal(got, want) {
			return errors.Join(err, fmt.Errorf("got %v, want %v", got, want))
		}
		return nil
	})
	return fmt.Sprint(want), err
}

func (d *demo) callsItself(ctx context.Context) (string, error) {
	_, in, err := d.one(ctx, "web", size)
	if err != nil {
		return "", err
	}
	calls, err := in.call(ctx, "http://web/", 20)
	if err != nil {
		return "", err
	}
	if calls.Failed > 0 {
		return "", fmt.Errorf("%d of 20 failed: %s", calls.Failed, calls.Error)
	}
	self := calls.Tasks[in.name]
	if self == 0 {
		return "", fmt.Errorf("none of the 20 came back to the caller %s, so nothing was proved", in.name)
	}
	return fmt.Sprintf("20 answered, %d of them by the caller itself", self), nil
}

// replacesKilled kills a task's process the hard way.
func (d *demo) replacesKilled(ctx context.Context) (string, error) {
	victim, _, err := d.one(ctx, "web", 2)
	if err != nil {
		return "", err
	}
	if victim.Status.ContainerStatus == nil || victim.Status.ContainerStatus.PID == 0 {
		return "", fmt.Errorf("task %s has no process", victim.ID)
	}
	if err := syscall.Kill(victim.Status.ContainerStatus.PID, syscall.SIGKILL); err != nil {
		return "", fmt.Errorf("kill task %s: %w", victim.ID, err)
	}
	err = eventually(ctx, 20*time.Second, func() error {
		tasks, err := d.running(ctx, "web", 2)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(tasks, func(t swarm.Task) bool { return t.ID == victim.ID }) {
			return errors.New("the killed task still counts as running")
		}
		return nil
	})
	return fmt.Sprintf("web.%d has a new task", victim.Slot), err
}
