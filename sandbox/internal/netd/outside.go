package netd

import (
	"context"
	"crypto/sha256"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
)

// dhcpPatience is how long a sandbox waits for an address from outside; whoever keeps
// it attached waits for 10 s.
const dhcpPatience = 8 * time.Second

// openUplink returns the device of an uplink: it opens it by its name, or it came along
// with the start message from whoever had it open.
func (s *server) openUplink(start *wire.Message) (*netstack.Uplink, error) {
	if !s.cfg.Given {
		return netstack.OpenUplink(s.cfg.Parent)
	}
	f, err := start.Take(fileUplink)
	if err != nil {
		return nil, &wire.Error{Code: CodeNoParent, Msg: "the descriptor of its device " + s.cfg.Parent + " was closed when the last process that had it ended",
			Fix: "open the device again: sbx network uplink " + s.cfg.Name + " FD"}
	}
	u, err := netstack.UplinkFrom(f)
	if err == nil {
		s.uplink, err = wire.NewHandle(f)
	}
	if err != nil {
		f.Close()
	}
	return u, err
}

// mustStay says that without this process nobody would have the device open.
func (s *server) mustStay() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uplink != nil && !s.told
}

// outsideLease is that of a sandbox whose address is not ours to give: its MAC, which
// must be nobody else's on the segment, and the same each time it starts.
func outsideLease(req LeaseRequest) netstack.Lease {
	l := netstack.Lease{ID: req.ID, Name: req.Name, MAC: req.MAC}
	if l.MAC == nil {
		sum := sha256.Sum256([]byte("sbx uplink " + req.ID))
		l.MAC = net.HardwareAddr(sum[:6])
		l.MAC[0] = l.MAC[0]&^1 | 2
	}
	return l
}

// leaseOutside completes a lease on an uplink: what the segment's server gives, or
// with an address of ours the host's name servers.
func (x *session) leaseOutside(l *Lease, req LeaseRequest) error {
	if l.Addr4.IsValid() || l.Addr6.IsValid() {
		l.DNS = x.s.hostServers()
		return nil
	}
	ctx, cancel := context.WithTimeout(x.ctx, dhcpPatience)
	defer cancel()
	c, err := x.s.net.DHCP(ctx, netstack.DHCPConfig{MAC: l.MAC, VLAN: x.s.cfg.VLAN, Hostname: req.Name, Addr: req.Addr4})
	if err != nil {
		return &wire.Error{Code: CodeDHCP, Step: "get an address from the segment of " + x.s.cfg.Parent, Msg: err.Error(),
			Fix: "see that a DHCP server is behind the device, or create the network with the segment's --subnet, --gateway and a free --ip-range"}
	}
	x.dhcp = c
	got := c.Lease()
	l.DHCP, l.Prefix4, l.Addr4, l.DNS, l.Search = true, got.Addr, got.Addr.Addr(), got.DNS, got.Search
	if l.Gateway4 = (netip.Addr{}); len(got.Routers) > 0 {
		l.Gateway4 = got.Routers[0]
	}
	if len(l.Search) == 0 && got.Domain != "" {
		l.Search = []string{got.Domain}
	}
	if len(l.DNS) == 0 {
		l.DNS = x.s.hostServers()
	}
	if got.MTU != 0 {
		l.MTU = min(l.MTU, got.MTU)
	}
	go func() {
		select {
		case <-c.Lost():
			x.log.Error("the address from DHCP is lost: the sandbox is attached anew", "addr", got.Addr)
			x.cancel()
		case <-x.ctx.Done():
		}
	}()
	return nil
}

// hostServers are the host's name servers that a sandbox can ask from a segment
// outside: not those on the host's own loopback.
func (s *server) hostServers() (list []netip.Addr) {
	path := s.cfg.ResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	b, err := os.ReadFile(path)
	if err != nil {
		s.log.Warn("the host's name servers", "err", err)
		return nil
	}
	for _, a := range netstack.ParseResolvConf(b).Nameservers {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			list = append(list, a)
		}
	}
	return list
}
