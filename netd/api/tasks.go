package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func listTasks(w http.ResponseWriter, r *http.Request, c Control) error {
	f, err := readFilters(r, "name", "id", "label", "service", "node", "desired-state", "_up-to-date", "runtime")
	if err != nil {
		return err
	}
	if f["desired-state"], err = f.oneOf("desired-state", taskStates()...); err != nil {
		return err
	}
	if err := resolveRefs(r.Context(), c, f); err != nil {
		return err
	}
	if len(f["runtime"]) == 0 {
		f["runtime"] = []string{string(swarm.RuntimeContainer)}
	}
	tasks, err := c.ListTasks(r.Context())
	if err != nil {
		return err
	}
	services, err := servicesByID(r.Context(), c)
	if err != nil {
		return err
	}
	out := []swarm.Task{}
	for _, t := range tasks {
		svc := services[t.ServiceID]
		if f.exact("service", t.ServiceID) && f.exact("node", t.NodeID) && f.exact("desired-state", string(t.DesiredState)) &&
			f.exact("runtime", runtimeOf(t.Spec)) && f.prefix("id", t.ID) && f.prefix("name", taskName(t, svc)) && taskLabels(f, t, svc) &&
			(len(f["_up-to-date"]) == 0 || c.UpToDate(r.Context(), t)) {
			out = append(out, shownTask(t))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func taskStates() []string {
	return []string{
		"new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running",
		"complete", "shutdown", "failed", "rejected", "remove", "orphaned",
	}
}

// resolveRefs replaces names and prefixes in the filters service and node by IDs;
// one that is unknown is an error, as in Docker.
func resolveRefs(ctx context.Context, c Control, f filters) error {
	for i, ref := range f["service"] {
		svc, err := c.GetService(ctx, ref, false)
		if err != nil {
			return err
		}
		f["service"][i] = svc.ID
	}
	for i, ref := range f["node"] {
		n, err := c.GetNode(ctx, ref)
		if err != nil {
			return err
		}
		f["node"][i] = n.ID
	}
	return nil
}

func servicesByID(ctx context.Context, c ServiceControl) (map[string]swarm.Service, error) {
	services, err := c.ListServices(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]swarm.Service, len(services))
	for _, s := range services {
		out[s.ID] = s
	}
	return out, nil
}

// taskName is how the task is called: its own name if it has one, else
// <service>.<slot>.<id>, where a task without a slot has its node's ID. The tasks
// of a service that was just removed outlive its name.
func taskName(t swarm.Task, svc swarm.Service) string {
	service := cmp.Or(svc.Spec.Name, t.ServiceID)
	switch {
	case t.Name != "":
		return t.Name
	case t.Slot != 0:
		return fmt.Sprintf("%s.%d.%s", service, t.Slot, t.ID)
	}
	return fmt.Sprintf("%s.%s.%s", service, t.NodeID, t.ID)
}

// taskLabels filters by the labels of the task's service (a stack's tasks are
// found so) or its own.
func taskLabels(f filters, t swarm.Task, svc swarm.Service) bool {
	for _, want := range f["label"] {
		if !hasLabel(svc.Spec.Labels, want) && !hasLabel(t.Labels, want) {
			return false
		}
	}
	return true
}

// shownTask completes a copy of a task for the wire.
func shownTask(t swarm.Task) swarm.Task {
	t.Labels = orNone(t.Labels)
	t.Volumes = orEmpty(t.Volumes)
	return t
}

func getTask(w http.ResponseWriter, r *http.Request, c Control) error {
	t, err := c.GetTask(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shownTask(t))
}
