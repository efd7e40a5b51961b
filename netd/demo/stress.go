package demo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	ns "netd/internal/netns"
)

// load is requests without a pause from the client task, until stopped.
type load struct {
	cancel context.CancelFunc
	done   chan struct{}
	total  calls
	err    error
}

func (in inside) load(ctx context.Context, target string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for ctx.Err() == nil {
			// A batch that has begun is finished: its outcome must be known.
			c, err := in.call(context.WithoutCancel(ctx), target, 20)
			if err != nil {
				l.err = err
				return
			}
			l.total.OK += c.OK
			l.total.Failed += c.Failed
			l.total.Error = cmp.Or(l.total.Error, c.Error)
		}
	}()
	return l
}

func (l *load) stop() (calls, error) {
	l.cancel()
	<-l.done
	return l.total, l.err
}

func (d *demo) scale(ctx context.Context, replicas uint64) error {
	docker := d.nodes[0].docker
	service, err := docker.ServiceInspect(ctx, "web", client.ServiceInspectOptions{})
	if err != nil {
		return err
	}
	service.Service.Spec.Mode.Replicated.Replicas = &replicas
	_, err = docker.ServiceUpdate(ctx, service.Service.ID, client.ServiceUpdateOptions{Version: service.Service.Version, Spec: service.Service.Spec})
	return err
}

// scaleUnderLoad changes the number of tasks while the client keeps asking, and
// goes on asking until the last change has come through.
func (d *demo) scaleUnderLoad(ctx context.Context, n int) (string, error) {
	_, in, err := d.one(ctx, "client", 1)
	if err != nil {
		return "", err
	}
	l := in.load(ctx, "http://web/")
	err = d.scale(ctx, uint64(n))
	if err == nil {
		_, err = d.running(ctx, "web", n)
	}
	if err == nil {
		err = d.gone(ctx, "web", n)
	}
	if err == nil {
		_, err = d.listsTasks(ctx, n)
	}
	total, lerr := l.stop()
	if err := errors.Join(err, lerr); err != nil {
		return "", err
	}
	if total.Failed > 0 {
		return "", fmt.Errorf("%d of %d requests failed: %s", total.Failed, total.OK+total.Failed, total.Error)
	}
	return fmt.Sprintf("%d requests, 0 lost", total.OK), nil
}

// gone waits until every process of the service but n has ended on every node.
func (d *demo) gone(ctx context.Context, service string, n int) error {
	return eventually(ctx, 30*time.Second, func() error {
		list, err := d.nodes[0].docker.TaskList(ctx, client.TaskListOptions{Filters: client.Filters{}.Add("service", service)})
		if err != nil {
			return err
		}
		live := slices.DeleteFunc(list.Items, func(t swarm.Task) bool { return t.Status.State != swarm.TaskStateRunning })
		if len(live) != n {
			return fmt.Errorf("%d tasks of %s still run, want %d", len(live), service, n)
		}
		return nil
	})
}

// cutAndHeal takes a worker off the underlay: its task of web must come up
// elsewhere; back on the wire, the old one must end and the node take tasks again.
func (d *demo) cutAndHeal(ctx context.Context) {
	if err := d.scale(ctx, size); err != nil {
		d.failed = append(d.failed, err.Error())
		return
	}
	tasks, err := d.running(ctx, "web", size)
	var victim *node
	var old swarm.Task
	for _, t := range tasks {
		if n := d.nodeOf(t); n != nil && n != d.nodes[0] {
			victim, old = n, t
		}
	}
	if err != nil || victim == nil {
		d.check("a node to cut off", func() (string, error) { return "", errors.Join(err, errors.New("no worker runs a task of web")) })
		return
	}
	d.check("the tasks of a node that is cut off are replaced elsewhere", func() (string, error) {
		return d.replacedElsewhere(ctx, victim)
	})
	d.check("after it heals, its old tasks are stopped", func() (string, error) {
		if err := d.plug(victim, true); err != nil {
			return "", err
		}
		if _, err := d.nodesReady(ctx); err != nil {
			return "", err
		}
		in := d.inside("web", old)
		err := eventually(ctx, 30*time.Second, func() error {
			if ns.Exists(in.netns) {
				return fmt.Errorf("task %s still has its namespace on %s", old.ID, victim.name)
			}
			return nil
		})
		return fmt.Sprintf("%s is ready, %s is gone", victim.name, in.name), err
	})
	d.check("a scale-up uses the healed node again", func() (string, error) {
		if err := d.scale(ctx, 2*size); err != nil {
			return "", err
		}
		tasks, err := d.running(ctx, "web", 2*size)
		if err != nil {
			return "", err
		}
		if on := d.placed(tasks); !slices.Contains(on, victim.name) {
			return "", fmt.Errorf("web runs on %v", on)
		}
		return d.listsTasks(ctx, 2*size)
	})
}

func (d *demo) replacedElsewhere(ctx context.Context, victim *node) (string, error) {
	if err := d.plug(victim, false); err != nil {
		return "", err
	}
	cut := time.Now()
	err := eventually(ctx, 40*time.Second, func() error {
		tasks, err := d.running(ctx, "web", size)
		if err != nil {
			return err
		}
		if on := d.placed(tasks); slices.Contains(on, victim.name) {
			return fmt.Errorf("web still counts on %v", on)
		}
		return nil
	})
	return fmt.Sprintf("%s cut off, %d tasks elsewhere after %s", victim.name, size, time.Since(cut).Round(100*time.Millisecond)), err
}

// noDrift asks every node whether its kernel is as wanted.
func (d *demo) noDrift(ctx context.Context) (string, error) {
	for _, n := range d.nodes {
		err := eventually(ctx, 10*time.Second, func() error {
			var out bytes.Buffer
			cmd := exec.CommandContext(ctx, d.Binary, "drift", "--socket", n.socket())
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w: %s", n.name, err, strings.TrimSpace(out.String()))
			}
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return "0 objects differ on 3 nodes", nil
}
