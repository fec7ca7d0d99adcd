package netstack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
)

// Times of a DHCP client.
const (
	dhcpTimeout  = 2 * time.Second // of the first try, twice as long for each other
	dhcpTries    = 3
	dhcpMinRenew = time.Second
)

// DHCPConfig says for whom an address is asked.
type DHCPConfig struct {
	// MAC of the member-to-be, and the VLAN it will be in, as in PortConfig.
	MAC  net.HardwareAddr
	VLAN uint16
	// Hostname, if not empty, is told to the server.
	Hostname string
	// Addr, if valid, is asked for: that of before a restart.
	Addr netip.Addr
}

// DHCPLease is what the server gave.
type DHCPLease struct {
	Addr    netip.Prefix
	Routers []netip.Addr
	DNS     []netip.Addr
	Domain  string
	Search  []string
	// MTU of the segment, 0 if the server does not say.
	MTU int
}

// DHCPClient keeps an address of an uplink's segment on behalf of a member. It
// speaks with the member's MAC, before that has a link as well as after; what the
// server answers to it, the member does not see. A member that runs a client of its
// own needs none of these.
type DHCPClient struct {
	net    *Network
	conn   *dhcpConn
	client *nclient4.Client
	lease  DHCPLease

	cancel context.CancelFunc
	done   chan struct{} // keep has ended
	lost   chan struct{}

	// Of keep, and after its end of Close.
	acked *nclient4.Lease
}

// DHCP asks the servers of the uplink's segment for an address, and keeps it until
// Close or the end of the network. Times without an answer are bounded to some
// seconds; ctx may end them before.
func (n *Network) DHCP(ctx context.Context, cfg DHCPConfig) (*DHCPClient, error) {
	fail := func(err error) (*DHCPClient, error) {
		return nil, fmt.Errorf("DHCP for %s: %w", cfg.MAC, err)
	}
	switch {
	case n.cfg.Uplink == nil:
		return fail(fmt.Errorf("%w: the network has no uplink", ErrInvalidConfig))
	case !validMAC(cfg.MAC):
		return fail(fmt.Errorf("%w: not the MAC address of a host", ErrInvalidConfig))
	case cfg.VLAN == 0:
		cfg.VLAN = n.cfg.VLAN
	}
	conn, err := n.dhcp.add(n, macAddr(cfg.MAC), cfg.VLAN)
	if err != nil {
		return fail(err)
	}
	c := &DHCPClient{net: n, conn: conn, done: make(chan struct{}), lost: make(chan struct{})}
	if c.client, err = nclient4.NewWithConn(conn, cfg.MAC, nclient4.WithTimeout(dhcpTimeout), nclient4.WithRetry(dhcpTries)); err != nil {
		conn.Close()
		return fail(err)
	}
	if c.acked, err = c.request(ctx, cfg); err == nil {
		c.lease, err = readLease(c.acked.ACK)
	}
	if err == nil {
		err = c.start()
	}
	if err != nil {
		return fail(errors.Join(err, c.client.Close()))
	}
	n.log.Info("address from DHCP", "mac", cfg.MAC, "addr", c.lease.Addr, "server", c.acked.ACK.ServerIdentifier())
	return c, nil
}

// request asks for an address: for one that it had in vain, for what is offered then.
func (c *DHCPClient) request(ctx context.Context, cfg DHCPConfig) (*nclient4.Lease, error) {
	var name, ask []dhcpv4.Modifier
	if cfg.Hostname != "" {
		name = append(name, dhcpv4.WithOption(dhcpv4.OptHostName(cfg.Hostname)))
	}
	if cfg.Addr.Is4() {
		ask = append(ask, dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(cfg.Addr.AsSlice())))
	}
	offer, err := c.client.DiscoverOffer(ctx, append(ask, name...)...)
	if err != nil {
		return nil, err
	}
	return c.client.RequestFromOffer(ctx, offer, name...)
}

// readLease takes from an answer what a member needs.
func readLease(m *dhcpv4.DHCPv4) (l DHCPLease, err error) {
	addr, ok := netip.AddrFromSlice(m.YourIPAddr.To4())
	bits, size := m.SubnetMask().Size()
	if !ok || !addr.IsGlobalUnicast() || size != 32 || bits == 0 {
		return l, fmt.Errorf("the server gave %s with mask %s", m.YourIPAddr, net.IP(m.SubnetMask()))
	}
	l.Addr = netip.PrefixFrom(addr, bits)
	l.Routers, l.DNS = addrsOf(m.Router()), addrsOf(m.DNS())
	// A name that is none would come to stand in a file of the guest.
	if d := m.DomainName(); checkDomain(d) == nil {
		l.Domain = d
	}
	if s := m.DomainSearch(); s != nil {
		l.Search = slices.DeleteFunc(slices.Clone(s.Labels), func(d string) bool { return checkDomain(d) != nil })
	}
	if b := m.Options.Get(dhcpv4.OptionInterfaceMTU); len(b) == 2 {
		if mtu := int(binary.BigEndian.Uint16(b)); mtu >= MinMTU && mtu <= MaxMTU {
			l.MTU = mtu
		}
	}
	return l, nil
}

// maxLeaseAddrs bounds a list of a lease.
const maxLeaseAddrs = 8

func addrsOf(ips []net.IP) (out []netip.Addr) {
	for _, ip := range ips {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && !a.IsUnspecified() && len(out) < maxLeaseAddrs {
			out = append(out, a)
		}
	}
	return out
}

// Lease is what the server gave at first.
func (c *DHCPClient) Lease() DHCPLease { return c.lease }

// Lost is closed when the server has taken the address back, or did not renew it in
// time. The member must not use it any longer.
func (c *DHCPClient) Lost() <-chan struct{} { return c.lost }

// Close gives the address back.
func (c *DHCPClient) Close() error {
	c.cancel()
	<-c.done
	var err error
	select {
	case <-c.lost:
	default:
		if c.net.ctx.Err() == nil {
			err = c.client.Release(c.acked)
		}
	}
	return errors.Join(err, c.client.Close())
}

func (c *DHCPClient) start() error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.net.closed {
		return ErrClosed
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(c.net.ctx)
	c.net.wg.Add(1)
	go func() {
		defer c.net.wg.Done()
		defer close(c.done)
		if err := c.keep(ctx); err != nil && ctx.Err() == nil {
			c.net.log.Error("the address from DHCP is lost", "mac", c.conn.mac, "addr", c.lease.Addr, "error", err)
			close(c.lost)
		}
		if c.net.ctx.Err() != nil {
			c.client.Close() // nobody else will
		}
	}()
	return nil
}

// keep renews the lease, from half of its time on, until ctx ends.
func (c *DHCPClient) keep(ctx context.Context) error {
	for {
		span := c.acked.ACK.IPAddressLeaseTime(time.Hour)
		end := c.acked.CreationTime.Add(span)
		next := c.acked.CreationTime.Add(max(c.acked.ACK.IPAddressRenewalTime(span/2), dhcpMinRenew))
		for renewed := false; !renewed; {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Until(next)):
			}
			fresh, err := c.client.Renew(ctx, c.acked)
			var nak *nclient4.ErrNak
			switch {
			case err == nil && !fresh.ACK.YourIPAddr.Equal(c.lease.Addr.Addr().AsSlice()):
				return fmt.Errorf("the server now gives %s", fresh.ACK.YourIPAddr)
			case err == nil:
				c.acked, renewed = fresh, true
			case errors.As(err, &nak) || !time.Now().Before(end):
				return err
			default:
				next = time.Now().Add(max(time.Until(end)/2, dhcpMinRenew))
			}
		}
	}
}

// dhcpTable finds the client that an answer from outside is for.
type dhcpTable struct {
	used  atomic.Int32
	mu    sync.Mutex
	conns map[macAddr]*dhcpConn
}

// maxDHCP bounds the clients of a network, and dhcpQueue what waits for one.
const (
	maxDHCP   = 4096
	dhcpQueue = 8
)

// dhcpConn is the client's side of the segment: it implements net.PacketConn for
// UDP from port 68.
type dhcpConn struct {
	net    *Network
	mac    macAddr
	vlan   uint16
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func (t *dhcpTable) add(n *Network, mac macAddr, vlan uint16) (*dhcpConn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		t.conns = map[macAddr]*dhcpConn{}
	}
	if t.conns[mac] != nil {
		return nil, fmt.Errorf("%w: another client asks for this MAC", ErrAddressTaken)
	}
	if len(t.conns) >= maxDHCP {
		return nil, fmt.Errorf("%d clients, the limit", maxDHCP)
	}
	c := &dhcpConn{net: n, mac: mac, vlan: vlan, in: make(chan []byte, dhcpQueue), closed: make(chan struct{})}
	t.conns[mac] = c
	t.used.Add(1)
	return c, nil
}

// take gives a datagram from outside to the client that it is for, and returns
// false if there is none.
func (t *dhcpTable) take(v uint16, f *frame, ip *packet) bool {
	const (
		clientPort = 68
		chaddr     = 28
		minLen     = 240
	)
	l4 := ip.l4()
	if t.used.Load() == 0 || ip.v6() || ip.proto != protoUDP || ip.frag || len(l4) < udpLen+chaddr+6 ||
		binary.BigEndian.Uint16(l4[2:]) != clientPort || ip.l4Size() < udpLen+minLen {
		return false
	}
	mac, dst := macAddr(l4[udpLen+chaddr:][:6]), macAddr(f.head[:6])
	t.mu.Lock()
	c := t.conns[mac]
	t.mu.Unlock()
	if c == nil || c.vlan != v || dst != mac && !dst.group() || !f.vnet.csumKnownGood() && !ip.checksumOK() {
		return false
	}
	select {
	case c.in <- flatCopy(l4[udpLen:], ip.tail):
	default: // the client asks again
	}
	return true
}

// WriteTo sends a message of the client's to everybody on the segment.
func (c *dhcpConn) WriteTo(b []byte, to net.Addr) (int, error) {
	up := c.net.members.Load().uplink
	a, ok := to.(*net.UDPAddr)
	if up == nil || !ok || len(b) < 16 || len(b) > etherMTU-ip4Len-udpLen {
		return 0, &net.OpError{Op: "write", Net: "dhcp", Addr: to, Err: os.ErrInvalid}
	}
	dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.IP.To4())), uint16(a.Port))
	src := netip.AddrFrom4([4]byte(b[12:16])) // ciaddr: zero until there is an address
	raw := make([]byte, vnetHdrLen+ethLen+ip4Len+udpLen, vnetHdrLen+ethLen+ip4Len+udpLen+len(b))
	eth := raw[vnetHdrLen:]
	copy(eth, []byte{255, 255, 255, 255, 255, 255})
	copy(eth[6:], c.mac[:])
	binary.BigEndian.PutUint16(eth[12:], etherIPv4)
	putIPv4(eth[ethLen:], src, dst.Addr(), protoUDP, guestTTL, udpLen+len(b), 0, 0)
	l4 := eth[ethLen+ip4Len:]
	binary.BigEndian.PutUint16(l4, nclient4.ClientPort)
	binary.BigEndian.PutUint16(l4[2:], dst.Port())
	binary.BigEndian.PutUint16(l4[4:], uint16(udpLen+len(b)))
	binary.BigEndian.PutUint16(l4[6:], ^sum2(pseudoSum(src, dst.Addr(), protoUDP, udpLen+len(b)), l4, b))
	raw = append(raw, b...)
	up.writeFrame(&frame{raw: raw[:vnetHdrLen], head: raw[vnetHdrLen:]}, c.vlan)
	return len(b), nil
}

func (c *dhcpConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case m := <-c.in:
		return copy(b, m), &net.UDPAddr{}, nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	}
}

func (c *dhcpConn) Close() error {
	c.once.Do(func() {
		t := &c.net.dhcp
		t.mu.Lock()
		delete(t.conns, c.mac)
		t.used.Add(-1)
		t.mu.Unlock()
		close(c.closed)
	})
	return nil
}

func (c *dhcpConn) LocalAddr() net.Addr              { return &net.UDPAddr{Port: nclient4.ClientPort} }
func (c *dhcpConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *dhcpConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *dhcpConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
