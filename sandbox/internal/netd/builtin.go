package netd

import (
	"context"
	"errors"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
)

// RootlessKit's builtin port driver has a half in the sandbox's network namespace.
// netd asks the monitor to run it once its own half is there, and it ends with the
// connection: a netd that takes over asks again.

// BuiltinRequest names the directory in which the two halves meet.
type BuiltinRequest struct {
	Dir string `json:"dir"`
}

// runBuiltin starts the sandbox's half; it runs until the connection ends.
func (s *SocketServer) runBuiltin(ctx context.Context, m *wire.Message) error {
	var req BuiltinRequest
	if err := m.Decode(&req); err != nil {
		return wire.ToError("start the builtin port driver", err)
	}
	if req.Dir == "" || req.Dir != s.BuiltinDir {
		return wire.Errorf(CodeMisuse, "not the directory of this sandbox's port driver: %.200q", req.Dir)
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		if err := portfwd.RunBuiltinChild(ctx, portfwd.BuiltinOpaque(req.Dir), s.netns, s.log); err != nil {
			s.log.Warn("builtin port driver", "err", err)
		}
	}()
	return nil
}

// startBuiltin asks for it.
func (g *guestSockets) startBuiltin(ctx context.Context, dir string) error {
	if g.conn == nil {
		return errors.New("the sandbox's monitor does not run the builtin port driver: use port driver stack")
	}
	m, err := g.conn.Call(ctx, msgBuiltin, BuiltinRequest{Dir: dir}, nil)
	if err != nil {
		return wire.ToError("start the builtin port driver", err)
	}
	m.CloseFiles()
	return nil
}
