package proto

import (
	"fmt"
	"slices"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
)

// CodeNetworks is of errors about the networks that a sandbox is on.
const CodeNetworks = "networks"

func networksError(fix, format string, args ...any) error {
	return &wire.Error{Code: CodeNetworks, Msg: fmt.Sprintf(format, args...), Fix: fix}
}

// Connect adds a network.
func (n *Network) Connect(a *Attachment) error {
	if err := n.changeable(); err != nil {
		return err
	}
	if slices.ContainsFunc(n.Attachments, func(o Attachment) bool { return o.Network.Name == a.Network.Name }) {
		return networksError("", "the sandbox is on network %s already", a.Network.PublicName())
	}
	n.Attachments = append(n.Attachments, *a)
	return nil
}

// Disconnect takes one away.
func (n *Network) Disconnect(name string) error {
	if err := n.changeable(); err != nil {
		return err
	}
	i := slices.IndexFunc(n.Attachments, func(o Attachment) bool { return o.Network.Name == name })
	if i < 0 {
		return networksError("sbx inspect shows on which it is", "the sandbox is not on network %s", netdef.PublicName(name))
	}
	n.Attachments = slices.Delete(slices.Clone(n.Attachments), i, i+1)
	return nil
}

// modeDefault is that of a sandbox whose networks sbx makes.
const modeDefault = "default"

func (n *Network) changeable() error {
	if n.Mode != modeDefault {
		return networksError("make it anew with --network", "the sandbox was made with --network %s and can be on no other", n.Mode)
	}
	return nil
}
