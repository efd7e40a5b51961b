package orchestrator

import (
	"context"

	"github.com/moby/moby/api/types/swarm"
	"netd"
	"netd/orchestrator/store"
	"netd/pki"
)

const (
	swarmName   = "default"
	ingressName = "ingress"
)

// Init writes what a new swarm begins with: itself, its first manager, and the
// ingress network.
func (o *Orchestrator) Init(ctx context.Context, cluster store.Cluster, first swarm.Node) error {
	if err := checkSwarm(&cluster.Spec); err != nil {
		return err
	}
	return o.store.Update(ctx, func(tx *store.Tx) error {
		if tx.Cluster() != nil {
			return netd.Errorf(netd.ErrExists, "this store holds a swarm already: leave it first")
		}
		if first.ManagerStatus != nil {
			status := *first.ManagerStatus
			status.Leader, status.Reachability = true, swarm.ReachabilityReachable
			first.ManagerStatus = &status
		}
		first.Spec.Role = swarm.NodeRoleManager
		first.Spec.Labels = labels(first.Spec.Labels)
		if first.Spec.Availability == "" {
			first.Spec.Availability = swarm.NodeAvailabilityActive
		}
		if first.Status.State == "" {
			first.Status.State = swarm.NodeStateUnknown
		}
		for _, obj := range []any{&cluster, &first} {
			if err := tx.Put(obj); err != nil {
				return err
			}
		}
		ingress := &swarm.Network{ID: o.newID(), Spec: swarm.NetworkSpec{
			Annotations:         swarm.Annotations{Name: ingressName, Labels: map[string]string{}},
			DriverConfiguration: &swarm.Driver{Name: driverOverlay},
			IPAMOptions:         &swarm.IPAMOptions{Driver: swarm.Driver{Name: driverIPAM}, Configs: []swarm.IPAMConfig{}},
			Ingress:             true,
			Scope:               scopeSwarm,
		}}
		if err := allocateNetwork(tx, ingress); err != nil {
			return err
		}
		return tx.Put(ingress)
	})
}

// checkSwarm refuses a spec that cannot be kept, and fills in its name.
func checkSwarm(spec *swarm.Spec) error {
	if spec.Name == "" {
		spec.Name = swarmName
	}
	spec.Labels = labels(spec.Labels)
	switch {
	case spec.Name != swarmName:
		return netd.Errorf(netd.ErrInvalid, "swarm spec must be named %q", swarmName)
	case spec.EncryptionConfig.AutoLockManagers:
		return netd.Errorf(netd.ErrUnsupported, "locking managers is not supported yet: leave --autolock off")
	case len(spec.CAConfig.ExternalCAs) > 0, spec.CAConfig.SigningCAKey != "":
		return netd.Errorf(netd.ErrUnsupported, "an external or given CA is not supported yet")
	case spec.CAConfig.NodeCertExpiry < 0, spec.Dispatcher.HeartbeatPeriod < 0:
		return invalid("a period cannot be negative")
	case spec.CAConfig.NodeCertExpiry != 0 && spec.CAConfig.NodeCertExpiry < pki.MinLifetime:
		return invalid("minimum certificate expiry time is: %s", pki.MinLifetime) // else no node could join
	}
	return nil
}

// Swarm returns the swarm itself, with its join tokens.
func (o *Orchestrator) Swarm(context.Context) (swarm.Swarm, error) {
	c := o.store.View().Cluster()
	if c == nil {
		return swarm.Swarm{}, netd.Errorf(netd.ErrUnavailable, "the swarm is not known to this manager yet: try again")
	}
	s := swarm.Swarm{
		ClusterInfo: swarm.ClusterInfo{
			ID: c.ID, Meta: c.Meta, Spec: c.Spec,
			TLSInfo:         swarm.TLSInfo{TrustRoot: string(c.CACert)},
			DefaultAddrPool: c.DefaultAddrPool, SubnetSize: c.SubnetSize, DataPathPort: c.DataPathPort,
		},
		JoinTokens: c.JoinTokens,
	}
	if ca, err := pki.LoadCA(c.CACert, nil); err == nil {
		s.TLSInfo.CertIssuerSubject = ca.Cert.RawSubject
		s.TLSInfo.CertIssuerPublicKey = ca.Cert.RawSubjectPublicKeyInfo
	}
	return s, nil
}

// UpdateSwarm replaces the swarm's spec and, where asked, its join tokens: the
// old ones then admit nobody.
func (o *Orchestrator) UpdateSwarm(ctx context.Context, version uint64, spec swarm.Spec, rotateWorker, rotateManager bool) error {
	if err := checkSwarm(&spec); err != nil {
		return err
	}
	return o.store.Update(ctx, func(tx *store.Tx) error {
		old := tx.Cluster()
		if old == nil {
			return netd.Errorf(netd.ErrNotFound, "this node is not part of a swarm")
		}
		if old.Version.Index != version {
			return outOfSequence()
		}
		if spec.CAConfig.ForceRotate != old.Spec.CAConfig.ForceRotate {
			return netd.Errorf(netd.ErrUnsupported, "rotating the root CA is not supported yet")
		}
		c := *old
		c.Spec = spec
		ca, err := pki.LoadCA(c.CACert, nil)
		if err != nil {
			return err
		}
		if rotateWorker {
			if c.JoinTokens.Worker, err = pki.NewToken(ca); err != nil {
				return err
			}
		}
		if rotateManager {
			if c.JoinTokens.Manager, err = pki.NewToken(ca); err != nil {
				return err
			}
		}
		return tx.Put(&c)
	})
}
