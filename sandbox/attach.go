package sandbox

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

const (
	maxAttachments = 32
	maxAliases     = 24
	maxPriority    = 100
)

// checkAttachments fills in the networks, and refuses what can be no place in one.
func checkAttachments(c *Config) error {
	if len(c.Networks) == 0 {
		c.Networks = On(NetworkDefault)
	}
	c.Networks = slices.Clone(c.Networks)
	if len(c.Networks) > maxAttachments {
		return badConfig("network", "%d networks, limit %d", len(c.Networks), maxAttachments)
	}
	for i := range c.Networks {
		a := &c.Networks[i]
		if a.Network == "" || a.Network == netdef.Bridge { // Docker's name for it
			a.Network = NetworkDefault
		}
		if alone(a.Network) && len(c.Networks) > 1 {
			return badConfig("network", "with %s a sandbox can be in no other network", a.Network)
		}
		if err := a.check(); err != nil {
			return err
		}
		for _, o := range c.Networks[:i] {
			if o.Network == a.Network {
				return badConfig("network", "%s is there twice", netdef.PublicName(a.Network))
			}
		}
	}
	return nil
}

func (a *Attachment) check() error {
	wishes := len(a.Aliases) > 0 || a.DHCP || a.Addr4.IsValid() || a.Addr6.IsValid() || a.MAC != nil || a.GatewayPriority != 0
	switch {
	case alone(a.Network) && wishes:
		return badConfig("network", "with %s a sandbox has no address or name in a network", a.Network)
	case a.Addr4.IsValid() && !a.Addr4.Is4():
		return badConfig("ip", "%s is not an IPv4 address", a.Addr4)
	case a.Addr6.IsValid() && (!a.Addr6.Is6() || a.Addr6.Is4In6() || a.Addr6.Zone() != ""):
		return badConfig("ip6", "%s is not an IPv6 address", a.Addr6)
	case a.MAC != nil && (len(a.MAC) != 6 || a.MAC[0]&1 != 0 || a.MAC.String() == "00:00:00:00:00:00"):
		return badConfig("mac address", "%q is not the address of a single Ethernet device", a.MAC)
	case len(a.Aliases) > maxAliases:
		return badConfig("network alias", "%d aliases, limit %d", len(a.Aliases), maxAliases)
	case a.GatewayPriority < -maxPriority || a.GatewayPriority > maxPriority:
		return badConfig("gateway priority", "%d is not between %d and %d", a.GatewayPriority, -maxPriority, maxPriority)
	}
	for _, alias := range a.Aliases {
		if err := netstack.CheckName(alias); err != nil {
			return &ConfigError{Field: "network alias", Err: err}
		}
	}
	return nil
}

// attachments finds the networks of the configuration.
func (e *Engine) attachments(list []Attachment) ([]proto.Attachment, error) {
	var out []proto.Attachment
	for _, a := range list {
		if alone(a.Network) {
			return nil, nil
		}
		p, err := e.attachment(a)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o proto.Attachment) bool { return o.Network.Name == p.Network.Name }) {
			return nil, badConfig("network", "%s is there twice", p.Network.PublicName())
		}
		out = append(out, *p)
	}
	return out, nil
}

// attachment finds a network, and refuses an address that it cannot give.
func (e *Engine) attachment(a Attachment) (*proto.Attachment, error) {
	n := &netdef.Network{Name: netdef.Default, Driver: netdef.DriverBridge}
	if a.Network != NetworkDefault {
		var err error
		if n, err = e.defs().Find(a.Network); err != nil {
			return nil, err
		}
	}
	p := &proto.Attachment{Network: *n, NetworkID: networkID(n), Aliases: a.Aliases, Addr4: a.Addr4, Addr6: a.Addr6, MAC: a.MAC, DHCP: a.DHCP || n.DHCP(), Priority: a.GatewayPriority}
	switch {
	case a.DHCP && !n.Uplink():
		return nil, badConfig("ip", "network %s is no uplink: it has no DHCP server, and gives out addresses by itself", n.PublicName())
	case n.DHCP() && (a.Addr4.IsValid() || a.Addr6.IsValid()):
		return nil, badConfig("ip", "network %s has no subnet: its addresses are those of a DHCP server outside", n.PublicName())
	case a.Addr4.IsValid() && n.Subnet4.IsValid() && !n.Subnet4.Contains(a.Addr4):
		return nil, badConfig("ip", "%s is not in %s, the subnet of network %s", a.Addr4, n.Subnet4, n.PublicName())
	case a.Addr4.IsValid() && n.Subnet6.IsValid() && !n.Subnet4.IsValid():
		return nil, badConfig("ip", "network %s has no IPv4", n.PublicName())
	case a.Addr6.IsValid() && n.Subnet4.IsValid() && !n.Subnet6.IsValid():
		return nil, badConfig("ip6", "network %s has no IPv6", n.PublicName())
	case a.Addr6.IsValid() && n.Subnet6.IsValid() && !n.Subnet6.Contains(a.Addr6):
		return nil, badConfig("ip6", "%s is not in %s, the subnet of network %s", a.Addr6, n.Subnet6, n.PublicName())
	}
	return p, nil
}

// refresh finds the networks of a sandbox again that is to be started: they may have
// been removed and made anew.
func (e *Engine) refresh(list []proto.Attachment) error {
	for i := range list {
		a := &list[i]
		if a.Network.Name == netdef.Default {
			continue
		}
		n, err := e.defs().Find(a.Network.Name)
		if err != nil {
			return err
		}
		a.Network = *n
	}
	return nil
}

// ensureNetd starts the networks' processes that are not there: as children of this
// process, which is an ordinary one, and not of the monitor, with whose cgroup they would
// end. They wait for the sandbox until letGo is called.
func (s *Sandbox) ensureNetd(ctx context.Context) (letGo func(), err error) {
	list := s.start.Network.Attachments
	clients, errs := make([]*netd.Client, len(list)), make([]error, len(list))
	var wg sync.WaitGroup
	for i, a := range list {
		wg.Go(func() {
			if clients[i], errs[i] = s.e.netd(ctx, a.Network); errs[i] == nil && s.start.Life.Detach {
				s.settle(ctx, a.Network.Name, clients[i])
			}
		})
	}
	wg.Wait()
	s.marks.add("network process found")
	return func() {
		for _, c := range clients {
			if c != nil {
				c.Close()
			}
		}
	}, errors.Join(errs...)
}

// settle gives the network's process a place that lasts as long as that of a detached
// sandbox.
func (s *Sandbox) settle(ctx context.Context, network string, c *netd.Client) {
	ctx, cancel := context.WithTimeout(ctx, groupPatience)
	defer cancel()
	pid, err := c.PID()
	if err == nil {
		err = findCgroup().Settle(ctx, "net-"+network, "network "+network, pid)
	}
	if err != nil {
		s.e.log.Warn("the network's process stays in this session", "network", network, "err", err)
	}
}

// netd connects to a network's process, which it starts if there is none.
func (e *Engine) netd(ctx context.Context, n netdef.Network) (*netd.Client, error) {
	return netd.Ensure(ctx, e.netdConfig(n))
}

func (e *Engine) netdConfig(n netdef.Network) netd.Config {
	return netd.Config{
		StartConfig: netd.StartConfig{RuntimeDir: e.runtimeDir, DataDir: e.dataDir, Network: n, Linger: e.linger},
		Start:       netd.Spawn(e.initPath, proto.RoleNetd),
	}
}

// networksOf is the configuration of a sandbox's networks as they are recorded.
func networksOf(n *proto.Network) []Attachment {
	if n.Mode != NetworkDefault {
		return On(n.Mode)
	}
	var list []Attachment
	for _, a := range n.Attachments {
		list = append(list, Attachment{Network: a.Network.Name, Aliases: a.Aliases, Addr4: a.Addr4, Addr6: a.Addr6, MAC: a.MAC, DHCP: a.DHCP, GatewayPriority: a.Priority})
	}
	return list
}

// defs is where the networks are defined.
func (e *Engine) defs() netdef.Dir { return netdef.In(e.dataDir) }
