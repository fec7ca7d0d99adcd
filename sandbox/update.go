package sandbox

import (
	"context"
	"errors"

	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// Changes are what Update changes; what is zero stays.
type Changes struct {
	Resources cgroup.Limits
	Restart   *RestartPolicy
}

// Update changes the limits and the restart policy of a sandbox: at once if it runs,
// and for its next start.
func (s *Sandbox) Update(ctx context.Context, c Changes) error {
	u := proto.Update{Limits: c.Resources}
	if r := c.Restart; r != nil {
		if err := checkRestart(r); err != nil {
			return err
		}
		if r.Name != "no" && !s.start.Life.Keep {
			return badConfig("restart policy", "a sandbox that is removed when it ends (--rm) cannot be started again")
		}
		u.Restart = &proto.Restart{Name: r.Name, Max: r.Max}
	}
	for {
		err := s.remoteCall(ctx, proto.MsgUpdate, u, nil)
		if err == nil {
			return keepShares(ctx, s.id, u.Limits)
		}
		if !errors.Is(err, ErrNotRunning) {
			return err
		}
		dir, err := s.claimStopped(ctx)
		if errors.Is(err, ErrRunning) {
			continue // since just now
		}
		if err != nil {
			return err
		}
		defer dir.Release()
		if err := findCgroup().Check(u.Limits); err != nil {
			return err
		}
		err = record.UpdateConfig(dir.Path, func(rec *record.Config) error { return rec.Change(u) })
		if err == nil {
			s.event(events.Update)
		}
		return err
	}
}
