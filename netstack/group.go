package netstack

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// budget bounds what one port may do in a second. Its reader alone uses it.
type budget struct {
	left int
	at   time.Time
}

// take spends n of a budget of so many a second, a fifth of which may be saved
// up. What is left decides, not what is asked for: the most expensive frame may
// pass, and what it costs is paid back before the next one.
func (b *budget) take(n, rate int, now time.Time) bool {
	most := max(1, rate/5)
	since := now.Sub(b.at)
	switch gain := int64(since) * int64(rate) / int64(time.Second); {
	case b.at.IsZero() || since > time.Minute:
		b.left, b.at = most, now
	default:
		b.left = min(most, b.left+int(gain))
		b.at = b.at.Add(time.Duration(gain * int64(time.Second) / int64(rate))) // what is left of it is not lost
	}
	if b.left <= 0 {
		return false
	}
	b.left -= n
	return true
}

// flood writes a group frame to every one of the ports but this one, and to the
// uplink.
func (p *Port) flood(to []*Port, f *frame, v uint16) {
	up := p.net.members.Load().uplink
	if up == p {
		up = nil
	}
	// A copy costs a system call, and as much again for each page of it.
	if !p.spend((len(to) + 1) * (1 + f.size()>>12)) {
		return
	}
	apart := false
	for _, q := range to {
		switch {
		case q == p:
		case p.apart(q):
			apart = true
		default:
			q.writeFrame(f, v)
		}
	}
	if up != nil {
		up.writeFrame(f, v)
	} else if apart {
		p.count.drop(DropPrivate)
	}
}

// spend takes what group frames cost out of the port's budget.
func (p *Port) spend(cost int) bool {
	if !p.floods.take(cost, p.net.cfg.Limits.Flood, time.Now()) {
		p.count.drop(DropFlood)
		return false
	}
	return true
}

// within counts one against a bound of so many a second. The world outside has none.
func (p *Port) within(b *budget, rate int) bool {
	if p.uplink || b.take(1, rate, time.Now()) {
		return true
	}
	p.count.drop(DropRate)
	return false
}

// apart tells whether two ports are members that may not talk to each other.
func (p *Port) apart(q *Port) bool { return p.net.cfg.Private && !p.uplink && !q.uplink }

// inputGroup takes IGMP and MLD. Frames for groups go to every member, whose
// kernel knows what it wants: nobody inside has to be told. Outside there may be
// switches that want to know, and routers that ask. A member that asked would make
// all others talk, and be the one whom they tell.
func (p *Port) inputGroup(kind groupMessage, src netip.Addr, f *frame, v uint16) {
	t := p.net.members.Load()
	switch {
	case !src.IsUnspecified() && !p.mayUse(v, src):
		p.count.drop(DropSpoofed)
	case p.uplink && kind == groupQuery && t.lanes[v] != nil:
		p.flood(t.lanes[v].ports, f, v)
	case !p.uplink && kind == groupReport && t.uplink != nil:
		if p.spend(1) {
			t.uplink.writeFrame(f, v)
		}
	default:
		p.count.drop(DropGroup)
	}
}

// groupMessage is what a message about groups wants.
type groupMessage int

const (
	noGroupMessage groupMessage = iota
	groupQuery
	groupReport
	groupOther // malformed, unknown, or of another protocol for multicast routers
)

// parseGroup reads a message of IGMP (RFC 9776), MLD (RFC 9777) or multicast
// router discovery (RFC 4286).
func parseGroup(ip *packet) groupMessage {
	const minLen, minLen6 = 8, 24
	l4 := ip.l4()
	switch {
	case ip.proto == protoIGMP && !ip.v6():
		if ip.frag || len(l4) < minLen || ^sum2(0, l4, ip.tail) != 0 {
			return groupOther
		}
		switch l4[0] {
		case 0x11:
			return groupQuery
		case 0x12, 0x16, 0x17, 0x22:
			return groupReport
		}
		return groupOther
	case ip.proto == protoICMPv6 && ip.v6() && ip.offset == 0 && len(l4) > 0:
		switch l4[0] {
		case 130, 131, 132, 143, 151, 152, 153:
		default:
			return noGroupMessage
		}
		// Of hosts on the link alone.
		if ip.frag || ip.ttl != 1 || len(l4) < minLen || l4[0] < 140 && len(l4) < minLen6 || !ip.checksumOK() {
			return groupOther
		}
		switch l4[0] {
		case 130:
			return groupQuery
		case 131, 132, 143:
			return groupReport
		}
		return groupOther
	}
	return noGroupMessage
}

// isServerAnswer tells whether a datagram is one of a DHCP server.
func isServerAnswer(ip *packet) bool {
	l4 := ip.l4()
	if ip.proto != protoUDP || ip.offset != 0 || len(l4) < 2 {
		return false
	}
	port := binary.BigEndian.Uint16(l4)
	return !ip.v6() && port == 67 || ip.v6() && port == 547
}
