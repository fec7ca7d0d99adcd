package netstack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// A frame belongs to one VLAN: that of its 802.1Q tag, or without a tag that of
// its port. Inside the switch no frame has a tag: the reader takes it out, and
// writeFrame puts it back for a port on which the VLAN is a trunk's.

const (
	etherVLAN    = 0x8100
	etherQinQ    = 0x88a8 // IEEE 802.1ad
	etherQinQOld = 0x9100 // before it

	vlanTagLen = 4
	maxVLAN    = 4094
	vlanMask   = 0xfff
	// maxTrunk bounds the VLANs of one port: each has a table of its ports.
	maxTrunk = 64
)

// untag takes an 802.1Q tag out of a frame as it was read, in place, and corrects
// the virtio header.
func (f *frame) untag() {
	if len(f.head) < ethLen+vlanTagLen || f.tagged || binary.BigEndian.Uint16(f.head[12:]) != etherVLAN {
		return
	}
	f.tagged, f.tci = true, binary.BigEndian.Uint16(f.head[14:])
	copy(f.head[vlanTagLen:], f.head[:12])
	f.head = f.head[vlanTagLen:]
	f.vnet.move(-vlanTagLen)
	f.vnet.put(f.raw)
}

// vlanOf tells to which VLAN a frame of the guest belongs, and whether the port
// carries it. A tag of VLAN 0 is only a priority.
func (p *Port) vlanOf(f *frame) (v uint16, ok bool) {
	if v = f.tci & vlanMask; v == 0 {
		return p.vlan, true
	}
	return v, p.carries(v)
}

// carries tells whether frames of a VLAN cross the port.
func (p *Port) carries(v uint16) bool {
	if v == p.vlan || p.uplink {
		return true
	}
	_, ok := slices.BinarySearch(p.trunk, v)
	return ok
}

// writeFrame sends another port's frame to the guest: as it came, virtio header
// included, or with the tag of its VLAN.
func (p *Port) writeFrame(f *frame, v uint16) {
	// Not by append, which would move the header to the heap.
	var arr [4]unix.Iovec
	if v == p.vlan {
		arr[0], arr[1] = iovecOf(f.raw), iovecOf(f.head)
		n := 2
		if len(f.tail) > 0 {
			arr[2], n = iovecOf(f.tail), 3
		}
		_ = p.write(arr[:n], f.size()) // counted as a drop of the receiver
		return
	}
	var hdr [vnetHdrLen + 12 + vlanTagLen]byte
	vnet := f.vnet
	vnet.move(vlanTagLen)
	vnet.put(hdr[:])
	copy(hdr[vnetHdrLen:], f.head[:12])
	tag := hdr[vnetHdrLen+12:]
	binary.BigEndian.PutUint16(tag, etherVLAN)
	binary.BigEndian.PutUint16(tag[2:], f.tci&^vlanMask|v)
	arr[0], arr[1], arr[2] = iovecOf(hdr[:vnetHdrLen]), iovecOf(hdr[vnetHdrLen:]), iovecOf(f.head[12:])
	n := 3
	if len(f.tail) > 0 {
		arr[3], n = iovecOf(f.tail), 4
	}
	_ = p.write(arr[:n], f.size()+vlanTagLen)
}

// setVLANs checks and sets a port's VLANs.
func (p *Port) setVLANs() error {
	p.vlan = p.cfg.VLAN
	if p.vlan == 0 {
		p.vlan = p.net.cfg.VLAN
	}
	p.trunk = slices.Compact(slices.Sorted(slices.Values(p.cfg.Trunk)))
	if len(p.trunk) > maxTrunk {
		return fmt.Errorf("a trunk of %d VLANs, limit %d", len(p.trunk), maxTrunk)
	}
	if p.vlan > maxVLAN {
		return fmt.Errorf("VLAN %d is out of range: 0 to %d", p.vlan, maxVLAN)
	}
	for _, v := range p.trunk {
		if v == 0 || v > maxVLAN {
			return fmt.Errorf("VLAN %d of the trunk is out of range: 1 to %d", v, maxVLAN)
		}
	}
	p.trunk = slices.DeleteFunc(p.trunk, func(v uint16) bool { return v == p.vlan })
	return nil
}

// pinned tells whether the switch knows the port's addresses of a family in a
// VLAN. In those of a trunk they are the guest's own affair, and so is an address
// that it has from outside.
func (p *Port) pinned(v uint16, v6 bool) bool {
	switch {
	case v != p.vlan || p.uplink:
		return false
	case p.net.cfg.Uplink != nil:
		return pick(v6, p.cfg.Addr4, p.cfg.Addr6).IsValid()
	}
	return true
}

// mayUse tells whether the guest may say that an address is its own.
func (p *Port) mayUse(v uint16, a netip.Addr) bool {
	if p.pinned(v, a.Is6()) {
		return p.owns(a)
	}
	if a.IsMulticast() || a.IsLoopback() || a == bcast4 {
		return false
	}
	if q := p.net.member(a); q != nil && q.vlan == v {
		return q == p
	}
	return v != p.net.cfg.VLAN || !p.net.isGateway(a)
}

// lane is what the switch knows of one VLAN.
type lane struct {
	ports []*Port
	// loose are those of ports whose addresses in this VLAN the switch does not
	// know: who looks for another address must ask them.
	loose []*Port
}

// withLanes is a copy of the table with a port put in or taken out of its VLANs.
func (t *members) withLanes(p *Port, in bool) map[uint16]*lane {
	lanes := make(map[uint16]*lane, len(t.lanes)+1)
	for v, l := range t.lanes {
		lanes[v] = l
	}
	change := func(s []*Port) []*Port {
		if in {
			return append(slices.Clip(s), p)
		}
		return slices.DeleteFunc(slices.Clone(s), func(q *Port) bool { return q == p })
	}
	for _, v := range append([]uint16{p.vlan}, p.trunk...) {
		old := lanes[v]
		if old == nil {
			old = &lane{}
		}
		l := &lane{ports: change(old.ports), loose: old.loose}
		if !p.pinned(v, false) || !p.pinned(v, true) {
			l.loose = change(old.loose)
		}
		if len(l.ports) == 0 {
			delete(lanes, v)
			continue
		}
		lanes[v] = l
	}
	return lanes
}
