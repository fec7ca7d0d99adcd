package netstack

import (
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// gsoMaxSize is the largest super-segment that gVisor makes. Every link takes
// it, whatever its MTU.
const gsoMaxSize = 65535

// gatewayNIC is gVisor's side of the gateway: a NIC for bare IP. It implements
// stack.LinkEndpoint and stack.GSOEndpoint. Its capabilities say that received
// checksums are good (route has seen to that, as gVisor asks the NIC and not
// the packet) and that no neighbour has to be resolved.
type gatewayNIC struct {
	net *Network

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher
}

var (
	_ stack.LinkEndpoint = (*gatewayNIC)(nil)
	_ stack.GSOEndpoint  = (*gatewayNIC)(nil)
)

// inject delivers a verified datagram. r is the reader that holds its bytes,
// or nil if they are a copy.
func (e *gatewayNIC) inject(r *linkReader, ip *packet) {
	e.mu.RLock()
	d := e.dispatcher
	e.mu.RUnlock()
	if d == nil {
		return
	}
	proto := header.IPv4ProtocolNumber
	if ip.v6() {
		proto = header.IPv6ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: r.take(ip)})
	d.DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets sends gVisor's datagrams to the guests they are for.
func (e *gatewayNIC) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	sent := 0
	for _, pkt := range pkts.AsSlice() {
		if err := e.writePacket(pkt); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

func (e *gatewayNIC) writePacket(pkt *stack.PacketBuffer) tcpip.Error {
	h := pkt.NetworkHeader().Slice()
	var dst netip.Addr
	var etherType uint16
	switch {
	case pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber && len(h) >= ip4Len:
		dst, etherType = netip.AddrFrom4([4]byte(h[16:20])), etherIPv4
	case pkt.NetworkProtocolNumber == header.IPv6ProtocolNumber && len(h) >= ip6Len:
		dst, etherType = netip.AddrFrom16([16]byte(h[24:40])), etherIPv6
	default:
		return &tcpip.ErrMalformedHeader{}
	}
	p := e.net.member(dst)
	if p == nil {
		// gVisor's own multicast reports end here, too.
		return nil
	}

	var vnet vnetHdr
	if gso := pkt.GSOOptions; gso.Type != stack.GSONone && gso.NeedsCsum {
		vnet.flags = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM
		vnet.csumStart = ethLen + gso.L3HdrLen
		vnet.csumOffset = gso.CsumOffset
		// The type only if there is something to cut: the kernel refuses a
		// super-segment of one segment.
		if pkt.Data().Size() > int(gso.MSS) {
			vnet.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV4
			if gso.Type == stack.GSOTCPv6 {
				vnet.gsoType = unix.VIRTIO_NET_HDR_GSO_TCPV6
			}
			vnet.hdrLen = uint16(ethLen + pkt.HeaderSize())
			vnet.gsoSize = gso.MSS
		}
	}
	var hdr [vnetHdrLen + ethLen]byte
	vnet.put(hdr[:])
	p.ethernet(hdr[:], e.net.gwMAC, etherType)

	// Not by append, which would move the header to the heap.
	var iov [maxPieces]unix.Iovec
	iov[0], iov[1] = iovecOf(hdr[:vnetHdrLen]), iovecOf(hdr[vnetHdrLen:])
	n := 2
	views, skip := pkt.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		b := v.AsSlice()
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		if n == maxPieces {
			return e.writeFlat(p, hdr[:], pkt)
		}
		iov[n] = iovecOf(b[skip:])
		n, skip = n+1, 0
	}
	return linkError(p.write(iov[:n], ethLen+pkt.Size()))
}

// maxPieces of a datagram are written as they are. A full super-segment from the
// relay has two or three.
const maxPieces = 16

// writeFlat sends a datagram made of many pieces, such as bytes written one at a
// time and sent together.
func (e *gatewayNIC) writeFlat(p *Port, hdr []byte, pkt *stack.PacketBuffer) tcpip.Error {
	v := pkt.ToView()
	defer v.Release()
	iov := [...]unix.Iovec{iovecOf(hdr[:vnetHdrLen]), iovecOf(hdr[vnetHdrLen:]), iovecOf(v.AsSlice())}
	return linkError(p.write(iov[:], ethLen+v.Size()))
}

// linkError is what TCP is told about a frame the link did not take: it will
// send it again.
func linkError(err error) tcpip.Error {
	if err != nil {
		return &tcpip.ErrNoBufferSpace{}
	}
	return nil
}

func (e *gatewayNIC) Attach(d stack.NetworkDispatcher) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dispatcher = d
}

func (e *gatewayNIC) IsAttached() bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.dispatcher != nil
}

func (e *gatewayNIC) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

func (e *gatewayNIC) MTU() uint32                             { return uint32(e.net.cfg.MTU) }
func (e *gatewayNIC) SetMTU(uint32)                           {}
func (e *gatewayNIC) MaxHeaderLength() uint16                 { return 0 }
func (e *gatewayNIC) LinkAddress() tcpip.LinkAddress          { return "" }
func (e *gatewayNIC) SetLinkAddress(tcpip.LinkAddress)        {}
func (e *gatewayNIC) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (e *gatewayNIC) AddHeader(*stack.PacketBuffer)           {}
func (e *gatewayNIC) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (e *gatewayNIC) Wait()                                   {}
func (e *gatewayNIC) Close()                                  {}
func (e *gatewayNIC) SetOnCloseAction(func())                 {}
func (e *gatewayNIC) GSOMaxSize() uint32                      { return gsoMaxSize }
func (e *gatewayNIC) SupportedGSO() stack.SupportedGSO        { return stack.HostGSOSupported }
