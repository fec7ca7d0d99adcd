package netstack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Port is the place of one sandbox on a network.
type Port struct {
	net  *Network
	cfg  PortConfig
	mac  macAddr
	ll6  netip.Addr // the link-local address that the guest's kernel makes
	link *link
	// addrs are those under which the switch knows the port.
	addrs []netip.Addr
	// vlan of frames without a tag, trunk those with one, sorted.
	vlan  uint16
	trunk []uint16
	// gated: the gateway is in the port's VLAN.
	gated bool
	// uplink: the port is that of the world outside, not of a member.
	uplink bool
	// hostPorts is sorted.
	hostPorts []uint16

	reader linkReader
	frags  reassembler // used by the reader alone, but for expiry
	mtus   mtuAdvice   // likewise
	trains trains      // likewise
	seen   uint64      // frames, by the janitor
	floods budget      // likewise
	pings  budget      // likewise
	asks   budget      // likewise; of ARP and neighbour discovery
	count  counters

	flows   flowTable    // TCP
	hosts   hostPoller   // its sockets to the host
	workers workers      // what moves its bytes
	nat     natTable     // UDP and ping
	fwd     forwardTable // UDP flows that began outside
	// flowChanges counts what may lead a UDP flow elsewhere.
	flowChanges atomic.Uint64
	dns         chan struct{}

	ctx     context.Context
	cancel  context.CancelFunc
	closing atomic.Bool
	done    chan struct{}
	wg      sync.WaitGroup // the reader and everything it started
	once    sync.Once
	err     error
}

func (n *Network) newPort(cfg PortConfig) (*Port, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("attach %s: %w: %s", cfg.ID, ErrInvalidConfig, fmt.Sprintf(format, args...))
	}
	if !validMAC(cfg.MAC) {
		return nil, bad("%q is not the MAC address of a host", cfg.MAC)
	}
	if cfg.Link == nil {
		return nil, bad("no link")
	}
	if cfg.MTU != 0 && (cfg.MTU < MinMTU || cfg.MTU > MaxMTU) {
		return nil, bad("MTU %d is out of range: %d to %d", cfg.MTU, MinMTU, MaxMTU)
	}
	p := &Port{net: n, cfg: cfg, mac: macAddr(cfg.MAC), done: make(chan struct{})}
	p.ll6 = linkLocal6(p.mac)
	if cfg.Addr4.IsValid() {
		if !cfg.Addr4.Is4() || n.cfg.Subnet4.IsValid() && !n.cfg.Subnet4.Contains(cfg.Addr4) {
			return nil, bad("%s is not in %s", cfg.Addr4, n.cfg.Subnet4)
		}
		p.addrs = append(p.addrs, cfg.Addr4)
	}
	if cfg.Addr6.IsValid() {
		if !cfg.Addr6.Is6() || n.cfg.Subnet6.IsValid() && !n.cfg.Subnet6.Contains(cfg.Addr6) {
			return nil, bad("%s is not in %s", cfg.Addr6, n.cfg.Subnet6)
		}
		p.addrs = append(p.addrs, cfg.Addr6)
		if p.ll6 != cfg.Addr6 {
			p.addrs = append(p.addrs, p.ll6)
		}
	}
	if len(p.addrs) == 0 && n.cfg.Uplink == nil {
		return nil, bad("no address")
	}
	if err := p.setVLANs(); err != nil {
		return nil, bad("%v", err)
	}
	p.gated = p.vlan == n.cfg.VLAN && n.cfg.Uplink == nil
	p.hostPorts = slices.Sorted(slices.Values(cfg.HostPorts))
	if err := p.open(); err != nil {
		return nil, fmt.Errorf("attach %s: %w", cfg.ID, err)
	}
	return p, nil
}

// open takes the port's link and makes its tables.
func (p *Port) open() error {
	if p.cfg.HdrLen == 0 {
		p.cfg.HdrLen = vnetHdrLen
	}
	if p.cfg.MTU == 0 {
		p.cfg.MTU = p.net.cfg.MTU
	}
	p.dns = make(chan struct{}, p.net.cfg.Limits.DNSQueries)
	p.frags.init()
	p.flows.init()
	p.nat.init()
	p.fwd.init()
	var err error
	if p.link, err = newLink(p.cfg.Link, p.cfg.HdrLen); err != nil {
		return err
	}
	if err := p.hosts.init(); err != nil {
		return errors.Join(err, p.link.close())
	}
	p.workers.turns = &p.net.turns
	p.reader.link, p.reader.account = p.link, account{turns: &p.net.turns, again: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(p.net.ctx)
	return nil
}

func (p *Port) start() {
	p.wg.Go(func() { p.failed("read the link", p.reader.run(p.closing.Load, p.input, p.flushTrains)) })
	p.wg.Go(func() { p.failed("wait for the host's sockets", p.hosts.run()) })
}

// failed ends a port that cannot go on.
func (p *Port) failed(doing string, err error) {
	if err == nil {
		return
	}
	p.net.log.Error("port failed", "port", p.cfg.ID, "name", p.cfg.Name, "doing", doing, "error", err)
	// Not from here: Close waits for this goroutine.
	go p.closeWith(fmt.Errorf("%s of %s: %w", doing, p.cfg.ID, err))
}

// Close detaches the port: it closes the link and resets the port's flows. It
// waits until nothing of the port runs any more; the kernel takes up to 30 ms
// for the last descriptor of a packet link.
func (p *Port) Close() error {
	p.closeWith(nil)
	<-p.done
	return nil
}

// Done is closed when the port is detached, by Close or because its link
// failed.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err says why the link failed. It is nil before Done and after Close.
func (p *Port) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

func (p *Port) closeWith(cause error) {
	p.once.Do(func() {
		p.err = cause
		p.closing.Store(true)
		p.net.removeMember(p)
		p.cancel()
		// Flows first: their last segments are resets, which still reach the
		// guest.
		p.flows.abort(p.net, p)
		p.nat.close()
		p.fwd.close()
		if err := p.link.close(); err != nil {
			p.net.log.Warn("close link", "port", p.cfg.ID, "error", err)
		}
		p.hosts.close()
		p.wg.Wait()
		p.workers.close()
		close(p.done)
	})
}

// Stats returns the port's counters.
func (p *Port) Stats() PortStats {
	s := p.count.snapshot()
	s.TCPFlows, s.TCPDials = p.flows.len()
	s.UDPFlows, s.Pings = p.nat.len()
	return s
}

// owns tells whether the guest may send from an address.
func (p *Port) owns(a netip.Addr) bool { return slices.Contains(p.addrs, a) }

func (p *Port) hostPort(port uint16) bool {
	_, ok := slices.BinarySearch(p.hostPorts, port)
	return ok
}

// write sends one frame to the guest.
func (p *Port) write(iov []unix.Iovec, size int) error {
	if err := p.link.write(iov); err != nil {
		p.count.drop(DropLinkWrite)
		return err
	}
	p.count.txFrames.Add(1)
	p.count.txBytes.Add(uint64(size))
	return nil
}

// expire is the janitor's: it ends what is idle, and takes back a guest's read buffer
// if nothing has come since it was here.
func (p *Port) expire(now time.Time) {
	if n := p.count.rxFrames.Load(); n != p.seen {
		p.seen = n
	} else {
		p.reader.reap()
	}
	p.frags.expire(now)
	p.nat.expire(p, now)
}
