package netstack

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds of the fragments that one port may have waiting.
const (
	maxDatagrams  = 64
	maxFragBytes  = 1 << 20
	fragTimeout   = 15 * time.Second
	maxFragPieces = 128 // 64 KiB at an MTU of 576 are 119
)

// reassembler joins the fragments of a port's datagrams. Overlaps end the
// datagram (RFC 5722), duplicates of a whole piece do not.
type reassembler struct {
	mu    sync.Mutex
	open  map[fragKey]*datagram
	bytes int
}

type fragKey struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

type datagram struct {
	born   time.Time
	pieces []piece // sorted by offset, without overlaps
	have   int     // bytes of payload
	total  int     // -1 until the last fragment is here
	header []byte  // IP header of the first fragment
	proto  uint8
	ttl    uint8
}

type piece struct {
	offset int
	data   []byte
}

func (r *reassembler) init() { r.open = map[fragKey]*datagram{} }

// add takes one fragment. It returns the whole datagram when this was the last
// piece, nil when more is to come, and false if the fragment was dropped.
func (r *reassembler) add(ip *packet) (*packet, bool) {
	size := ip.l4Size()
	if size == 0 || ip.more && size%8 != 0 || ip.offset+size > 65535-ip4Len {
		return nil, false
	}
	key := fragKey{src: ip.src, dst: ip.dst, id: ip.id}
	if !ip.v6() {
		key.proto = ip.proto
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.open[key]
	if d == nil {
		if len(r.open) >= maxDatagrams {
			return nil, false
		}
		d = &datagram{born: time.Now(), total: -1}
		r.open[key] = d
	}
	if r.bytes+size > maxFragBytes || !d.insert(ip, size) {
		r.forget(key)
		return nil, false
	}
	r.bytes += size
	if d.total < 0 || d.have < d.total || d.header == nil {
		return nil, true
	}
	r.forget(key)
	return d.join(ip)
}

// insert puts a fragment in its place. A duplicate is not an error, and adds
// nothing but its share of maxFragBytes until the datagram ends.
func (d *datagram) insert(ip *packet, size int) bool {
	end := ip.offset + size
	if !ip.more {
		if d.total >= 0 && d.total != end {
			return false
		}
		d.total = end
	}
	if d.total >= 0 && (end > d.total || len(d.pieces) > 0 && d.last() > d.total) {
		return false
	}
	i, found := slices.BinarySearchFunc(d.pieces, ip.offset, func(p piece, off int) int { return p.offset - off })
	switch {
	case found:
		return len(d.pieces[i].data) == size
	case i > 0 && d.pieces[i-1].offset+len(d.pieces[i-1].data) > ip.offset,
		i < len(d.pieces) && end > d.pieces[i].offset,
		len(d.pieces) >= maxFragPieces:
		return false
	}
	data := append(append(make([]byte, 0, size), ip.l4()...), ip.tail...)
	d.pieces = slices.Insert(d.pieces, i, piece{ip.offset, data})
	d.have += size
	if ip.offset == 0 {
		d.header = slices.Clone(ip.head[:ip.hdrLen])
		d.proto, d.ttl = ip.proto, ip.ttl
	}
	return true
}

func (d *datagram) last() int {
	p := d.pieces[len(d.pieces)-1]
	return p.offset + len(p.data)
}

// join makes one datagram of the pieces, with a plain header of its own.
func (d *datagram) join(ip *packet) (*packet, bool) {
	hdrLen := ip4Len
	if ip.v6() {
		hdrLen = ip6Len
	}
	b := make([]byte, hdrLen, hdrLen+d.total)
	for _, p := range d.pieces {
		b = append(b, p.data...)
	}
	if ip.v6() {
		putIPv6(b, ip.src, ip.dst, d.proto, d.ttl, d.total)
	} else {
		putIPv4(b, ip.src, ip.dst, d.proto, d.ttl, d.total, uint16(ip.id), 0)
		b[1] = d.header[1]
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], ^sum(0, b[:ip4Len]))
	}
	return &packet{src: ip.src, dst: ip.dst, proto: d.proto, ttl: d.ttl, hdrLen: hdrLen, head: b, id: ip.id}, true
}

// forget drops a datagram. r.mu is held.
func (r *reassembler) forget(key fragKey) {
	delete(r.open, key)
	r.bytes = 0
	for _, o := range r.open {
		r.bytes += o.have
	}
}

// expire drops what has waited too long.
func (r *reassembler) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, d := range r.open {
		if now.Sub(d.born) > fragTimeout {
			r.forget(k)
		}
	}
}
