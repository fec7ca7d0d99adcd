package sandbox

import (
	"context"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// Pause stops every process of a sandbox that runs, and returns when they stand still.
// It needs a cgroup: else ErrNoGroup.
func (s *Sandbox) Pause(ctx context.Context) error {
	return s.remoteCall(ctx, proto.MsgPause, nil, nil)
}

// Unpause lets them go on.
func (s *Sandbox) Unpause(ctx context.Context) error {
	return s.remoteCall(ctx, proto.MsgUnpause, nil, nil)
}
