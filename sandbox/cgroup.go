package sandbox

import (
	"context"
	"errors"
	"os"

	"github.com/rootless-sbx/sbx/cgroup"
)

func findCgroup() *cgroup.Host {
	return cgroup.Find(cgroup.Options{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")})
}

// checkResources refuses limits that cannot be set on this host before an image is
// pulled.
func checkResources(c *Config) error {
	if c.Resources.Zero() {
		return nil
	}
	if err := c.Resources.Validate(); err != nil {
		return &ConfigError{Field: "limits", Err: err}
	}
	return findCgroup().Check(c.Resources)
}

// makeGroup makes the sandbox's cgroup with the monitor in it if limits are asked for,
// and returns its directory. Here and not in the monitor: systemd serves a process
// that is the user's own, outside of the sandbox's user namespace.
//
// The monitor is moved when it waits for its orders. On one processor, one in eight
// that were moved while they started, and had all their threads make a system call
// (setgroups), stood still for 14 to 25 s.
func (s *Sandbox) makeGroup(ctx context.Context, m *owner) (dir string, err error) {
	if s.cfg.Resources.Zero() {
		return "", nil
	}
	select {
	case <-m.ready:
	case <-m.served:
		return "", nil // the start fails for the reason that it has
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	g, err := findCgroup().New(ctx, cgroup.Config{ID: s.id, Name: s.name, PID: m.PID, Limits: s.cfg.Resources})
	if err != nil {
		return "", err
	}
	s.marks.add("cgroup made")
	return g.Dir(), nil
}

// clearGroups ends what a killed monitor has left in the sandbox's cgroup.
func clearGroups(ctx context.Context, id string) error {
	groups, err := findCgroup().List(id)
	for _, g := range groups {
		err = errors.Join(err, g.Clear(ctx))
	}
	return err
}
