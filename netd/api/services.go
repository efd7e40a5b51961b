package api

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

func listServices(w http.ResponseWriter, r *http.Request, c Control) error {
	f, err := readFilters(r, "name", "id", "label", "mode", "runtime")
	if err != nil {
		return err
	}
	if len(f["runtime"]) == 0 {
		f["runtime"] = []string{string(swarm.RuntimeContainer)}
	}
	status, err := boolParam(r.URL.Query(), "status")
	if err != nil && versionOf(r) >= 41 {
		return err
	}
	services, err := c.ListServices(r.Context())
	if err != nil {
		return err
	}
	var statuses map[string]swarm.ServiceStatus
	if status && versionOf(r) >= 41 {
		if statuses, err = c.ServiceStatuses(r.Context()); err != nil {
			return err
		}
	}
	out := []swarm.Service{}
	for _, svc := range services {
		if !f.prefix("name", svc.Spec.Name) || !f.prefix("id", svc.ID) || !f.labels("label", svc.Spec.Labels) ||
			!f.exact("mode", modeOf(svc.Spec.Mode)) || !f.exact("runtime", runtimeOf(svc.Spec.TaskTemplate)) {
			continue
		}
		svc = shownService(svc)
		if count, ok := statuses[svc.ID]; ok {
			svc.ServiceStatus = &count
		}
		out = append(out, svc)
	}
	return writeJSON(w, http.StatusOK, out)
}

func modeOf(m swarm.ServiceMode) string {
	switch {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

func runtimeOf(t swarm.TaskSpec) string {
	if t.Runtime == "" {
		return string(swarm.RuntimeContainer)
	}
	return string(t.Runtime)
}

// shownService completes a copy of a service for the wire. Nothing is filled in
// that the user did not set: clients send back what they read.
func shownService(s swarm.Service) swarm.Service {
	s.Spec.Labels = orNone(s.Spec.Labels)
	if s.PreviousSpec != nil {
		previous := *s.PreviousSpec
		previous.Labels = orNone(previous.Labels)
		s.PreviousSpec = &previous
	}
	return s
}

func getService(w http.ResponseWriter, r *http.Request, c Control) error {
	insertDefaults, err := boolParam(r.URL.Query(), "insertDefaults")
	if err != nil {
		return err
	}
	svc, err := c.GetService(r.Context(), r.PathValue("id"), insertDefaults)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shownService(svc))
}

// serviceRequest is a service spec with the field that clients older than 1.44
// may still use.
type serviceRequest struct {
	swarm.ServiceSpec
	Networks []swarm.NetworkAttachmentConfig
}

// readService decodes the spec of a create or update, as the client's version
// means it.
func readService(w http.ResponseWriter, r *http.Request) (swarm.ServiceSpec, error) {
	var req serviceRequest
	if err := readJSON(w, r, &req); err != nil {
		return swarm.ServiceSpec{}, err
	}
	spec := req.ServiceSpec
	v := versionOf(r)
	if v < 44 && len(spec.TaskTemplate.Networks) == 0 {
		spec.TaskTemplate.Networks = req.Networks
	}
	dropNewer(v, &spec)
	switch spec.TaskTemplate.Runtime {
	case "", swarm.RuntimeContainer:
	case swarm.RuntimeNetworkAttachment:
		return spec, netd.Errorf(netd.ErrInvalid, "invalid task spec: spec type %q not supported", swarm.RuntimeNetworkAttachment)
	case swarm.RuntimePlugin:
		return spec, netd.Errorf(netd.ErrUnsupported, "service runtime %q is not supported: netd has no engine plugins; use a container service", swarm.RuntimePlugin)
	default:
		return spec, netd.Errorf(netd.ErrInvalid, "unsupported runtime type: %q", spec.TaskTemplate.Runtime)
	}
	if spec.TaskTemplate.PluginSpec != nil || spec.TaskTemplate.NetworkAttachmentSpec != nil {
		return spec, netd.Errorf(netd.ErrInvalid, "mismatched runtime: a container task takes a ContainerSpec only")
	}
	return spec, nil
}

func createService(w http.ResponseWriter, r *http.Request, c Control) error {
	spec, err := readService(w, r)
	if err != nil {
		return err
	}
	id, warnings, err := c.CreateService(r.Context(), spec)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: id, Warnings: orEmpty(warnings)})
}

func updateService(w http.ResponseWriter, r *http.Request, c Control) error {
	spec, err := readService(w, r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	v, err := versionParam(q, "service")
	if err != nil {
		return err
	}
	// The credentials themselves are of no use yet: no registry is asked.
	switch swarm.RegistryAuthSource(q.Get("registryAuthFrom")) {
	case "", swarm.RegistryAuthFromSpec, swarm.RegistryAuthFromPreviousSpec:
	default:
		return netd.Errorf(netd.ErrInvalid, "unsupported registryAuthFrom value")
	}
	rollback := q.Get("rollback")
	if rollback != "" && rollback != "none" && rollback != "previous" {
		return netd.Errorf(netd.ErrInvalid, "unrecognized rollback option %s", rollback)
	}
	warnings, err := c.UpdateService(r.Context(), r.PathValue("id"), v, spec, rollback == "previous")
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: orEmpty(warnings)})
}

func removeService(_ http.ResponseWriter, r *http.Request, c Control) error {
	return c.RemoveService(r.Context(), r.PathValue("id"))
}

func serviceLogs(_ http.ResponseWriter, r *http.Request, c Control) error {
	svc, err := c.GetService(r.Context(), r.PathValue("id"), false)
	if err != nil {
		return err
	}
	return netd.Errorf(netd.ErrUnsupported, "logs of service %s cannot be read through the API yet: a task's output is the file tasks/<task ID>/log in netd's data directory on the task's node; docker service ps --no-trunc %[1]s names both", svc.Spec.Name)
}

func taskLogs(_ http.ResponseWriter, r *http.Request, c Control) error {
	t, err := c.GetTask(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return netd.Errorf(netd.ErrUnsupported, "logs of task %s cannot be read through the API yet: its output is the file tasks/%[1]s/log in netd's data directory on node %s", t.ID, t.NodeID)
}

// dropNewer removes from a spec what the client's version cannot mean: an older
// client that saw the field in an answer must not store it (Docker's
// adjustForAPIVersion).
func dropNewer(v version, spec *swarm.ServiceSpec) {
	t := &spec.TaskTemplate
	if v < 41 {
		spec.Mode.ReplicatedJob, spec.Mode.GlobalJob = nil, nil
		if t.Resources != nil && t.Resources.Limits != nil {
			t.Resources.Limits.Pids = 0
		}
	}
	if v < 40 && t.Placement != nil {
		t.Placement.MaxReplicas = 0
	}
	if v < 52 && t.Resources != nil {
		t.Resources.SwapBytes, t.Resources.MemorySwappiness = nil, nil
	}
	if t.ContainerSpec != nil {
		dropNewerContainer(v, t.ContainerSpec)
	}
}

func dropNewerContainer(v version, c *swarm.ContainerSpec) {
	if v < 40 {
		c.Sysctls = nil
		if c.Privileges != nil && c.Privileges.CredentialSpec != nil {
			c.Privileges.CredentialSpec.Config = ""
		}
		for _, config := range c.Configs {
			if config != nil {
				config.Runtime = nil
			}
		}
	}
	if v < 41 {
		c.CapabilityAdd, c.CapabilityDrop, c.Ulimits = nil, nil, nil
	}
	if v < 44 {
		if c.Privileges != nil {
			c.Privileges.Seccomp, c.Privileges.AppArmor, c.Privileges.NoNewPrivileges = nil, nil, false
		}
		if c.Healthcheck != nil {
			c.Healthcheck.StartInterval = 0
		}
	}
	if v < 46 {
		c.OomScoreAdj = 0
		for _, m := range c.Mounts {
			if m.TmpfsOptions != nil {
				m.TmpfsOptions.Options = nil
			}
		}
	}
}
