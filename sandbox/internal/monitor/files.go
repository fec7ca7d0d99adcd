package monitor

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/netstack"
)

// hosts is the text of /etc/hosts.
func (m *monitor) hosts() ([]byte, error) {
	n := &m.spec.Network
	if n.Mode == "host" && len(n.AddHost) == 0 {
		b, err := os.ReadFile("/etc/hosts")
		if !errors.Is(err, fs.ErrNotExist) {
			return b, err
		}
	}
	cfg := fsoverlay.HostsConfig{Hostname: m.spec.Hostname, Extra: n.AddHost}
	if m.net != nil {
		l := m.net.lease
		cfg.Addrs = []netip.Addr{l.Addr4, l.Addr6}
		cfg.HostGateway = l.Gateway4
	}
	return fsoverlay.HostsFile(cfg)
}

// resolvConf is the text of /etc/resolv.conf: the network's own name server, the
// host's file as it is with the host's network or one that sbx did not make, and none
// without a network.
func (m *monitor) resolvConf() ([]byte, error) {
	n := &m.spec.Network
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	cfg := netstack.SandboxResolvConf{
		DNS: n.DNS, Search: n.DNSSearch, Options: n.DNSOptions,
		Host: netstack.ParseResolvConf(host),
	}
	switch {
	case m.net != nil:
		cfg.Gateway4, cfg.Gateway6 = m.net.lease.Gateway4, m.net.lease.Gateway6
	case (n.Mode == "host" || n.NetNSPath() != "") && len(n.DNS)+len(n.DNSSearch)+len(n.DNSOptions) == 0:
		return host, nil
	case n.Mode == "none" && len(n.DNS) == 0:
		return nil, nil
	}
	conf, err := cfg.Build()
	if err != nil {
		return nil, err
	}
	return conf.Bytes(), nil
}
