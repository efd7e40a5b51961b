package api

import (
	"context"
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"netd"
)

func (s *server) initSwarm(w http.ResponseWriter, r *http.Request) error {
	var req swarm.InitRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	v := versionOf(r)
	if v < 39 {
		req.DefaultAddrPool, req.SubnetSize = nil, 0
	}
	if v < 40 {
		req.DataPathPort = 0
	}
	if err := checkInit(&req); err != nil {
		return err
	}
	id, err := s.Local.Init(r.Context(), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, id)
}

// checkInit makes Docker's checks of form, and names the spec.
func checkInit(req *swarm.InitRequest) error {
	if req.ListenAddr == "" {
		return netd.Errorf(netd.ErrInvalid, `invalid ListenAddr "": invalid empty address`)
	}
	if err := checkSwarmSpec(&req.Spec); err != nil {
		return err
	}
	if req.AutoLockManagers {
		return noAutolock()
	}
	if p := req.DataPathPort; p != 0 && (p < 1024 || p > 49151) {
		return netd.Errorf(netd.ErrInvalid, "Datapath port number is not in valid range (1024-49151) : %d", p)
	}
	if err := checkAvailability(req.Availability); err != nil {
		return err
	}
	return checkAddrPools(req)
}

func checkAddrPools(req *swarm.InitRequest) error {
	if req.SubnetSize > 30 {
		return netd.Errorf(netd.ErrInvalid, "subnet size is out of range: %d", req.SubnetSize)
	}
	for i, pool := range req.DefaultAddrPool {
		if !pool.IsValid() || !pool.Addr().Is4() {
			return netd.Errorf(netd.ErrInvalid, "invalid default address pool %q: want an IPv4 prefix such as 10.20.0.0/16", pool)
		}
		if req.SubnetSize != 0 && int(req.SubnetSize) < pool.Bits() {
			return netd.Errorf(netd.ErrInvalid, "invalid CIDR: %q. Subnet size is too small for pool: %d", pool, req.SubnetSize)
		}
		for _, other := range req.DefaultAddrPool[:i] {
			if pool.Overlaps(other) {
				return netd.Errorf(netd.ErrInvalid, "invalid CIDR: %q overlaps with %q", pool, other)
			}
		}
	}
	return nil
}

// checkSwarmSpec checks what does not depend on the swarm's state.
func checkSwarmSpec(spec *swarm.Spec) error {
	switch {
	case spec.Name == "":
		spec.Name = "default"
	case spec.Name != "default":
		return netd.Errorf(netd.ErrInvalid, `swarm spec must be named "default"`)
	}
	if spec.EncryptionConfig.AutoLockManagers {
		return noAutolock()
	}
	return nil
}

func noAutolock() error {
	return netd.Errorf(netd.ErrUnsupported, "autolock is not supported by this version of netd: its state on disk is sealed with a key that is kept beside it, readable by root only")
}

func checkAvailability(a swarm.NodeAvailability) error {
	switch a {
	case "", swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
		return nil
	}
	return netd.Errorf(netd.ErrInvalid, "invalid Availability: %q", a)
}

func (s *server) joinSwarm(w http.ResponseWriter, r *http.Request) error {
	var req swarm.JoinRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	if req.ListenAddr == "" {
		return netd.Errorf(netd.ErrInvalid, `invalid ListenAddr "": invalid empty address`)
	}
	if len(req.RemoteAddrs) == 0 {
		return netd.Errorf(netd.ErrInvalid, "at least 1 RemoteAddr is required to join")
	}
	for _, addr := range req.RemoteAddrs {
		if addr == "" {
			return netd.Errorf(netd.ErrInvalid, `invalid remoteAddr "": invalid empty address`)
		}
	}
	if err := checkAvailability(req.Availability); err != nil {
		return err
	}
	return s.Local.Join(r.Context(), req)
}

func (s *server) leaveSwarm(_ http.ResponseWriter, r *http.Request) error {
	return s.Local.Leave(r.Context(), looseBool(r.URL.Query(), "force"))
}

func getSwarm(w http.ResponseWriter, r *http.Request, c Control) error {
	cluster, err := inspectSwarm(r.Context(), c)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, cluster)
}

// inspectSwarm reads the swarm as users may see it: never with the CA's key.
func inspectSwarm(ctx context.Context, c SwarmControl) (swarm.Swarm, error) {
	cluster, err := c.Swarm(ctx)
	if err != nil {
		return swarm.Swarm{}, err
	}
	cluster.Spec.Labels = orNone(cluster.Spec.Labels)
	cluster.Spec.CAConfig.SigningCAKey = ""
	cluster.DefaultAddrPool = orEmpty(cluster.DefaultAddrPool)
	return cluster, nil
}

func updateSwarm(w http.ResponseWriter, r *http.Request, c Control) error {
	var spec swarm.Spec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	q := r.URL.Query()
	v, err := versionParam(q, "swarm")
	if err != nil {
		return err
	}
	rotateWorker, err := boolParam(q, "rotateWorkerToken")
	if err != nil {
		return err
	}
	rotateManager, err := boolParam(q, "rotateManagerToken")
	if err != nil {
		return err
	}
	rotateKey, err := boolParam(q, "rotateManagerUnlockKey")
	if err != nil {
		return err
	}
	if rotateKey {
		return noAutolock()
	}
	if err := checkSwarmSpec(&spec); err != nil {
		return err
	}
	return c.UpdateSwarm(r.Context(), v, spec, rotateWorker, rotateManager)
}

// getUnlockKey answers that there is none: no swarm is locked here.
func getUnlockKey(w http.ResponseWriter, _ *http.Request, _ Control) error {
	return writeJSON(w, http.StatusOK, swarm.UnlockKeyResponse{})
}

func unlockSwarm(w http.ResponseWriter, r *http.Request, _ Control) error {
	var req swarm.UnlockRequest
	if err := readJSON(w, r, &req); err != nil {
		return err
	}
	return netd.Errorf(errConflict, "swarm is not locked")
}
