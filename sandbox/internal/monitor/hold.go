package monitor

import (
	"context"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// hold keeps every process of the sandbox still until the connection ends, for those
// who read its files. Without a group that can be frozen, and in one that is paused, it
// does nothing. What is to be started in the sandbox waits as long.
func (s *session) hold(ctx context.Context, req *wire.Message) error {
	m := s.m
	return s.later(func() error {
		m.mu.Lock()
		ended := m.ended
		m.mu.Unlock()
		goOn := func() {}
		if m.group != nil && !m.paused() {
			letGo, err := m.enterAlone(ctx)
			if err != nil {
				return err
			}
			defer letGo()
			if !m.paused() {
				if err := m.group.Freeze(ctx); err != nil {
					return err
				}
				goOn = func() {
					if err := m.group.Thaw(context.WithoutCancel(ctx)); err != nil {
						m.log.Warn("let the sandbox run on", "err", err)
					}
				}
			}
		}
		err := s.conn.Reply(req, nil, nil)
		if err == nil {
			select {
			case <-ctx.Done():
			case <-ended:
			}
		}
		goOn()
		return nil
	}, req)
}
