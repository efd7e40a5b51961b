package orchestrator

import (
	"context"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/store"
)

func findService(tx *store.Tx, ref string) (*swarm.Service, error) {
	return lookup[swarm.Service]{
		"service", ref, tx.Service, tx.Services,
		func(s *swarm.Service) string { return s.ID }, func(s *swarm.Service) string { return s.Spec.Name },
	}.find()
}

// ListServices returns all services, sorted by ID.
func (o *Orchestrator) ListServices(context.Context) ([]swarm.Service, error) {
	return values(o.store.View().Services()), nil
}

// GetService returns the service with the ID, name or ID prefix. With
// insertDefaults, what its spec leaves open is filled in, for people to read:
// never send that back in an update.
func (o *Orchestrator) GetService(_ context.Context, ref string, insertDefaults bool) (swarm.Service, error) {
	s, err := value(findService(o.store.View(), ref))
	if err == nil && insertDefaults {
		s.Spec = withDefaults(s.Spec)
	}
	return s, err
}

// ServiceStatuses counts each service's tasks, by service ID.
func (o *Orchestrator) ServiceStatuses(context.Context) (map[string]swarm.ServiceStatus, error) {
	tx := o.store.View()
	all := map[string]swarm.ServiceStatus{}
	for _, s := range tx.Services() {
		var st swarm.ServiceStatus
		if s.Spec.Mode.Replicated != nil {
			st.DesiredTasks = uint64(replicas(s))
		}
		for _, t := range tx.TasksByService(s.ID) {
			if !wanted(t) {
				continue
			}
			if s.Spec.Mode.Global != nil {
				st.DesiredTasks++
			}
			if n := tx.Node(t.NodeID); t.Status.State == swarm.TaskStateRunning && n != nil && n.Status.State != swarm.NodeStateDown {
				st.RunningTasks++
			}
		}
		all[s.ID] = st
	}
	return all, nil
}

// CreateService makes a service; its tasks follow.
func (o *Orchestrator) CreateService(ctx context.Context, spec swarm.ServiceSpec) (id string, warnings []string, err error) {
	spec, err = checkService(spec)
	if err != nil {
		return "", nil, err
	}
	id = o.newID()
	now := o.now()
	err = o.store.Update(ctx, func(tx *store.Tx) error {
		s := swarm.Service{ID: id, Spec: spec}
		if s.Spec.Name == "" {
			s.Spec.Name = randomName(func(name string) bool { return tx.ServiceByName(name) != nil })
		}
		if tx.ServiceByName(s.Spec.Name) != nil {
			return swarmError(netd.ErrExists, "AlreadyExists", "name conflicts with an existing object: service %s already exists", s.Spec.Name)
		}
		if err := resolve(tx, &s); err != nil {
			return err
		}
		p := o.newPass(tx, now)
		p.put(&s)
		p.allocateService(&s)
		return p.err
	})
	if err != nil {
		return "", nil, err
	}
	return id, nil, nil
}

// UpdateService replaces the service's spec, or with rollback goes back to the
// one before. Version must be that of the object the caller has seen. When tasks
// have to change, the update is in progress with the same write: a client that
// looks at once does not take the end of the last update for that of this one.
func (o *Orchestrator) UpdateService(ctx context.Context, ref string, version uint64, spec swarm.ServiceSpec, rollback bool) (warnings []string, err error) {
	if !rollback {
		if spec, err = checkService(spec); err != nil {
			return nil, err
		}
	}
	now := o.now()
	err = o.store.Update(ctx, func(tx *store.Tx) error {
		old, err := findService(tx, ref)
		if err != nil {
			return err
		}
		if old.Version.Index != version {
			return outOfSequence()
		}
		s := *old
		if rollback {
			if old.PreviousSpec == nil {
				return precondition("service %s does not have a previous spec", old.ID)
			}
			spec = *old.PreviousSpec
		}
		if spec.Name == "" {
			spec.Name = old.Spec.Name
		}
		s.Spec, s.PreviousSpec = spec, &old.Spec
		if err := checkUpdate(old, &s); err != nil {
			return err
		}
		if err := resolve(tx, &s); err != nil {
			return err
		}
		p := o.newPass(tx, now)
		s.UpdateStatus = p.statusAfter(old, &s, rollback)
		p.put(&s)
		p.allocateService(&s)
		return p.err
	})
	if err != nil {
		return nil, err
	}
	return nil, nil
}

// statusAfter is the update status that a new spec begins with: none when no
// task has to change for it.
func (p *pass) statusAfter(old, s *swarm.Service, rollback bool) *swarm.UpdateStatus {
	now := p.now.UTC()
	if rollback {
		return &swarm.UpdateStatus{State: swarm.UpdateStateRollbackStarted, StartedAt: &now, Message: messageRollback}
	}
	for _, t := range p.tx.TasksByService(old.ID) {
		if wanted(t) && p.dirty(s, t) {
			return &swarm.UpdateStatus{State: swarm.UpdateStateUpdating, StartedAt: &now, Message: messageUpdating}
		}
	}
	return nil
}

// checkUpdate refuses what an update cannot change.
func checkUpdate(old, s *swarm.Service) error {
	if old.Spec.Name != s.Spec.Name {
		return unimplemented("renaming services is not supported")
	}
	if (old.Spec.Mode.Replicated == nil) != (s.Spec.Mode.Replicated == nil) || (old.Spec.Mode.Global == nil) != (s.Spec.Mode.Global == nil) {
		return unimplemented("service mode change is not allowed")
	}
	return nil
}

// RemoveService removes the service at once; its tasks stop and go.
func (o *Orchestrator) RemoveService(ctx context.Context, ref string) error {
	return o.store.Update(ctx, func(tx *store.Tx) error {
		s, err := findService(tx, ref)
		if err != nil {
			return err
		}
		for _, t := range tx.TasksByService(s.ID) {
			c := *t
			c.DesiredState = swarm.TaskStateRemove
			if err := tx.Put(&c); err != nil {
				return err
			}
		}
		return tx.Delete(s)
	})
}

// findTask finds a task by ID, by its full name such as web.1.<ID>, or by ID prefix.
func findTask(tx *store.Tx, ref string) (*swarm.Task, error) {
	return lookup[swarm.Task]{
		"task", ref, tx.Task, tx.Tasks,
		func(t *swarm.Task) string { return t.ID },
		func(t *swarm.Task) string {
			if s := tx.Service(t.ServiceID); s != nil {
				return TaskName(s.Spec.Name, t)
			}
			return ""
		},
	}.find()
}

// ListTasks returns all tasks, sorted by ID.
func (o *Orchestrator) ListTasks(context.Context) ([]swarm.Task, error) {
	return values(o.store.View().Tasks()), nil
}

// GetTask returns the task with the ID, name or ID prefix.
func (o *Orchestrator) GetTask(_ context.Context, ref string) (swarm.Task, error) {
	return value(findTask(o.store.View(), ref))
}

// UpToDate reports whether the task is what its service now asks for: an update
// would leave it alone.
func (o *Orchestrator) UpToDate(_ context.Context, t swarm.Task) bool {
	tx := o.store.View()
	s := tx.Service(t.ServiceID)
	return s != nil && !dirty(s, &t, tx.Node(t.NodeID))
}
