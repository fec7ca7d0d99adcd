package netstack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/dgram"
)

// The way of a guest's datagram, which is also the order of the functions:
//
//	inputUDP   header checks, then the flow's train           udp.go
//	trains     collects what a burst brings of one flow       udp_train.go
//	find       its flow: a client's outside, or a mapping     udp.go
//	toHost     the mapping's socket, or an error back         udp.go
//	serve      what the host answers                          udp_host.go
//	readErrors ICMP errors about what was sent                udp_error.go

// inputUDP takes a guest's datagram. If segment is not zero, it is several
// that the guest's kernel left for the device to cut.
func (p *Port) inputUDP(ip *packet, segment int) {
	l4 := ip.l4()
	if len(l4) < udpLen {
		p.count.drop(DropMalformed)
		return
	}
	src := netip.AddrPortFrom(ip.src, binary.BigEndian.Uint16(l4))
	dst := netip.AddrPortFrom(ip.dst, binary.BigEndian.Uint16(l4[2:]))
	n := int(binary.BigEndian.Uint16(l4[4:]))
	if n < udpLen || n > ip.l4Size() || src.Port() == 0 || dst.Port() == 0 {
		p.count.drop(DropMalformed)
		return
	}
	if n -= udpLen; n <= segment {
		segment = 0
	} else if segment > 0 && n > segment*maxGuestSegments {
		p.count.drop(DropMalformed)
		return
	}
	ip.trim(ip.hdrLen + udpLen + n)
	p.trains.add(p, ip, src, dst, segment)
}

// maxGuestSegments is the most that Linux puts into one super-segment.
const maxGuestSegments = 128

// udpFlow is where a guest's datagrams from one address and port to another
// go: to a client that began the flow, or through a mapping to a peer.
type udpFlow struct {
	fwd *udpForward
	m   *mapping
	pr  *peer
}

// find returns the flow of a datagram. Flows that began outside come first: to
// the guest, their client is an address like any other. It returns false if the
// datagram has been dealt with.
func (p *Port) find(ip *packet, src, dst netip.AddrPort, segment int) (udpFlow, bool) {
	if f := p.fwd.find(src, dst); f != nil {
		return udpFlow{fwd: f}, true
	}
	if m := p.nat.find(protoUDP, src); m != nil {
		if pr := m.lookup(dst); pr != nil {
			return udpFlow{m: m, pr: pr}, true
		}
	}
	v6 := dst.Addr().Is6()
	gw := p.net.gateway(v6)
	v := p.check(dst)
	if p.refuse(v, src.Addr(), dst.Addr(), ip.head) {
		return udpFlow{}, false
	}
	switch v {
	case closed:
		p.sendError(gw, src.Addr(), errPort(v6), ip.head)
		return udpFlow{}, false
	case service:
		dgram.Cut(segment, p.trains.payload(ip), func(a, b []byte) bool {
			p.serveDNSDatagram(src, dst, flat(a, b))
			return true
		})
		return udpFlow{}, false
	}
	targets, err := p.net.targets("udp", v, src, dst)
	if err != nil {
		p.count.drop(DropPolicy)
		if u, ok := explain(err, v6); ok {
			p.sendError(gw, src.Addr(), u, ip.head)
		}
		return udpFlow{}, false
	}
	m := p.nat.get(p, protoUDP, src)
	if m == nil {
		p.count.drop(DropUDPFlows)
		return udpFlow{}, false
	}
	pr := m.addPeer(dst, targets[0])
	if pr == nil {
		p.count.drop(DropUDPFlows)
		return udpFlow{}, false
	}
	if v == hostPort {
		dgram.Cut(segment, p.trains.payload(ip), func(a, b []byte) bool {
			if len(a)+len(b) <= etherMTU {
				m.mu.Lock()
				pr.retry = flatCopy(a, b)
				m.mu.Unlock()
			}
			return false
		})
	}
	return udpFlow{m: m, pr: pr}, true
}

// flat returns two consecutive parts as one, without a copy if it can.
func flat(a, b []byte) []byte {
	if len(b) == 0 {
		return a
	}
	return flatCopy(a, b)
}

func flatCopy(a, b []byte) []byte {
	return append(append(make([]byte, 0, len(a)+len(b)), a...), b...)
}

// send sends a datagram or a train on its way. ip has the headers of the first.
func (f *udpFlow) send(ip *packet, segment int, pieces [][]byte) {
	if f.fwd != nil {
		f.fwd.reply(segment, pieces...)
		return
	}
	f.m.toHost(f.pr, ip, segment, pieces)
}

// toHost sends a guest's datagrams to a peer. A failure that a router would
// report is reported to the guest.
func (m *mapping) toHost(pr *peer, ip *packet, segment int, pieces [][]byte) {
	p := m.port
	now := time.Now()
	m.used.Set(now)
	m.mu.Lock()
	pr.used = now
	real := pr.real
	m.mu.Unlock()
	ttl := ip.ttl - 1
	if ttl == 0 {
		ttl = 1 // to the gateway: a host behind it is no further hop
	}
	s, err := m.socket(real.Addr().Is6())
	if err == nil && s != nil {
		err = s.send(real, ttl, ip.df, segment, pieces)
		if err != nil && pendingError(err) && m.readErrors(s) {
			// Maybe it was about an earlier one.
			err = s.send(real, ttl, ip.df, segment, pieces)
		}
		if errors.Is(err, errNoTrain) || err != nil && segment > 0 && pendingError(err) {
			// One by one it shows which of them fails, and why.
			one := make([][]byte, 2)
			dgram.Cut(segment, pieces, func(a, b []byte) bool {
				one[0], one[1] = a, b
				m.toHost(pr, ip, 0, one)
				return true
			})
			return
		}
		if ip.df && errors.Is(err, syscall.EMSGSIZE) {
			err = m.tooBig(s, real, ttl, ip, pieces)
		}
	}
	if err == nil || errors.Is(err, os.ErrClosed) {
		return
	}
	n, _ := dgram.Count(segment, pieces)
	p.count.dropN(DropUDPSend, n)
	if m.proto != protoUDP && errors.Is(err, syscall.EACCES) && s == nil {
		p.net.warnPing(err)
		return
	}
	v6 := ip.v6()
	if u, ok := explain(err, v6); ok {
		p.sendError(p.net.gateway(v6), ip.src, u, ip.head)
	}
}
