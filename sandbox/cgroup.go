package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

func findCgroup() *cgroup.Host {
	return cgroup.Find(cgroup.Options{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")})
}

// minInitPids leaves a workload beside an init something of its --pids-limit.
const minInitPids = 24

// checkResources refuses limits that cannot be set on this host before an image is
// pulled.
func checkResources(c *Config) error {
	if c.Resources.Zero() {
		return nil
	}
	if err := c.Resources.Validate(); err != nil {
		return &ConfigError{Field: "limits", Err: err}
	}
	if n := c.Resources.PidsLimit; c.Init && n > 0 && n < minInitPids {
		return badConfig("limits", "pids limit: %d; with --init at least %d, for that has threads itself", n, minInitPids)
	}
	return findCgroup().Check(c.Resources)
}

// groupPatience is how long a cgroup that nobody has asked for may take.
const groupPatience = 5 * time.Second

// makeGroup makes the sandbox's cgroup with the monitor in it, and returns its
// directory. Limits need one; a sandbox that is left to itself has one, if it can be
// had, to be paused, measured and given limits later. Here and not in the monitor:
// systemd serves a process that is the user's own, outside of the sandbox's user
// namespace.
//
// The monitor is moved when it waits for its orders. On one processor, one in eight
// that were moved while they started, and had all their threads make a system call
// (setgroups), stood still for 14 to 25 s.
func (s *Sandbox) makeGroup(ctx context.Context, m *owner) (dir string, err error) {
	must := !s.cfg.Resources.Zero()
	if !must && !s.start.Life.Detach {
		return "", nil
	}
	host := findCgroup()
	if why, _ := host.Missing(); why != "" && !must {
		return "", nil // who wants to pause it is told, and sbx doctor says so before
	}
	select {
	case <-m.ready:
	case <-m.served:
		return "", nil // the start fails for the reason that it has
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if !must {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, groupPatience, fmt.Errorf("no answer in %v", groupPatience))
		defer cancel()
	}
	if s.recorded { // of its last run there may be something
		if _, err := spareNetworks(ctx, host, s.id); err != nil {
			s.e.log.Warn("the network's process is left in the sandbox's cgroup", "err", err)
		}
	}
	g, err := host.New(ctx, cgroup.Config{ID: s.id, Name: s.name, PID: m.PID, Limits: s.cfg.Resources})
	if err != nil && !must {
		s.note(fmt.Sprintf("it has no cgroup, so it cannot be paused or limited: %v", err))
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s.marks.add("cgroup made")
	return g.Dir(), nil
}

// keepShares lets systemd know what a sandbox that runs has been given.
func keepShares(ctx context.Context, id string, l cgroup.Limits) error {
	if l.Zero() {
		return nil
	}
	host := findCgroup()
	groups, err := host.List(id)
	for _, g := range groups {
		err = errors.Join(err, host.Keep(ctx, g, l))
	}
	return err
}

// noGroup says why a sandbox that runs has no cgroup.
func (s *Sandbox) noGroup() error {
	e := &StateError{Kind: ErrNoGroup, Name: s.name}
	why, fix := findCgroup().Missing()
	if why == "" { // it was another place, or nobody had asked for one
		why, fix = "it was started in the foreground without limits, or where there was none to be had", "start it again, with -d or a limit: sbx restart "+s.name
	}
	e.Msg, e.Fix = "the sandbox has no cgroup: "+why, fix
	return e
}

// clearGroups ends what a killed monitor has left in the sandbox's cgroup.
func clearGroups(ctx context.Context, id string) error {
	groups, err := spareNetworks(ctx, findCgroup(), id)
	for _, g := range groups {
		err = errors.Join(err, g.Clear(ctx))
	}
	return err
}

// spareNetworks finds the groups of a sandbox and takes the networks' processes out of
// them: its monitor starts one when that was killed, and other sandboxes are on it too.
func spareNetworks(ctx context.Context, host *cgroup.Host, id string) ([]*cgroup.Group, error) {
	groups, err := host.List(id)
	for _, g := range groups {
		pids, herr := g.Helpers()
		err = errors.Join(err, herr)
		for _, pid := range pids {
			line, rerr := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if rerr != nil || string(bytes.TrimRight(line, "\x00")) != proto.RoleNetd {
				continue // it has ended, or is another one
			}
			err = errors.Join(err, host.Settle(ctx, "net", "a network of sandboxes", pid))
		}
	}
	return groups, err
}
