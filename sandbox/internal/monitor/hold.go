package monitor

import (
	"context"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// hold keeps every process of the sandbox still until the connection ends, for those
// who read its files. Without a group that can be frozen it does nothing.
func (s *session) hold(ctx context.Context, req *wire.Message) error {
	m := s.m
	return s.later(func() error {
		m.mu.Lock()
		ended, still := m.ended, m.group == nil || m.state.Status == record.Paused
		m.mu.Unlock()
		if !still {
			if err := m.group.Freeze(ctx); err != nil {
				return err
			}
		}
		err := s.conn.Reply(req, nil, nil)
		if err == nil {
			select {
			case <-ctx.Done():
			case <-ended:
			}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if still || m.state.Status == record.Paused { // somebody else wants it to stand still
			return nil
		}
		if terr := m.group.Thaw(context.WithoutCancel(ctx)); terr != nil {
			m.log.Warn("let the sandbox run on", "err", terr)
		}
		return nil
	}, req)
}
