package probe

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/miekg/dns"
	"github.com/rootless-sbx/sbx/netstack"
)

// segmentLease is how long the server's addresses are good; clients ask again after half
// of it.
const segmentLease = 2 * time.Second

// segment is a LAN outside, in the network namespace that it was started in: a TAP with
// this side's address, on which it serves HTTP, a name router.lab.example, and DHCP: the
// address that it was given last, as an argument or a line of its input. It prints the
// number of the TAP's descriptor.
func segment(args []string) error {
	here, err := netip.ParsePrefix(args[0])
	if err != nil {
		return err
	}
	var give atomic.Value
	if err := setNext(&give, args[1]); err != nil {
		return err
	}
	if err := netstack.SetupLoopback(); err != nil {
		return err
	}
	link, err := netstack.SetupGuest(netstack.GuestConfig{
		Name: "seg0", Driver: netstack.DriverTap, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500, Addrs: []netip.Prefix{here},
	})
	if err != nil {
		return err
	}
	rc, err := link.File.SyscallConn()
	if err != nil {
		return err
	}
	ended := make(chan error, 4)
	web, err := net.Listen("tcp", netip.AddrPortFrom(here.Addr(), 80).String())
	if err != nil {
		return err
	}
	go func() { ended <- http.Serve(web, Handler()) }()
	names, err := net.ListenPacket("udp", netip.AddrPortFrom(here.Addr(), 53).String())
	if err != nil {
		return err
	}
	go func() { ended <- answerNames(names, map[string]netip.Addr{"router.lab.example.": here.Addr()}) }()
	leases, err := server4.NewServer("seg0", nil, func(conn net.PacketConn, from net.Addr, m *dhcpv4.DHCPv4) {
		if reply := answerDHCP(m, here, give.Load().(netip.Addr)); reply != nil {
			_, _ = conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ClientPort}) // who asked asks again
		}
	})
	if err != nil {
		return err
	}
	go func() { ended <- leases.Serve() }()
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			if err := setNext(&give, in.Text()); err != nil {
				ended <- err
			}
		}
		ended <- in.Err() // the test has ended
	}()
	if err := rc.Control(func(fd uintptr) { fmt.Println("ready", fd) }); err != nil {
		return err
	}
	return <-ended
}

func setNext(give *atomic.Value, s string) error {
	a, err := netip.ParseAddr(s)
	if err == nil {
		give.Store(a)
	}
	return err
}

// answerDHCP gives the one address, and refuses every other.
func answerDHCP(m *dhcpv4.DHCPv4, here netip.Prefix, give netip.Addr) *dhcpv4.DHCPv4 {
	typ := dhcpv4.MessageTypeOffer
	switch m.MessageType() {
	case dhcpv4.MessageTypeRequest:
		typ = dhcpv4.MessageTypeAck
		asked := m.RequestedIPAddress()
		if asked == nil {
			asked = m.ClientIPAddr
		}
		if !asked.Equal(give.AsSlice()) {
			typ = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeDiscover:
	default:
		return nil
	}
	router := net.IP(here.Addr().AsSlice())
	reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(typ), dhcpv4.WithYourIP(give.AsSlice()),
		dhcpv4.WithServerIP(router), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(router)), dhcpv4.WithNetmask(net.CIDRMask(here.Bits(), 32)),
		dhcpv4.WithRouter(router), dhcpv4.WithDNS(router), dhcpv4.WithLeaseTime(uint32(segmentLease.Seconds())),
		dhcpv4.WithOption(dhcpv4.OptDomainName("lab.example")))
	if err != nil {
		return nil
	}
	return reply
}

// answerNames is a name server.
func answerNames(conn net.PacketConn, names map[string]netip.Addr) error {
	srv := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		question := q.Question[0]
		addr, known := names[dns.CanonicalName(question.Name)]
		switch hdr := (dns.RR_Header{Name: question.Name, Class: dns.ClassINET, Ttl: 600, Rrtype: question.Qtype}); {
		case !known:
			m.Rcode = dns.RcodeNameError
		case question.Qtype == dns.TypeA && addr.Is4():
			m.Answer = []dns.RR{&dns.A{Hdr: hdr, A: addr.AsSlice()}}
		case question.Qtype == dns.TypeAAAA && addr.Is6():
			m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr, AAAA: addr.AsSlice()}}
		}
		_ = w.WriteMsg(m) // who asked asks again
	})}
	return srv.ActivateAndServe()
}
