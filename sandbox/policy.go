package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
)

// DueByPolicy finds the sandboxes that do not run and that their restart policies want
// to: the machine was restarted, or the session or their monitors were ended. One that
// somebody has stopped is wanted only with the policy "always", and one that has never
// been started by none. The oldest is the first.
func (e *Engine) DueByPolicy(ctx context.Context) ([]*Sandbox, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return nil, err
	}
	var due []*Sandbox
	var errs []error
	for _, id := range ids {
		s, err := e.dueByPolicy(ctx, id)
		if err != nil {
			errs = append(errs, fmt.Errorf("%.12s: %w", id, err))
		} else if s != nil {
			due = append(due, s)
		}
	}
	slices.SortFunc(due, func(a, b *Sandbox) int { return a.rec.Created.Compare(b.rec.Created) })
	return due, errors.Join(errs...)
}

// dueByPolicy returns the sandbox if it is.
func (e *Engine) dueByPolicy(ctx context.Context, id string) (*Sandbox, error) {
	st, err := e.stateOf(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil || st.Alive() || st.StartedAt.IsZero() {
		return nil, err
	}
	s, err := e.Open(ctx, id)
	if errors.Is(err, ErrNoSandbox) {
		return nil, nil // it has been removed since
	}
	if err != nil {
		return nil, err
	}
	policy := s.start.Life.Restart
	if !policy.Wants(st.ExitCode, st.Restarts) || st.Stopped && policy.Name != "always" {
		return nil, nil
	}
	return s, nil
}
