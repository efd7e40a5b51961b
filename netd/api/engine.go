package api

import (
	"net/http"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/volume"

	"netd"
)

// engineRoutes answers what a Docker Engine would do. Lists are truly empty and
// pruning truly finds nothing; a single object is not found, so that docker
// inspect goes on to the next kind; everything that would change something is
// refused with the reason.
func (s *server) engineRoutes() {
	for pattern, body := range map[string]any{
		"GET /containers/json":   []any{},
		"GET /images/json":       []any{},
		"GET /images/search":     []any{},
		"GET /plugins":           []any{},
		"GET /volumes":           volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}},
		"POST /containers/prune": pruned("ContainersDeleted"),
		"POST /images/prune":     pruned("ImagesDeleted"),
		"POST /volumes/prune":    pruned("VolumesDeleted"),
		"POST /build/prune":      pruned("CachesDeleted"),
	} {
		s.handle(pattern, func(w http.ResponseWriter, _ *http.Request) error { return writeJSON(w, http.StatusOK, body) })
	}
	for pattern, what := range map[string]string{
		"POST /containers/create": "create a container",
		"POST /images/create":     "pull or import an image",
		"POST /images/load":       "load an image",
		"GET /images/get":         "save images",
		"POST /build":             "build an image",
		"POST /commit":            "commit a container",
		"POST /auth":              "log in to a registry",
		"POST /session":           "build an image",
		"POST /grpc":              "build an image",
		"POST /volumes/create":    "create a volume",
		"GET /plugins/privileges": "install a plugin",
		"POST /plugins/pull":      "install a plugin",
		"POST /plugins/create":    "create a plugin",
	} {
		s.handle(pattern, s.noContainers(what))
	}
	for _, pattern := range []string{"/containers/{id}", "/containers/{id}/{action...}"} {
		s.absent(pattern, "No such container: %s")
	}
	s.absent("/exec/{id}/{action...}", "No such exec instance: %s")
	s.absent("/volumes/{id}", "get %s: no such volume")
	s.absent("/images/{id...}", "No such image: %s")
	s.absent("/plugins/{id...}", "plugin %q not found")
	s.unsupportedObjects("secret")
	s.unsupportedObjects("config")
}

// pruned is the report of a prune that found nothing.
func pruned(list string) map[string]any {
	return map[string]any{list: []any{}, "SpaceReclaimed": 0}
}

// noContainers refuses what only a Docker Engine can do.
func (s *server) noContainers(what string) handler {
	return func(http.ResponseWriter, *http.Request) error {
		return netd.Errorf(netd.ErrUnsupported, "cannot %s: no Docker Engine is attached to this node, netd runs services only (docker service create)", what)
	}
}

// absent answers, for every method, that an object of the engine's does not exist.
func (s *server) absent(pattern, text string) {
	for _, method := range []string{"GET ", "POST ", "PUT ", "DELETE "} {
		s.handle(method+pattern, func(_ http.ResponseWriter, r *http.Request) error {
			id := r.PathValue("id")
			if strings.HasSuffix(pattern, "{id...}") {
				id = objectName(id)
			}
			return netd.Errorf(netd.ErrNotFound, text+" (no Docker Engine is attached to this node)", id)
		})
	}
}

// objectName takes the action off a path such as netd/echo:latest/json, where the
// name may have slashes of its own.
func objectName(path string) string {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return path
	}
	switch path[i+1:] {
	case "json", "history", "attestations", "push", "tag", "get", "enable", "disable", "upgrade", "set":
		return path[:i]
	}
	return path
}

// unsupportedObjects answers for secrets or configs, of which there are none.
func (s *server) unsupportedObjects(kind string) {
	none := s.managed(func(_ http.ResponseWriter, r *http.Request, _ Control) error {
		return netd.Errorf(netd.ErrNotFound, "%s %s not found", kind, r.PathValue("id"))
	})
	s.handle("GET /"+kind+"s", s.managed(func(w http.ResponseWriter, r *http.Request, _ Control) error {
		if _, err := readFilters(r, "id", "label", "name", "names"); err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, []any{})
	}))
	s.handle("POST /"+kind+"s/create", s.managed(func(http.ResponseWriter, *http.Request, Control) error {
		return netd.Errorf(netd.ErrUnsupported, "%ss are not supported by this version of netd; pass the data by --env or put it into the image", kind)
	}))
	s.handle("GET /"+kind+"s/{id}", none)
	s.handle("DELETE /"+kind+"s/{id}", none)
	s.handle("POST /"+kind+"s/{id}/update", none)
}

// inspectDistribution stands in for the registry, which clients ask for an
// image's digest before they create or update a service. For an image that the
// nodes carry there is no digest to pin: the answer leaves it empty, and clients
// keep the name as it is. For any other there is no registry to ask; clients warn
// that the image is not pinned, which is so.
func (s *server) inspectDistribution(w http.ResponseWriter, r *http.Request) error {
	name, ok := strings.CutSuffix(r.PathValue("image"), "/json")
	if !ok {
		return netd.Errorf(netd.ErrNotFound, "page not found")
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return netd.Errorf(netd.ErrInvalid, "%w", err)
	}
	if slices.Contains(s.Images, reference.FamiliarName(ref)) && isLatest(ref) {
		var out registry.DistributionInspect
		out.Platforms = orEmpty(out.Platforms)
		return writeJSON(w, http.StatusOK, out)
	}
	return netd.Errorf(netd.ErrUnsupported, "image %q was not looked up: no Docker Engine is attached to this node, so no registry can be asked", name)
}

// isLatest: the nodes carry one version of an image.
func isLatest(ref reference.Named) bool {
	tagged, ok := reference.TagNameOnly(ref).(reference.Tagged)
	return ok && tagged.Tag() == "latest"
}
