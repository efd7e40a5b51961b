package api

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"
)

func listNodes(w http.ResponseWriter, r *http.Request, c Control) error {
	f, err := readFilters(r, "name", "id", "label", "role", "membership", "node.label")
	if err != nil {
		return err
	}
	roles, err := f.oneOf("role", "worker", "manager")
	if err != nil {
		return err
	}
	// Every node that is known has been accepted: there is no pending membership.
	memberships, err := f.oneOf("membership", "accepted", "pending")
	if err != nil {
		return err
	}
	f = filters{
		"name": f["name"], "id": f["id"], "label": f["label"], "node.label": f["node.label"],
		"role": roles, "membership": memberships,
	}
	nodes, err := c.ListNodes(r.Context())
	if err != nil {
		return err
	}
	out := []swarm.Node{}
	for _, n := range nodes {
		if f.prefix("name", n.Spec.Name, n.Description.Hostname) && f.prefix("id", n.ID) &&
			f.labels("label", n.Description.Engine.Labels) && f.labels("node.label", n.Spec.Labels) &&
			f.exact("role", string(n.Spec.Role)) && f.exact("membership", "accepted") {
			out = append(out, shownNode(n))
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// shownNode completes a copy of a node for the wire.
func shownNode(n swarm.Node) swarm.Node {
	n.Spec.Labels = orNone(n.Spec.Labels)
	return n
}

func getNode(w http.ResponseWriter, r *http.Request, c Control) error {
	n, err := c.GetNode(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shownNode(n))
}

func updateNode(w http.ResponseWriter, r *http.Request, c Control) error {
	var spec swarm.NodeSpec
	if err := readJSON(w, r, &spec); err != nil {
		return err
	}
	v, err := versionParam(r.URL.Query(), "node")
	if err != nil {
		return err
	}
	return c.UpdateNode(r.Context(), r.PathValue("id"), v, spec)
}

func removeNode(_ http.ResponseWriter, r *http.Request, c Control) error {
	return c.RemoveNode(r.Context(), r.PathValue("id"), looseBool(r.URL.Query(), "force"))
}
