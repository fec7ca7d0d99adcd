package monitor

import (
	"errors"
	"io/fs"
	"os"
	"slices"

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
	cfg := fsoverlay.HostsConfig{Hostname: m.spec.Hostname, Extra: slices.Concat(n.AddHost, n.Linked)}
	for _, net := range m.nets {
		if net.lease.Addr4.IsValid() {
			cfg.Addrs = append(cfg.Addrs, net.lease.Addr4)
		}
		if net.lease.Addr6.IsValid() {
			cfg.Addrs = append(cfg.Addrs, net.lease.Addr6)
		}
	}
	if first := m.first(); first != nil {
		cfg.HostGateway = first.lease.Gateway4
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
	first := m.first()
	switch {
	case first != nil && first.Network.Uplink():
		// No server of ours is there.
		if len(cfg.DNS) == 0 {
			for _, a := range first.lease.DNS {
				cfg.DNS = append(cfg.DNS, a.String())
			}
		}
		if len(cfg.Search) == 0 {
			cfg.Search = first.lease.Search
		}
	case first != nil:
		cfg.Gateway4, cfg.Gateway6 = first.lease.Gateway4, first.lease.Gateway6
	case (n.Mode == "host" || n.NetNSPath() != "") && len(n.DNS)+len(n.DNSSearch)+len(n.DNSOptions) == 0:
		return host, nil
	case n.Mode != "host" && len(n.DNS) == 0:
		return nil, nil
	}
	conf, err := cfg.Build()
	if err != nil {
		return nil, err
	}
	return conf.Bytes(), nil
}
