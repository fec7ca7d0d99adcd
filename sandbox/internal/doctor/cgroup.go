package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/rootless-sbx/sbx/cgroup"
)

// CgroupData is the Data of the check "cgroup".
type CgroupData struct {
	// Version is "v2", "hybrid", "v1" or "none".
	Version string `json:"version"`
	// Path is this process's cgroup below the v2 mount, Controllers what it has.
	Mount       string   `json:"mount,omitempty"`
	Path        string   `json:"path,omitempty"`
	Controllers []string `json:"controllers,omitempty"`
	// UserBus is the socket of the user's systemd, Delegated what that may hand out.
	UserBus   string   `json:"user_bus,omitempty"`
	Delegated []string `json:"delegated,omitempty"`
	// Writable says that there is a group, Base, that this user may divide himself.
	Writable bool   `json:"writable"`
	Base     string `json:"base,omitempty"`
	// Available are the controllers that limits can count on.
	Available []string `json:"available,omitempty"`
}

// checkCgroup only reads. Limits need either the user's systemd, which gives away
// a part of its tree, or a cgroup that belongs to us already.
func checkCgroup(_ context.Context, e Env) Check {
	h := cgroup.Find(cgroup.Options{Root: e.Root, UID: e.UID, RuntimeDir: e.RuntimeDir})
	d := &CgroupData{
		Version: h.Version, Mount: h.Mount, Path: h.Path, Controllers: h.Controllers,
		Delegated: h.Delegated, Writable: h.Base != "", Base: h.Base,
	}
	if len(h.Sockets) > 0 {
		d.UserBus = h.Sockets[0]
	}
	c := Check{Name: "cgroup", Status: Degraded, Data: d} // only limits depend on it
	const none = "limits cannot be set"
	if reason, fix := h.Missing(); reason != "" {
		c.Detail, c.Fix = reason+": "+none, fix
		return c
	}
	have, from, known := h.Available()
	d.Available = have
	if !known {
		c.Detail = fmt.Sprintf("cgroup %s from %s, which does not show what it may hand out", h.Version, from)
		return c
	}
	lack := h.Lacking(cgroup.Controllers())
	c.Detail = fmt.Sprintf("cgroup %s, %s from %s", h.Version, strings.Join(have, " "), from)
	switch {
	case len(have) == 0 && h.Version == "hybrid":
		c.Detail, c.Fix = "cgroup hybrid: the controllers are in version 1: "+none, lack.Fix
	case len(have) == 0:
		c.Detail, c.Fix = "cgroup "+h.Version+": no controller is delegated: "+none, lack.Fix
	case len(lack.Controllers) > 0:
		c.Fix = lack.Fix
		c.Detail += "; limits of " + strings.Join(lack.Controllers, " and ") + " cannot be set"
		if lack.Reason != "" {
			c.Detail += ": " + lack.Reason
		}
	default:
		c.Status = OK
	}
	return c
}
