package netstack

import (
	"fmt"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const nicID tcpip.NICID = 1

// Settings of the gateway's TCP.
const (
	tcpBufMin     = 4 << 10
	tcpBufDefault = 1 << 20
	tcpBufMax     = 4 << 20
	// tcpShareMin is the least that buffers are cut to; tcpRcvFloor the same
	// for what is received: the window is half of it, and Linux sends nothing
	// for a while into one that is smaller than a segment.
	tcpShareMin = 32 << 10
	tcpRcvFloor = 128 << 10
	// tcpTimeWait in seconds is short: the other end is a guest's kernel one
	// hop away, and a proxy meets the same tuples again soon.
	tcpTimeWait = 2
)

// newStack makes the gateway's TCP: both IP versions on one NIC that takes
// every destination and may use every source.
func (n *Network) newStack() error {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{
			ipv4.NewProtocol,
			ipv6.NewProtocolWithOptions(ipv6.Options{}),
		},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC},
	})
	ok := false
	defer func() {
		if !ok {
			s.Destroy()
		}
	}()

	sack := tcpip.TCPSACKEnabled(true)
	// RACK costs throughput where nothing is ever lost or reordered.
	recovery := tcpip.TCPRecovery(0)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	timeWait := tcpip.TCPTimeWaitTimeoutOption(tcpTimeWait * 1e9)
	for _, o := range []tcpip.SettableTransportProtocolOption{
		&sack, &recovery, &moderate, &timeWait,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufMin, Default: tcpBufDefault, Max: tcpBufMax},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufMin, Default: tcpBufDefault, Max: tcpBufMax},
	} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("set TCP option %T: %s", o, err)
		}
	}

	n.nic = &gatewayNIC{net: n}
	if err := s.CreateNICWithOptions(nicID, n.nic, stack.NICOptions{Name: "gateway"}); err != nil {
		return fmt.Errorf("create NIC: %s", err)
	}
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return fmt.Errorf("set promiscuous mode: %s", err)
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return fmt.Errorf("set spoofing: %s", err)
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nicID},
		{Destination: header.IPv6EmptySubnet, NIC: nicID},
	})
	n.tcp.init(n, s)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, n.tcp.handle)
	n.stack = s
	ok = true
	return nil
}

// route takes a guest's datagram for the gateway or beyond. It runs on the
// port's reader; f's slices are valid until it returns.
func (n *Network) route(p *Port, f *frame, ip *packet) {
	r := &p.reader
	trusted := f.vnet.csumKnownGood()
	if ip.frag {
		whole, ok := p.frags.add(ip)
		if !ok {
			p.count.drop(DropFragments)
			return
		}
		if whole == nil {
			return // more to come
		}
		// The copy belongs to nobody's reader.
		ip, r, trusted = whole, nil, false
	}
	if ip.ttl <= 1 && !n.isGateway(ip.dst) {
		p.sendError(n.gateway(ip.v6()), ip.src, errHops(ip.v6()), ip.head)
		return
	}
	if !trusted && !ip.checksumOK() {
		p.count.drop(DropChecksum)
		return
	}
	switch {
	case ip.proto == protoTCP:
		n.inputTCP(p, r, ip)
	case ip.proto == protoUDP:
		segment := 0
		if r != nil && f.vnet.segment() == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
			segment = int(f.vnet.gsoSize)
		}
		p.inputUDP(ip, segment)
	case ip.proto == protoICMP && !ip.v6(), ip.proto == protoICMPv6 && ip.v6():
		p.inputICMP(r, ip)
	default:
		p.count.drop(DropProtocol)
	}
}

// inputTCP hands a datagram to gVisor.
func (n *Network) inputTCP(p *Port, r *linkReader, ip *packet) {
	if outside(ip.dst) == ignore && !n.isGateway(ip.dst) {
		p.count.drop(DropPolicy)
		return
	}
	n.tcp.reopen(ip)
	n.nic.inject(r, ip)
}
