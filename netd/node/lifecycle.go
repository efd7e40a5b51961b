package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"netd"
	"netd/netd/task"
)

// How long a task that leaves may take at each step. A backend leaves in this
// order: withdrawn everywhere and acknowledged, then a pause for connections
// that were on their way, then the stop signal.
const (
	// drainTimeout bounds the wait for acknowledgements: a node that is gone
	// without being noticed must not keep a task alive for ever.
	drainTimeout = 10 * time.Second
	// drainLinger lets a packet that a peer balanced just before its own change
	// reach the task while its listener is still open.
	drainLinger = 300 * time.Millisecond
)

// action is the next thing to do for one task.
type action uint8

const (
	wait action = iota
	prepare
	start
	drain
	stop
	remove
)

// String returns the action's name, for logs and tests.
func (a action) String() string {
	return [...]string{"wait", "prepare", "start", "drain", "stop", "remove"}[a]
}

// situation is all that decides a task's next step.
type situation struct {
	// wanted is the task as the managers assigned it; nil when they no longer do.
	wanted *swarm.Task
	// actual is what the runtime has of it; nil when nothing.
	actual *task.Status
	// refusal is why the runtime cannot run it, or could not prepare or start it;
	// or nil.
	refusal error
	// plugged is true once all of the task's interfaces are in place.
	plugged bool
	// draining is since when the task has been withdrawn; zero if it is not.
	draining time.Time
	// unacknowledged counts the live nodes that still send it new connections;
	// acknowledged is since when there have been none, zero before that.
	acknowledged time.Time
	now          time.Time
}

// step is what follows from a situation.
type step struct {
	do action
	// report is the status that the managers should have; nil for nothing new.
	report *swarm.TaskStatus
	// state is what peers should know of the endpoint; zero for nothing.
	state netd.EndpointState
	// again asks to look at the task again after this time, even if nothing changes.
	again time.Duration
}

// decide gives a task's next step. Pure; asked again after every change.
func decide(s situation) step {
	leaving := s.wanted == nil || terminal(s.wanted.DesiredState)
	switch {
	case s.actual == nil && leaving:
		return step{do: wait, report: s.status(swarm.TaskStateShutdown, "shutdown", "")}
	case s.actual == nil && terminal(s.wanted.Status.State):
		return step{do: wait} // it has had its run, and nothing of it is left
	case s.actual == nil && s.refusal != nil:
		return step{do: wait, report: s.status(swarm.TaskStateRejected, "preparing", s.refusal.Error())}
	case s.actual == nil && begun(s.wanted.Status.State):
		return step{do: wait, report: s.status(swarm.TaskStateFailed, "lost", "task is no longer on its node")}
	case s.actual == nil:
		return step{do: prepare, report: s.status(swarm.TaskStatePreparing, "preparing", "")}
	case s.actual.Phase == task.Created && leaving:
		return step{do: remove, report: s.status(swarm.TaskStateShutdown, "shutdown", "")}
	case s.actual.Phase == task.Created:
		return s.created()
	case s.actual.Phase == task.Running && leaving:
		return s.leave()
	case s.actual.Phase == task.Running:
		return s.running()
	default:
		return s.ended(leaving)
	}
}

// created: the namespace exists; the process waits for its network and for the
// managers' word.
func (s situation) created() step {
	if s.refusal != nil || terminal(s.wanted.Status.State) {
		return step{do: wait, report: s.status(swarm.TaskStateFailed, "starting", text(s.refusal))}
	}
	if !s.plugged {
		return step{do: wait, report: s.status(swarm.TaskStatePreparing, "preparing", s.actual.Err)}
	}
	if s.wanted.DesiredState != swarm.TaskStateRunning {
		return step{do: wait, report: s.status(swarm.TaskStateReady, "prepared", "")}
	}
	return step{do: start, report: s.status(swarm.TaskStateStarting, "starting", "")}
}

func (s situation) running() step {
	switch s.actual.Health {
	case task.HealthStarting:
		return step{do: wait, report: s.status(swarm.TaskStateStarting, "starting", "")}
	case task.HealthUnhealthy:
		return step{do: stop, state: netd.Draining}
	}
	if !s.plugged {
		return step{do: wait, report: s.status(swarm.TaskStateRunning, "started", "")}
	}
	return step{do: wait, report: s.status(swarm.TaskStateRunning, "started", ""), state: netd.Ready}
}

// leave takes the task out of service before it is stopped.
func (s situation) leave() step {
	if s.draining.IsZero() {
		return step{do: drain, state: netd.Draining}
	}
	deadline := s.draining.Add(drainTimeout)
	if !s.acknowledged.IsZero() {
		deadline = earlier(deadline, s.acknowledged.Add(drainLinger))
	}
	if left := deadline.Sub(s.now); left > 0 {
		return step{do: wait, state: netd.Draining, again: left}
	}
	return step{do: stop, state: netd.Draining}
}

// ended: the process is gone.
func (s situation) ended(leaving bool) step {
	switch {
	case s.wanted == nil:
		return step{do: remove}
	case leaving:
		return step{do: wait, report: s.status(swarm.TaskStateShutdown, "shutdown", "")}
	case s.actual.Health == task.HealthUnhealthy:
		return step{do: wait, report: s.status(swarm.TaskStateFailed, "started", "task: unhealthy: its health check failed")}
	case s.actual.Phase == task.Failed:
		return step{do: wait, report: s.status(swarm.TaskStateFailed, "starting", s.actual.Err)}
	case s.actual.ExitCode != 0:
		return step{do: wait, report: s.status(swarm.TaskStateFailed, "started", fmt.Sprintf("task: non-zero exit (%d)", s.actual.ExitCode))}
	default:
		return step{do: wait, report: s.status(swarm.TaskStateComplete, "finished", "")}
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// status words a report, or nil where the managers have it already. Time stays
// zero: the loop that sends it knows the time.
func (s situation) status(state swarm.TaskState, message, err string) *swarm.TaskStatus {
	if s.wanted == nil || terminal(s.wanted.Status.State) {
		return nil
	}
	st := &swarm.TaskStatus{State: state, Message: message, Err: bounded(err)}
	if s.actual != nil {
		st.ContainerStatus = &swarm.ContainerStatus{ContainerID: s.actual.ID, PID: s.actual.Pid, ExitCode: s.actual.ExitCode}
	}
	if have := s.wanted.Status; have.State == st.State && have.Err == st.Err && samePid(have.ContainerStatus, st.ContainerStatus) {
		return nil
	}
	return st
}

// maxErr is how many bytes of an error the managers store. A longer one, or one
// that they would have to mend, would never be what they have, and be sent for ever.
const maxErr = 4096

func bounded(text string) string {
	text = strings.ToValidUTF8(text, "")
	if len(text) > maxErr {
		text = strings.ToValidUTF8(text[:maxErr], "") // the cut may go through a character
	}
	return text
}

func samePid(a, b *swarm.ContainerStatus) bool {
	return a == nil && b == nil || a != nil && b != nil && a.PID == b.PID && a.ExitCode == b.ExitCode
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// terminal is true for the states that end a task, observed or desired.
func terminal(state swarm.TaskState) bool {
	switch state {
	case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed,
		swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned:
		return true
	}
	return false
}

// begun is true for the observed states in which a process exists.
func begun(state swarm.TaskState) bool {
	return state == swarm.TaskStateStarting || state == swarm.TaskStateRunning
}
