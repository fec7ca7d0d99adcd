package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
)

// Beginnings of an Attachment's Network for a network namespace that is not the
// sandbox's own: that of another sandbox, and one that is found by its path. The
// sandbox then lives in the user namespace that owns it, with that one's ids.
const (
	NetworkContainer = proto.ModeContainer // and a name or id
	NetworkPath      = proto.ModePath      // and a path
)

// isShared says that a network is named in one of these ways.
func isShared(network string) bool {
	return strings.HasPrefix(network, NetworkContainer) || strings.HasPrefix(network, NetworkPath)
}

// checkShared refuses what the owner of the network decides, in Docker's words.
func checkShared(c *Config) error {
	kind, what, _ := strings.Cut(c.mode(), ":")
	container := kind+":" == NetworkContainer
	switch {
	case !isShared(c.mode()):
		return nil
	case what == "" && container:
		return badConfig("network", "container: needs the name of a sandbox, as in container:web")
	case !container && !filepath.IsAbs(what):
		return badConfig("network", "ns: needs an absolute path, as in ns:/proc/1234/ns/net, not %q", what)
	}
	for _, o := range []struct {
		set    bool
		what   string
		always bool // also with a path
	}{
		{len(c.Publish) > 0 || c.PublishAll, "port publishing and the container type network mode", true},
		{len(c.Expose) > 0, "port exposing and the container type network mode", false},
		{c.Hostname != "", "hostname and the network mode", false},
		{len(c.DNS)+len(c.DNSSearch)+len(c.DNSOptions) > 0, "dns and the network mode", false},
		{len(c.AddHost) > 0, "custom host-to-IP mapping and the network mode", false},
		{len(c.HostAccess) > 0, "access to the host's ports and the network mode", true},
		{c.MetadataAccess, "access to metadata and the network mode", true},
		{c.MTU != 0, "mtu and the network mode", true},
		{c.LinkDriver != "", "link driver and the network mode", true},
		{c.PortDriver != "", "port driver and the network mode", true},
	} {
		if o.set && (o.always || container) {
			return &ConfigError{Field: "network", Err: &wire.Error{Msg: "conflicting options: " + o.what, Fix: "give it to " + what + ", whose network it is"}}
		}
	}
	return nil
}

// resolveShared finds whose network the sandbox is to share, and takes that one's
// ids and, of another sandbox, its host name.
func (s *Sandbox) resolveShared(ctx context.Context) error {
	c := &s.cfg
	if path, ok := strings.CutPrefix(c.mode(), NetworkPath); ok {
		mode, err := s.e.modeAt(ctx, path)
		if err != nil {
			return err
		}
		return s.takeMode(mode, path)
	}
	ref, ok := strings.CutPrefix(c.mode(), NetworkContainer)
	if !ok {
		return nil
	}
	owner, err := s.e.Open(ctx, ref)
	if err != nil {
		return err
	}
	c.Networks[0].Network = NetworkContainer + owner.id
	c.Hostname = owner.start.Hostname
	return s.takeMode(owner.rec.UserNS, owner.name)
}

// takeMode takes the ids of whose network it is.
func (s *Sandbox) takeMode(mode userns.Mode, owner string) error {
	if s.cfg.UserNS != userns.ModeAuto && s.cfg.UserNS != mode {
		return badConfig("user namespace", "%s has the ids of mode %q, and who shares its network has the same: %q is another", owner, mode, s.cfg.UserNS)
	}
	s.cfg.UserNS = mode
	return nil
}

// modeAt says by which mode the ids are mapped where a network namespace belongs.
func (e *Engine) modeAt(ctx context.Context, path string) (userns.Mode, error) {
	owner, err := ownerAt(path)
	if err != nil {
		return "", err
	}
	defer owner.Close()
	child, err := userns.Start(ctx, userns.Spec{Path: e.initPath, Args: []string{proto.RoleWorker}, UserNS: owner, Logger: e.log})
	if err != nil {
		return "", fmt.Errorf("enter the user namespace of %s: %w", path, err)
	}
	have, err := userns.ReadMapping(child.PID)
	child.Conn.Close()
	child.Wait()
	child.Close()
	if err != nil {
		return "", err
	}
	for _, mode := range []userns.Mode{userns.ModeAuto, userns.ModeSingle, userns.ModeKeepID} {
		if m, err := userns.ResolveMapping(userns.MappingConfig{Mode: mode}); err == nil && m.Fits(have) {
			return mode, nil
		}
	}
	return "", &ConfigError{Field: "network", Err: &wire.Error{Msg: fmt.Sprintf("%s belongs to a user namespace whose ids (%s) are none that a sandbox can have", path, have),
		Fix: "make it with unshare -Urn, or with unshare -rn --map-auto"}}
}

func ownerAt(path string) (*os.File, error) {
	netns, err := userns.OpenNetNS(path)
	if err != nil {
		return nil, &ConfigError{Field: "network", Err: err}
	}
	defer netns.Close()
	owner, err := userns.OwnerOf(netns)
	if err != nil {
		return nil, &ConfigError{Field: "network", Err: err}
	}
	return owner, nil
}

// sharedUserNS opens the user namespace that the sandbox is to live in; nil is one of
// its own.
func (s *Sandbox) sharedUserNS(ctx context.Context) (*os.File, error) {
	n := &s.start.Network
	if path := n.NetNSPath(); path != "" {
		return ownerAt(path)
	}
	id := n.Container()
	if id == "" {
		return nil, nil
	}
	owner, err := s.e.Open(ctx, id)
	if err != nil {
		return nil, &StateError{Kind: ErrNoSandbox, Name: s.name, Msg: fmt.Sprintf("cannot join the network of sandbox %.12s: there is none any more", id), Fix: "remove this one, and make it anew with another network"}
	}
	c, err := owner.dial(ctx)
	if err != nil {
		return nil, owner.cannotJoin(err)
	}
	defer c.close()
	var net proto.NetNS
	reply, err := c.Call(ctx, proto.MsgNetNS, nil, &net)
	if err != nil {
		return nil, owner.cannotJoin(owner.controlError(err))
	}
	defer reply.CloseFiles()
	if net.Host {
		return nil, nil
	}
	return reply.Take("userns")
}

// cannotJoin is what went wrong with the sandbox whose network is to be shared.
func (s *Sandbox) cannotJoin(err error) error {
	if !errors.Is(err, ErrNotRunning) {
		return err
	}
	return &StateError{Kind: ErrNotRunning, Name: s.name, Msg: "cannot join the network of a sandbox that does not run", Fix: "sbx start " + s.name}
}
