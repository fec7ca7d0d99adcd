package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// ErrNotPublished is returned for a port that is not published.
var ErrNotPublished = errors.New("not published")

// PublishPorts publishes more ports, all of them or none: at once if the sandbox
// runs, and each time that it is started. It returns those that are published now.
func (s *Sandbox) PublishPorts(ctx context.Context, specs []portfwd.Spec) ([]port.Status, error) {
	for _, p := range specs {
		if err := checkPort(p); err != nil {
			return nil, &ConfigError{Field: "published port", Err: err}
		}
	}
	return s.changePorts(ctx, proto.ChangePorts{Add: specs})
}

// UnpublishPorts takes published ports back, all of them or none. A spec means those
// that agree with it in what it says: one without a host port, all of a port of the
// sandbox.
func (s *Sandbox) UnpublishPorts(ctx context.Context, specs []portfwd.Spec) error {
	_, err := s.changePorts(ctx, proto.ChangePorts{Remove: specs})
	return err
}

func (s *Sandbox) changePorts(ctx context.Context, change proto.ChangePorts) ([]port.Status, error) {
	if err := s.publishes(); err != nil {
		return nil, err
	}
	for {
		var done proto.Ports
		err := s.remoteCall(ctx, proto.MsgPorts, change, &done)
		if !errors.Is(err, ErrNotRunning) {
			return done.Ports, notPublished(s.name, err)
		}
		dir, err := s.claimStopped(ctx)
		if errors.Is(err, ErrRunning) {
			continue // started meanwhile
		}
		if err != nil {
			return nil, err
		}
		defer dir.Release()
		rec, err := record.ReadConfig(dir.Path)
		if err != nil {
			return nil, err
		}
		if err := change.Apply(&rec.Start.Network); err != nil {
			return nil, notPublished(s.name, err)
		}
		s.rec, s.start = rec, rec.Start
		return nil, record.WriteConfig(dir.Path, rec)
	}
}

// publishes refuses a sandbox whose ports cannot be published.
func (s *Sandbox) publishes() error {
	n := &s.start.Network
	fail := func(msg, fix string) error {
		return &StateError{Kind: ErrNotPublished, Name: s.name, Msg: "its ports cannot be published: " + msg, Fix: fix}
	}
	switch {
	case n.Mode == NetworkHost:
		return fail("it has the host's network, where they are open already", "")
	case n.Mode == NetworkNone:
		return fail("it has no network", "make it anew with another one")
	case n.Container() != "":
		return fail(fmt.Sprintf("its network is that of sandbox %.12s", n.Container()), fmt.Sprintf("publish them there: sbx port add %.12s", n.Container()))
	case n.NetNSPath() != "":
		return fail("its network is not one of sbx", "")
	}
	return nil
}

// notPublished gives an answer of the monitor its type.
func notPublished(name string, err error) error {
	var we *wire.Error
	if errors.As(err, &we) && we.Code == proto.CodeNotPublished {
		return &StateError{Kind: ErrNotPublished, Name: name, Msg: we.Msg, Fix: cmp.Or(we.Fix, "sbx port "+name+" lists what is published")}
	}
	return err
}
