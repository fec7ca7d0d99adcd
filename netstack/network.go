package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Network is a switch with a gateway. All methods may be called from any
// goroutine.
type Network struct {
	cfg     Config
	log     *slog.Logger
	gwMAC   macAddr
	members atomic.Pointer[members]

	stack *stack.Stack
	nic   *gatewayNIC
	tcp   tcpGateway
	dhcp  dhcpTable // clients on the uplink
	turns turns

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the janitor

	pingWarning sync.Once

	// mu orders Attach, detach and Close. Readers use members.
	mu     sync.Mutex
	closed bool
}

// members is the switch's table. It is never changed: a new one replaces it.
type members struct {
	byMAC map[macAddr]*Port
	byIP  map[netip.Addr]*Port
	byID  map[string]*Port
	lanes map[uint16]*lane // by VLAN, without the uplink
	// uplink carries every VLAN; it is in none of the other tables.
	uplink *Port
}

// clone is a table that may be changed. Lanes are not: withLanes makes them.
func (t *members) clone() *members {
	return &members{byMAC: maps.Clone(t.byMAC), byIP: maps.Clone(t.byIP), byID: maps.Clone(t.byID), lanes: t.lanes, uplink: t.uplink}
}

// New makes a network without ports. Close must be called.
func New(cfg Config) (*Network, error) {
	cfg, err := cfg.complete()
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, log: cfg.Logger.With("network", cfg.Name)}
	// Not a random one: a network that is served again after a crash must be the
	// neighbour that its guests remember.
	if cfg.Uplink == nil {
		n.gwMAC = gatewayMAC(cfg)
	}
	n.members.Store(&members{byMAC: map[macAddr]*Port{}, byIP: map[netip.Addr]*Port{}, byID: map[string]*Port{}})
	if err := n.turns.init(); err != nil {
		return nil, err
	}
	if err := n.newStack(); err != nil {
		return nil, errors.Join(fmt.Errorf("make the gateway: %w", err), n.turns.close())
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.wg.Add(1)
	go n.janitor()
	if cfg.Uplink != nil {
		if err := n.attachUplink(cfg.Uplink); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	return n, nil
}

// GatewayMAC is the gateway's address on the wire.
func (n *Network) GatewayMAC() [6]byte { return n.gwMAC }

// MTU of the links that have none of their own.
func (n *Network) MTU() int { return n.cfg.MTU }

// Close detaches every port and ends every flow. It waits until nothing of the
// network runs any more.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	t := n.members.Load()
	n.mu.Unlock()

	var errs []error
	for _, p := range t.byID {
		errs = append(errs, p.Close())
	}
	if t.uplink != nil {
		errs = append(errs, t.uplink.Close())
	}
	n.cancel()
	n.wg.Wait()
	n.stack.Destroy()
	return errors.Join(append(errs, n.turns.close())...)
}

// Stats returns the counters of all ports.
func (n *Network) Stats() Stats {
	s := Stats{Ports: map[string]PortStats{}}
	t := n.members.Load()
	for id, p := range t.byID {
		s.Ports[id] = p.Stats()
	}
	if t.uplink != nil {
		up := t.uplink.Stats()
		s.Uplink = &up
	}
	return s
}

// Attach adds a port and starts to serve its link.
func (n *Network) Attach(cfg PortConfig) (*Port, error) {
	p, err := n.newPort(cfg)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	err = n.addMember(p)
	if err != nil {
		p.cancel()
		p.hosts.close()
		return nil, errors.Join(fmt.Errorf("attach %s: %w", cfg.ID, err), p.link.close())
	}
	p.start()
	if err := cfg.Link.Close(); err != nil {
		n.log.Warn("close the original of a link descriptor", "port", cfg.ID, "error", err)
	}
	return p, nil
}

// addMember puts p into a new table. n.mu is held.
func (n *Network) addMember(p *Port) error {
	if n.closed {
		return ErrClosed
	}
	old := n.members.Load()
	if _, ok := old.byID[p.cfg.ID]; ok {
		return fmt.Errorf("%w: id %q", ErrAddressTaken, p.cfg.ID)
	}
	if _, ok := old.byMAC[p.mac]; ok || p.mac == n.gwMAC {
		return fmt.Errorf("%w: %s", ErrAddressTaken, p.cfg.MAC)
	}
	t := old.clone()
	for _, a := range p.addrs {
		if _, ok := old.byIP[a]; ok || a == n.cfg.Gateway4 || a == n.cfg.Gateway6 {
			return fmt.Errorf("%w: %s", ErrAddressTaken, a)
		}
		t.byIP[a] = p
	}
	t.byMAC[p.mac], t.byID[p.cfg.ID] = p, p
	t.lanes = old.withLanes(p, true)
	n.members.Store(t)
	return nil
}

func (n *Network) removeMember(p *Port) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.members.Load()
	t := old.clone()
	if p.uplink {
		t.uplink = nil
		n.members.Store(t)
		return
	}
	delete(t.byMAC, p.mac)
	delete(t.byID, p.cfg.ID)
	for _, a := range p.addrs {
		delete(t.byIP, a)
	}
	t.lanes = old.withLanes(p, false)
	n.members.Store(t)
}

// member returns the port with an address.
func (n *Network) member(a netip.Addr) *Port { return n.members.Load().byIP[a] }

// gateway returns the gateway's address of a family.
func (n *Network) gateway(v6 bool) netip.Addr {
	if v6 {
		return n.cfg.Gateway6
	}
	return n.cfg.Gateway4
}

func (n *Network) isGateway(a netip.Addr) bool { return a == n.cfg.Gateway4 || a == n.cfg.Gateway6 }

// inSubnet tells whether a is one of the network's own addresses.
func (n *Network) inSubnet(a netip.Addr) bool {
	return n.cfg.Subnet4.IsValid() && n.cfg.Subnet4.Contains(a) || n.cfg.Subnet6.IsValid() && n.cfg.Subnet6.Contains(a)
}

// janitorInterval is how late an idle flow may end.
const janitorInterval = 5 * time.Second

// manyFlows is how many TCP flows take memory that is worth to be given back.
const manyFlows = 256

// janitor ends idle flows and forgets old fragments. After many TCP flows have
// ended it returns their memory, which the runtime would keep for minutes.
func (n *Network) janitor() {
	defer n.wg.Done()
	t := time.NewTicker(janitorInterval)
	defer t.Stop()
	most, ended := 0, false
	for {
		select {
		case <-n.ctx.Done():
			return
		case now := <-t.C:
			flows := 0
			for _, p := range n.members.Load().byID {
				p.expire(now)
				tcp, _ := p.flows.len()
				flows += tcp
			}
			if ended {
				debug.FreeOSMemory() // at the second tick, when TIME_WAIT is over
			}
			most = max(most, flows)
			if ended = most >= manyFlows && flows < most/2; ended {
				most = flows
			}
		}
	}
}

func validMAC(b []byte) bool {
	return len(b) == 6 && b[0]&1 == 0 && !bytes.Equal(b, make([]byte, 6))
}
