package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// ConnectNetwork puts the sandbox into one more network: at once if it runs, without a
// disturbance of the others, and else when it is started.
func (s *Sandbox) ConnectNetwork(ctx context.Context, a Attachment) error {
	list := []Attachment{a}
	if err := checkAttachments(&Config{Networks: list}); err != nil {
		return err
	}
	if a.Network == "" || a.Network == netdef.Bridge {
		a.Network = NetworkDefault
	}
	if alone(a.Network) {
		return badConfig("network", "a sandbox that has been made cannot be connected to %s: make it anew with --network %s", a.Network, a.Network)
	}
	p, err := s.e.attachment(a)
	if err != nil {
		return err
	}
	// Its process is to be a child of ours, which is an ordinary one.
	c, err := s.e.netd(ctx, p.Network)
	if err != nil {
		return err
	}
	defer c.Close()
	err = s.remoteCall(ctx, proto.MsgConnect, p, nil)
	if errors.Is(err, ErrNotRunning) {
		err = s.changeNetworks(ctx, func(n *proto.Network) error { return n.Connect(p) })
	}
	if err == nil {
		s.e.networkEvent("connect", &p.Network, "container", s.id)
	}
	return err
}

// DisconnectNetwork takes the sandbox out of a network, by its name or id, and gives its
// addresses there back. What is connected there is reset, and nothing else.
func (s *Sandbox) DisconnectNetwork(ctx context.Context, network string) error {
	n, err := s.e.FindNetwork(ctx, network)
	if err != nil {
		return err
	}
	err = s.remoteCall(ctx, proto.MsgDisconnect, proto.Name{Name: n.Name}, nil)
	if errors.Is(err, ErrNotRunning) {
		err = s.changeNetworks(ctx, func(p *proto.Network) error { return p.Disconnect(n.Name) })
	}
	if err != nil {
		return err
	}
	s.e.networkEvent("disconnect", n, "container", s.id)
	return s.e.defs().Release(ctx, n.Name, s.id)
}

// changeNetworks changes the record of a sandbox that does not run.
func (s *Sandbox) changeNetworks(ctx context.Context, change func(*proto.Network) error) error {
	dir, err := s.claimStopped(ctx)
	if err != nil {
		return err
	}
	defer dir.Release()
	rec, err := record.ReadConfig(dir.Path)
	if err != nil {
		return err
	}
	if err := change(&rec.Start.Network); err != nil {
		return s.controlError(err)
	}
	if err := record.WriteConfig(dir.Path, rec); err != nil {
		return fmt.Errorf("record the sandbox: %w", err)
	}
	s.rec, s.start.Network = rec, rec.Start.Network
	s.cfg.Networks = slices.Clone(networksOf(&rec.Start.Network))
	return nil
}

// networkEvent writes down what happened to a network.
func (e *Engine) networkEvent(action string, n *Network, attributes ...string) {
	e.events.Add(events.New(events.Network, action, networkID(n), append([]string{"name", n.PublicName(), "type", n.Driver}, attributes...)...))
}
