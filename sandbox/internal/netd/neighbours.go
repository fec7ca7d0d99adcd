package netd

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
)

const (
	// neighboursCheck is how often at most the other networks are looked for, when a
	// new flow leaves this one.
	neighboursCheck = 100 * time.Millisecond
	// neighboursSettle: a directory changed less than this before it was read may
	// change again without a new time stamp.
	neighboursSettle = 2 * time.Second
)

// neighbours knows the subnets of the user's other networks. What is sent there must
// not follow the host's routes: on the host nothing has these addresses.
type neighbours struct {
	s *server

	mu      sync.Mutex // guards what follows
	checked time.Time
	read    time.Time // the directory's time when it was read; zero: read it again
	subnets []netip.Prefix
	// bridge are those of the default network, which has no file there: as its
	// process has said last.
	bridge []netip.Prefix
	host   []netstack.HostPrefix // where the machine itself is
	hostAt time.Time
}

// has tells whether an address is one of another network.
func (n *neighbours) has(a netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if now.Sub(n.checked) >= neighboursCheck {
		n.checked = now
		n.look(now)
	}
	if !contain(n.subnets, a) && !contain(n.bridge, a) {
		return false
	}
	// A laptop may have come into a network that has such addresses: those are real.
	if now.Sub(n.hostAt) >= neighboursCheck {
		var err error
		if n.host, err = netstack.HostPrefixes(); err != nil {
			n.s.log.Warn("where this machine is", "err", err)
		}
		n.hostAt = now
	}
	return !slices.ContainsFunc(n.host, func(h netstack.HostPrefix) bool { return !h.Far && h.Prefix.Contains(a) })
}

func contain(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// look reads what has changed.
func (n *neighbours) look(now time.Time) {
	if n.s.cfg.Name != netdef.Default {
		if st, err := readState(filepath.Join(n.s.cfg.RuntimeDir, "net", netdef.Default, stateName)); err == nil {
			n.bridge = []netip.Prefix{st.Subnet4, st.Subnet6}
		}
	}
	fi, err := os.Stat(string(n.s.defs))
	if err != nil || fi.ModTime().Equal(n.read) {
		return // no network was ever made, or none since
	}
	list, err := n.s.defs.List()
	if err != nil {
		n.s.log.Debug("other networks", "err", err)
	}
	n.subnets = n.subnets[:0]
	for _, o := range list {
		// An uplink's addresses are those of a segment that the host may know the way to.
		if o.Name != n.s.cfg.Name && !o.Uplink() {
			n.subnets = append(n.subnets, o.Subnets()...)
		}
	}
	n.read = time.Time{}
	if now.Sub(fi.ModTime()) > neighboursSettle {
		n.read = fi.ModTime()
	}
}
