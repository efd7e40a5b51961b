package node

import (
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/netd/task"
)

// Each situation of a task has one next step, one report and one word to peers.
func TestDecide(t *testing.T) {
	now := time.Unix(1000, 0)
	wanted := func(desired, observed swarm.TaskState) *swarm.Task {
		return &swarm.Task{ID: "t", DesiredState: desired, Status: swarm.TaskStatus{State: observed}}
	}
	actual := func(p task.Phase, h task.Health, code int) *task.Status {
		return &task.Status{ID: "t", Phase: p, Health: h, ExitCode: code, Pid: 7}
	}
	const none = swarm.TaskState("")
	running, shutdown, assigned := swarm.TaskStateRunning, swarm.TaskStateShutdown, swarm.TaskStateAssigned
	for name, c := range map[string]struct {
		s      situation
		do     action
		report swarm.TaskState
		state  netd.EndpointState
	}{
		"assigned and unknown: make it":       {situation{wanted: wanted(running, assigned)}, prepare, swarm.TaskStatePreparing, 0},
		"the runtime refuses it":              {situation{wanted: wanted(running, assigned), refusal: errors.New("no")}, wait, swarm.TaskStateRejected, 0},
		"it could not be started":             {situation{wanted: wanted(running, assigned), actual: actual(task.Created, task.HealthNone, 0), plugged: true, refusal: errors.New("no")}, wait, swarm.TaskStateFailed, 0},
		"it failed, and was not started":      {situation{wanted: wanted(running, swarm.TaskStateFailed), actual: actual(task.Created, task.HealthNone, 0), plugged: true}, wait, none, 0},
		"it ended, and nothing is left of it": {situation{wanted: wanted(running, swarm.TaskStateComplete)}, wait, none, 0},
		"it ran, and is gone":                 {situation{wanted: wanted(running, running)}, wait, swarm.TaskStateFailed, 0},
		"never begun and not wanted":          {situation{wanted: wanted(shutdown, assigned)}, wait, shutdown, 0},
		"made, interfaces missing":            {situation{wanted: wanted(running, assigned), actual: actual(task.Created, task.HealthNone, 0)}, wait, swarm.TaskStatePreparing, 0},
		"made and plugged: start":             {situation{wanted: wanted(running, assigned), actual: actual(task.Created, task.HealthNone, 0), plugged: true}, start, swarm.TaskStateStarting, 0},
		"made, to be held back":               {situation{wanted: wanted(swarm.TaskStateReady, assigned), actual: actual(task.Created, task.HealthNone, 0), plugged: true}, wait, swarm.TaskStateReady, 0},
		"made, no longer wanted":              {situation{wanted: wanted(shutdown, assigned), actual: actual(task.Created, task.HealthNone, 0)}, remove, shutdown, 0},
		"running, health unknown yet":         {situation{wanted: wanted(running, assigned), actual: actual(task.Running, task.HealthStarting, 0), plugged: true}, wait, swarm.TaskStateStarting, 0},
		"running and healthy":                 {situation{wanted: wanted(running, assigned), actual: actual(task.Running, task.HealthHealthy, 0), plugged: true}, wait, running, netd.Ready},
		"running without a health check":      {situation{wanted: wanted(running, assigned), actual: actual(task.Running, task.HealthNone, 0), plugged: true}, wait, running, netd.Ready},
		"running, its path not built":         {situation{wanted: wanted(running, assigned), actual: actual(task.Running, task.HealthNone, 0)}, wait, running, 0},
		"running and unhealthy: stop":         {situation{wanted: wanted(running, running), actual: actual(task.Running, task.HealthUnhealthy, 0), plugged: true}, stop, none, netd.Draining},
		"to be stopped: withdraw first":       {situation{wanted: wanted(shutdown, running), actual: actual(task.Running, task.HealthNone, 0), plugged: true}, drain, none, netd.Draining},
		"withdrawn, peers have not said so":   {situation{wanted: wanted(shutdown, running), actual: actual(task.Running, task.HealthNone, 0), draining: now.Add(-time.Second)}, wait, none, netd.Draining},
		"withdrawn, peers said so just now":   {situation{wanted: wanted(shutdown, running), actual: actual(task.Running, task.HealthNone, 0), draining: now.Add(-time.Second), acknowledged: now}, wait, none, netd.Draining},
		"withdrawn and lingered: stop":        {situation{wanted: wanted(shutdown, running), actual: actual(task.Running, task.HealthNone, 0), draining: now.Add(-time.Second), acknowledged: now.Add(-drainLinger)}, stop, none, netd.Draining},
		"peers never answered: stop":          {situation{wanted: wanted(shutdown, running), actual: actual(task.Running, task.HealthNone, 0), draining: now.Add(-drainTimeout)}, stop, none, netd.Draining},
		"forgotten by the managers: withdraw": {situation{actual: actual(task.Running, task.HealthNone, 0)}, drain, none, netd.Draining},
		"forgotten and ended: remove":         {situation{actual: actual(task.Exited, task.HealthNone, 0)}, remove, none, 0},
		"ended well":                          {situation{wanted: wanted(running, running), actual: actual(task.Exited, task.HealthNone, 0)}, wait, swarm.TaskStateComplete, 0},
		"ended badly":                         {situation{wanted: wanted(running, running), actual: actual(task.Exited, task.HealthNone, 3)}, wait, swarm.TaskStateFailed, 0},
		"could not start":                     {situation{wanted: wanted(running, assigned), actual: actual(task.Failed, task.HealthNone, 0)}, wait, swarm.TaskStateFailed, 0},
		"stopped as wanted":                   {situation{wanted: wanted(shutdown, running), actual: actual(task.Exited, task.HealthNone, 143)}, wait, shutdown, 0},
		"failed and already reported":         {situation{wanted: wanted(running, swarm.TaskStateFailed), actual: actual(task.Exited, task.HealthNone, 3)}, wait, none, 0},
	} {
		c.s.now = now
		got := decide(c.s)
		report := none
		if got.report != nil {
			report = got.report.State
		}
		if got.do != c.do || report != c.report || got.state != c.state {
			t.Errorf("%s: got %s, report %q, peers %s; want %s, %q, %s", name, got.do, report, got.state, c.do, c.report, c.state)
		}
	}
}

// What the managers already know is not reported again.
func TestDecideReportsNewsOnly(t *testing.T) {
	s := situation{
		wanted: &swarm.Task{ID: "t", DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{
			State: swarm.TaskStateRunning, ContainerStatus: &swarm.ContainerStatus{PID: 7},
		}},
		actual: &task.Status{ID: "t", Phase: task.Running, Pid: 7}, plugged: true, now: time.Unix(1, 0),
	}
	if got := decide(s); got.report != nil {
		t.Errorf("reported %+v again", *got.report)
	}
}

// However long and broken an error is, the managers have it after one report:
// what they store of it is what the node compares with.
func TestDecideBoundsErrors(t *testing.T) {
	for name, long := range map[string]string{
		"long": strings.Repeat("x", 5000), "cut through a character": "x" + strings.Repeat("é", 3000), "no UTF-8": "a\xff\xfeb", "short": "no",
	} {
		s := situation{
			wanted:  &swarm.Task{ID: "t", DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStateAssigned}},
			refusal: errors.New(long), now: time.Unix(1, 0),
		}
		got := decide(s)
		if got.report == nil || len(got.report.Err) > 4096 || !utf8.ValidString(got.report.Err) || len(long) > 4096 && len(got.report.Err) < 4090 {
			t.Fatalf("%s: reported %+v", name, got.report)
		}
	}
}
