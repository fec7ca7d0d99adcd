package doctor

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// CgroupData is the Data of the check "cgroup".
type CgroupData struct {
	// Version is "v2", "hybrid", "v1" or "none".
	Version string `json:"version"`
	// Path is this process's cgroup below the v2 mount, Controllers what it has and
	// Writable whether this user may make children in it.
	Mount       string   `json:"mount,omitempty"`
	Path        string   `json:"path,omitempty"`
	Controllers []string `json:"controllers,omitempty"`
	Writable    bool     `json:"writable"`
	// UserBus is the socket of the user's systemd, Delegated what that may hand out.
	UserBus   string   `json:"user_bus,omitempty"`
	Delegated []string `json:"delegated,omitempty"`
}

const delegateFix = "ask the administrator for a file /etc/systemd/system/user@.service.d/delegate.conf with\n" +
	"[Service]\nDelegate=cpu cpuset io memory pids"

// checkCgroup only reads. Limits need either the user's systemd, which gives away
// a part of its tree, or a cgroup that belongs to us already.
func checkCgroup(_ context.Context, e Env) Check {
	c := Check{Name: "cgroup", Status: Degraded} // only limits depend on it
	d := &CgroupData{Version: "none"}
	c.Data = d
	text, err := e.read("/proc/self/cgroup", maxFile)
	if err != nil {
		c.Detail, c.Fix = "no cgroups: limits cannot be set", "mount /proc and cgroup2"
		return c
	}
	v1, v2 := parseCgroups(text)
	d.Mount = e.cgroup2Mount()
	switch {
	case v2 == "" || d.Mount == "":
		d.Version = "v1"
	case v1:
		d.Version = "hybrid"
	default:
		d.Version = "v2"
	}
	if d.Version == "v1" {
		c.Detail = "cgroup v2 is not mounted: limits cannot be set"
		c.Fix = "ask the administrator to boot with systemd.unified_cgroup_hierarchy=1"
		return c
	}
	d.Path = v2
	own := path.Join(d.Mount, v2)
	d.Controllers = e.controllers(own)
	d.Writable = unix.Access(e.path(own), unix.W_OK) == nil && unix.Access(e.path(path.Join(own, "cgroup.procs")), unix.W_OK) == nil
	if e.RuntimeDir != "" {
		if bus := path.Join(e.RuntimeDir, "bus"); e.exists(bus) {
			d.UserBus = bus
			d.Delegated = e.controllers(path.Join(d.Mount, fmt.Sprintf("user.slice/user-%d.slice/user@%d.service", e.UID, e.UID)))
		}
	}
	have, from := d.Controllers, "this process's own cgroup"
	if d.UserBus != "" && len(d.Delegated) > 0 {
		have, from = d.Delegated, "the user's systemd"
	} else if !d.Writable {
		c.Detail = fmt.Sprintf("cgroup %s: neither the user's systemd nor a cgroup of our own: limits cannot be set", d.Version)
		c.Fix = "log in through systemd (ssh, a desktop, machinectl shell; su and sudo do not do it); in a container, mount a writable cgroup v2"
		return c
	}
	var lack, absent []string // absent: nobody can give it to us
	exist := e.controllers(d.Mount)
	for _, name := range []string{"cpu", "memory", "pids", "io", "cpuset"} {
		switch {
		case slices.Contains(have, name):
		case len(exist) > 0 && !slices.Contains(exist, name):
			absent = append(absent, name)
		default:
			lack = append(lack, name)
		}
	}
	c.Detail = fmt.Sprintf("cgroup %s, %s from %s", d.Version, strings.Join(have, " "), from)
	switch {
	case len(have) == 0 && d.Version == "hybrid":
		c.Detail = "cgroup hybrid: the controllers are in version 1: limits cannot be set"
		c.Fix = "ask the administrator to boot with systemd.unified_cgroup_hierarchy=1"
	case len(have) == 0:
		c.Detail, c.Fix = "cgroup "+d.Version+": no controller is delegated: limits cannot be set", delegateFix
	case len(lack) > 0:
		c.Status, c.Fix = Degraded, delegateFix
		c.Detail += "; limits of " + strings.Join(append(lack, absent...), " and ") + " cannot be set"
	case len(absent) > 0:
		c.Fix = "a kernel with these controllers (those it has: " + path.Join(d.Mount, "cgroup.controllers") + ")"
		c.Detail += "; limits of " + strings.Join(absent, " and ") + " cannot be set: the kernel has no such controller"
	default:
		c.Status = OK
	}
	return c
}

// parseCgroups returns whether any version 1 controller is in use, and the
// version 2 path.
func parseCgroups(text string) (v1 bool, v2 string) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0" && f[1] == "":
			v2 = f[2]
		case f[1] != "" && !strings.HasPrefix(f[1], "name="):
			v1 = true
		}
	}
	return v1, v2
}

// cgroup2Mount is where the version 2 hierarchy is.
func (e Env) cgroup2Mount() string {
	for _, m := range e.mounts() {
		if m.fstype == "cgroup2" {
			return m.target
		}
	}
	return ""
}

func (e Env) controllers(dir string) []string {
	s, err := e.read(path.Join(dir, "cgroup.controllers"), maxFile)
	if err != nil {
		return nil // not ours to see, or not there: nothing to count on
	}
	return strings.Fields(s)
}
