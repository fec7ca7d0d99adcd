package initproc

import (
	"context"
	"slices"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// exec turns init into the workload, or starts it as a child under --init. When it
// works without --init it does not return: the control socket closes on exec, and
// that is the monitor's answer.
func (i *initd) exec(ctx context.Context, m *wire.Message) error {
	spec, err := takeSpec(m)
	if err != nil {
		return i.conn.Reply(m, nil, err)
	}
	if i.root.Init {
		return i.reap(ctx, m, spec)
	}
	return i.conn.Reply(m, nil, workload.Exec(spec))
}

// takeSpec reads what is to be executed, and takes the rules that come with it.
func takeSpec(m *wire.Message) (spec workload.Spec, err error) {
	if err = m.Decode(&spec); err == nil && slices.Contains(m.Files, proto.FileRules) {
		spec.Rules, err = m.Take(proto.FileRules)
	}
	return spec, err
}
