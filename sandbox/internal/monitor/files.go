package monitor

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/netstack"
)

// maxHosts bounds /etc/hosts, which belongs to the sandbox.
const maxHosts = 1 << 20

// hosts is the text of /etc/hosts.
func (m *monitor) hosts() ([]byte, error) {
	n := &m.spec.Network
	cfg := fsoverlay.HostsConfig{Extra: slices.Concat(n.AddHost, n.Linked), Own: m.ownHosts()}
	if n.Mode == "host" {
		b, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		cfg.Base = b
	}
	if first := m.first(); first != nil {
		if cfg.HostGateway = first.lease.Gateway4; !cfg.HostGateway.IsValid() {
			cfg.HostGateway = first.lease.Gateway6
		}
	}
	m.own = cfg.Own
	return fsoverlay.HostsFile(cfg)
}

// ownHosts are the sandbox's addresses with its names: the host name, the sandbox's and
// those in the network. Without a network it finds itself on its loopback.
func (m *monitor) ownHosts() (own []fsoverlay.HostEntry) {
	if m.spec.Network.Mode == "host" {
		return nil // in the host's file
	}
	names := []string{m.spec.Hostname}
	if short, _, whole := strings.Cut(m.spec.Hostname, "."); whole {
		names = append(names, short)
	}
	if name, err := m.name(); err == nil && !slices.Contains(names, name) { // else it is being removed
		names = append(names, name)
	}
	for _, n := range m.nets {
		all := names
		for _, a := range n.Aliases {
			if !slices.Contains(all, a) {
				all = append(slices.Clone(all), a)
			}
		}
		for _, a := range n.addrs() {
			own = append(own, fsoverlay.HostEntry{Addr: a, Names: all})
		}
	}
	if len(m.nets) == 0 {
		own = append(own, fsoverlay.HostEntry{Addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Names: names})
	}
	return own
}

// refreshHosts changes the lines of our own in /etc/hosts. The file is bound into the
// sandbox, so that it is written in place.
func (m *monitor) refreshHosts() error {
	path := filepath.Join(m.spec.Dir, "hosts")
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // not written yet, or another sandbox's
	}
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxHosts+1))
	f.Close()
	if err != nil {
		return err
	}
	old := m.own
	if len(text) > maxHosts {
		text, err = m.hosts()
	} else {
		m.own = m.ownHosts()
		text = fsoverlay.ReplaceHosts(text, old, m.own)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o644)
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
