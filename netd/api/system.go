package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"runtime"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

// infoTimeout keeps docker info quick on a manager that has lost its quorum:
// that is when it is needed.
const infoTimeout = 4 * time.Second

func (s *server) systemRoutes() {
	s.handle("GET /_ping", s.ping) // and HEAD
	s.handle("GET /version", s.getVersion)
	s.handle("GET /info", s.getInfo)
	s.handle("GET /events", s.streamEvents)
	s.handle("GET /system/df", s.diskUsage)
	s.handle("GET /distribution/{image...}", s.inspectDistribution)
}

func (s *server) ping(w http.ResponseWriter, r *http.Request) error {
	header := w.Header()
	header.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	header.Set("Pragma", "no-cache")
	header.Set("Builder-Version", "")
	header.Set("Swarm", swarmHeader(s.Local.Status()))
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		header.Set("Content-Length", "0")
		return nil
	}
	_, _ = w.Write([]byte("OK"))
	return nil
}

func swarmHeader(st LocalStatus) string {
	switch {
	case st.State == swarm.LocalNodeStateActive && st.ControlAvailable:
		return "active/manager"
	case st.State == swarm.LocalNodeStateActive:
		return "active/worker"
	case st.State == "":
		return string(swarm.LocalNodeStateInactive)
	}
	return string(st.State)
}

func (s *server) getVersion(w http.ResponseWriter, _ *http.Request) error {
	st := s.Local.Status()
	out := system.VersionResponse{
		Platform: system.PlatformInfo{Name: "netd"},
		Version:  st.Version, APIVersion: maxVersion.String(), MinAPIVersion: minVersion.String(),
		Os: "linux", Arch: runtime.GOARCH, GoVersion: runtime.Version(), KernelVersion: s.host.kernel,
	}
	// Clients look for a component of this name, whatever stands behind it.
	out.Components = []system.ComponentVersion{{Name: "Engine", Version: st.Version, Details: map[string]string{
		"ApiVersion": out.APIVersion, "MinAPIVersion": out.MinAPIVersion, "Os": out.Os, "Arch": out.Arch,
		"GoVersion": out.GoVersion, "KernelVersion": out.KernelVersion, "Experimental": "false", "GitCommit": "", "BuildTime": "",
	}}}
	return writeJSON(w, http.StatusOK, out)
}

// noEngine is shown by docker info. It must not be empty: docker before 25 makes
// warnings of its own from the fields below when the daemon gives none.
const noEngine = "WARNING: No Docker Engine is attached: netd runs the tasks itself and answers for the swarm only (no containers, images or volumes)"

func (s *server) getInfo(w http.ResponseWriter, r *http.Request) error {
	st := s.Local.Status()
	swarmInfo := s.swarmInfo(r.Context(), st)
	info := system.Info{
		ID: st.NodeID, Name: st.NodeName, ServerVersion: st.Version, SystemTime: time.Now().Format(time.RFC3339Nano),
		Driver: "none", DriverStatus: [][2]string{}, LoggingDriver: "none", DockerRootDir: "",
		Plugins:     system.PluginsInfo{Volume: []string{}, Network: []string{"overlay"}, Authorization: []string{}, Log: []string{}},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		OomKillDisable: false, IPv4Forwarding: true, NGoroutines: runtime.NumGoroutine(),
		CgroupDriver: "cgroupfs", CgroupVersion: s.host.cgroups, KernelVersion: s.host.kernel,
		OperatingSystem: s.host.name, OSVersion: s.host.release, OSType: "linux", Architecture: s.host.machine,
		NCPU: runtime.NumCPU(), MemTotal: s.host.memory, IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig:   &registry.ServiceConfig{InsecureRegistryCIDRs: []netip.Prefix{}, IndexConfigs: map[string]*registry.IndexInfo{}, Mirrors: []string{}},
		GenericResources: []swarm.GenericResource{}, Labels: []string{}, SecurityOptions: []string{}, CDISpecDirs: []string{},
		Runtimes: map[string]system.RuntimeWithStatus{"netd": {Runtime: system.Runtime{Path: "netd"}}}, DefaultRuntime: "netd",
		// Tasks outlive the daemon, which is what this says.
		LiveRestoreEnabled: true,
		ContainerdCommit:   system.Commit{ID: "none"}, RuncCommit: system.Commit{ID: "none"}, InitCommit: system.Commit{ID: "none"},
		Swarm:    swarmInfo,
		Warnings: append([]string{noEngine}, swarmInfo.Warnings...),
	}
	body, err := forVersion(info, versionOf(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, body)
}

// forVersion adds the fields that old clients read and the newest API has not.
func forVersion(info system.Info, v version) (any, error) {
	if v >= 50 {
		return info, nil
	}
	raw, err := encode(info)
	if err != nil {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	fields["BridgeNfIptables"], fields["BridgeNfIp6tables"] = true, true
	fields["KernelMemory"], fields["KernelMemoryTCP"] = true, true
	for _, name := range []string{"ContainerdCommit", "RuncCommit", "InitCommit"} {
		fields[name] = map[string]string{"ID": "none", "Expected": "none"}
	}
	return fields, nil
}

// swarmInfo is the Swarm block of docker info. An active manager always has a
// Cluster, because clients read it without looking; where the managers do not
// answer, Error says so.
func (s *server) swarmInfo(ctx context.Context, st LocalStatus) swarm.Info {
	info := swarm.Info{
		NodeID: st.NodeID, NodeAddr: st.NodeAddr, LocalNodeState: st.State, ControlAvailable: st.ControlAvailable,
		Error: st.Error, RemoteManagers: orEmpty(st.Managers), Warnings: st.Warnings,
	}
	if info.LocalNodeState == "" {
		info.LocalNodeState = swarm.LocalNodeStateInactive
	}
	c, err := s.Local.Control()
	if err != nil {
		info.ControlAvailable = false
		return info
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	info.ControlAvailable = true
	info.Cluster = &swarm.ClusterInfo{ID: st.ClusterID, DefaultAddrPool: []netip.Prefix{}}
	cluster, err := inspectSwarm(ctx, c)
	if err != nil {
		info.Error = err.Error()
		return info
	}
	info.Cluster = &cluster.ClusterInfo
	nodes, err := c.ListNodes(ctx)
	if err != nil {
		info.Error = err.Error()
		return info
	}
	info.Nodes = len(nodes)
	for _, n := range nodes {
		if n.ManagerStatus != nil {
			info.Managers++
		}
	}
	if info.Managers == 2 {
		info.Warnings = append(info.Warnings[:len(info.Warnings):len(info.Warnings)], "WARNING: Running Swarm in a two-manager configuration: it tolerates no fault, since the loss of either manager stops the control plane. Use one, three or five managers.")
	}
	return info
}

// diskUsage answers docker system df truly: netd holds no images, containers,
// volumes or build cache. The first five fields are those of clients before 1.52.
func (s *server) diskUsage(w http.ResponseWriter, _ *http.Request) error {
	type none struct{}
	return writeJSON(w, http.StatusOK, struct {
		LayersSize                                               int64
		Images, Containers, Volumes, BuildCache                  []none
		ImageUsage, ContainerUsage, VolumeUsage, BuildCacheUsage none
	}{Images: []none{}, Containers: []none{}, Volumes: []none{}, BuildCache: []none{}})
}
