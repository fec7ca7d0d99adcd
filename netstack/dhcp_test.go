package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// dhcpServer is a server on the far end of a cable that is a network's uplink.
// answer changes what it says; nil says nothing.
type dhcpServer struct {
	*wireGuest
	answer func(req, resp *dhcpv4.DHCPv4) *dhcpv4.DHCPv4
	// seen gets the type of each message.
	seen chan dhcpv4.MessageType
}

func newDHCPServer(t testing.TB, l *lan, far *os.File, answer func(req, resp *dhcpv4.DHCPv4) *dhcpv4.DHCPv4) *dhcpServer {
	s := &dhcpServer{answer: answer, seen: make(chan dhcpv4.MessageType, 64),
		wireGuest: &wireGuest{t: t, port: l.members.Load().uplink, far: far, mac: macAddr{2, 0, 0, 0, 9, 9},
			a4: netip.MustParseAddr("10.99.0.200")}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 70000)
		for {
			n, err := s.far.Read(b)
			if err != nil {
				return
			}
			if reply := s.serve(b[vnetHdrLen:n]); reply != nil {
				s.far.Write(append(make([]byte, vnetHdrLen), reply...))
			}
		}
	}()
	t.Cleanup(func() { s.far.Close(); <-done })
	return s
}

// serve returns the frame that answers one.
func (s *dhcpServer) serve(frame []byte) []byte {
	ip, ok := parseIP(etherIPv4, frame[ethLen:], nil)
	if !ok || ip.proto != protoUDP || !ip.checksumOK() {
		return nil
	}
	req, err := dhcpv4.FromBytes(ip.l4()[udpLen:])
	if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest {
		return nil
	}
	defer func() { s.seen <- req.MessageType() }()
	typ := dhcpv4.MessageTypeOffer
	switch req.MessageType() {
	case dhcpv4.MessageTypeRequest:
		typ = dhcpv4.MessageTypeAck
	case dhcpv4.MessageTypeRelease:
		return nil
	}
	resp, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(typ), dhcpv4.WithYourIP(net.IPv4(10, 99, 0, 50)),
		dhcpv4.WithServerIP(s.a4.AsSlice()), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(s.a4.AsSlice())),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithLeaseTime(3600))
	if err != nil {
		s.t.Error(err)
		return nil
	}
	if resp = s.answer(req, resp); resp == nil {
		return nil
	}
	return ethernetFrame(macAddr(req.ClientHWAddr), s.mac, etherIPv4,
		udpDatagram(netip.AddrPortFrom(s.a4, 67), netip.AddrPortFrom(netip.MustParseAddr("10.99.0.50"), 68), resp.ToBytes()))
}

// next waits for a message of a type.
func (s *dhcpServer) next(want dhcpv4.MessageType) {
	s.t.Helper()
	for {
		select {
		case got := <-s.seen:
			if got == want {
				return
			}
		case <-time.After(10 * time.Second):
			s.t.Fatalf("no %s", want)
		}
	}
}

var dhcpMAC = net.HardwareAddr{2, 0, 0, 0, 0, 10}

func TestDHCP(t *testing.T) {
	l, far := uplinkLAN(t)
	s := newDHCPServer(t, l, far, func(req, resp *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		if req.HostName() != "web" && req.MessageType() != dhcpv4.MessageTypeRequest {
			t.Errorf("host name %q", req.HostName())
		}
		for _, o := range []dhcpv4.Option{
			dhcpv4.OptRouter(net.IPv4(10, 99, 0, 1)), dhcpv4.OptDNS(net.IPv4(10, 99, 0, 2), net.IPv4zero, net.IPv4(10, 99, 0, 3)),
			dhcpv4.OptDomainName("lab.example"), dhcpv4.OptGeneric(dhcpv4.OptionInterfaceMTU, []byte{5, 0x78}),
		} {
			resp.UpdateOption(o)
		}
		return resp
	})
	c, err := l.DHCP(t.Context(), DHCPConfig{MAC: dhcpMAC, Hostname: "web"})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Lease()
	if got.Addr.String() != "10.99.0.50/24" || len(got.Routers) != 1 || len(got.DNS) != 2 || got.Domain != "lab.example" || got.MTU != 1400 {
		t.Errorf("%+v", got)
	}
	if _, err := l.DHCP(t.Context(), DHCPConfig{MAC: dhcpMAC}); !errors.Is(err, ErrAddressTaken) {
		t.Errorf("a second client for the MAC: %v", err)
	}
	// The member may come with the address.
	w := l.wireWith(t, 0, func(pc *PortConfig) { pc.Addr4, pc.Addr6 = got.Addr.Addr(), netip.Addr{} })
	if w.port.Stats().FromGuest.Frames != 0 {
		t.Error("what is the client's came to the member")
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	s.next(dhcpv4.MessageTypeRelease)
	if l.dhcp.used.Load() != 0 || len(l.dhcp.conns) != 0 {
		t.Error("the table still has the client")
	}
}

// TestDHCPRenews: leases of a second or two are renewed, until the server says no.
func TestDHCPRenews(t *testing.T) {
	l, far := uplinkLAN(t)
	renewals := 0
	s := newDHCPServer(t, l, far, func(req, resp *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		resp.UpdateOption(dhcpv4.OptIPAddressLeaseTime(2 * time.Second))
		if req.MessageType() == dhcpv4.MessageTypeRequest && !req.ClientIPAddr.IsUnspecified() {
			if renewals++; renewals == 2 {
				resp.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			}
		}
		return resp
	})
	c, err := l.DHCP(t.Context(), DHCPConfig{MAC: dhcpMAC})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 { // one for the lease, one renewal, one that is refused
		s.next(dhcpv4.MessageTypeRequest)
	}
	select {
	case <-c.Lost():
	case <-time.After(10 * time.Second):
		t.Error("the client goes on with an address that it has not")
	}
}

// TestDHCPFails is servers that are silent, or lie.
func TestDHCPFails(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(req, resp *dhcpv4.DHCPv4) *dhcpv4.DHCPv4
		want   string
	}{
		"silent": {func(_, _ *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { return nil }, "context canceled"},
		"another's": {func(_, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			r.ClientHWAddr = net.HardwareAddr{2, 2, 2, 2, 2, 2}
			return r
		}, "context canceled"},
		"no address": {func(_, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { r.YourIPAddr = net.IPv4zero; return r }, "the server gave"},
		"a group":    {func(_, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { r.YourIPAddr = net.IPv4(224, 0, 0, 1); return r }, "the server gave"},
		"no mask":    {func(_, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 { r.DeleteOption(dhcpv4.OptionSubnetMask); return r }, "the server gave"},
		"refused": {func(q, r *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
			if q.MessageType() == dhcpv4.MessageTypeRequest {
				r.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
			}
			return r
		}, "Nak"},
	} {
		t.Run(name, func(t *testing.T) {
			l, far := uplinkLAN(t)
			s := newDHCPServer(t, l, far, c.answer)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.want == "context canceled" {
				go func() {
					s.next(dhcpv4.MessageTypeDiscover)
					cancel()
				}()
			}
			if _, err := l.DHCP(ctx, DHCPConfig{MAC: dhcpMAC}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if l.dhcp.used.Load() != 0 {
				t.Error("the table still has the client")
			}
		})
	}
	l := newLAN(t, nil)
	if _, err := l.DHCP(t.Context(), DHCPConfig{MAC: dhcpMAC}); !errors.Is(err, ErrInvalidConfig) {
		t.Errorf("without an uplink: %v", err)
	}
}

// FuzzDHCP is what a segment sends to a client.
func FuzzDHCP(f *testing.F) {
	req, err := dhcpv4.NewDiscovery(dhcpMAC)
	if err != nil {
		f.Fatal(err)
	}
	resp, err := dhcpv4.NewReplyFromRequest(req, dhcpv4.WithMessageType(dhcpv4.MessageTypeAck), dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 2)),
		dhcpv4.WithNetmask(net.CIDRMask(8, 32)), dhcpv4.WithOption(dhcpv4.OptDomainName("x\ny")), dhcpv4.WithDomainSearchList("a.example", "b c"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(resp.ToBytes())
	f.Add(req.ToBytes())
	f.Add(make([]byte, 240))
	n := &Network{}
	conn, err := n.dhcp.add(n, macAddr(dhcpMAC), 0)
	if err != nil {
		f.Fatal(err)
	}
	server, client := netip.MustParseAddrPort("10.0.0.1:67"), netip.MustParseAddrPort("10.0.0.2:68")
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 60000 {
			return
		}
		frame := frame{head: ethernetFrame(macAddr(dhcpMAC), macAddr{2}, etherIPv4, udpDatagram(server, client, data))}
		ip, ok := parseIP(etherIPv4, frame.head[ethLen:], nil)
		if !ok {
			t.Fatal("the test's own datagram")
		}
		if n.dhcp.take(0, &frame, &ip) {
			select {
			case m := <-conn.in:
				if string(m) != string(data) {
					t.Fatal("the client got something else")
				}
			default:
				t.Fatal("taken, and gone")
			}
		}
		m, err := dhcpv4.FromBytes(data)
		if err != nil {
			return
		}
		lease, err := readLease(m)
		if err != nil {
			return
		}
		if !lease.Addr.Addr().IsGlobalUnicast() || len(lease.DNS) > maxLeaseAddrs || len(lease.Routers) > maxLeaseAddrs {
			t.Fatalf("%+v", lease)
		}
		for _, d := range append(lease.Search, lease.Domain) {
			if strings.ContainsAny(d, "\n\r \t\x00") {
				t.Fatalf("a name that is none: %q", d)
			}
		}
	})
}
