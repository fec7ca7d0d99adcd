package netstack

import (
	"net/netip"
	"sync"

	"github.com/rootless-sbx/sbx/internal/dgram"
)

// Datagrams of a flow mostly come in bursts, and one call that sends many of
// them costs little more than one that sends a single one. So what a burst of
// reads brings of one flow waits until the link has no more, or the flow has a
// train that is full, or others have waited for long enough: then it is sent.
// A datagram that comes alone leaves at once.

const (
	// openTrains is how many flows of a port are collected at a time.
	openTrains = 8
	// maxJoined is the largest datagram that is copied into a train. Above, the
	// copy costs more than the call.
	maxJoined = 16 << 10
	// maxBurst is how many bytes are read from the link before what waits
	// leaves, whether more is to come or not.
	maxBurst = 256 << 10
)

// trains are those of one port. Its reader alone uses them.
type trains struct {
	open    [openTrains]openTrain
	last    int // the one that was used last
	victim  int // the one to be replaced next
	waiting int // those that have something to send
	burst   int // bytes read since something waits
	parts   [2][]byte
}

// openTrain collects the datagrams of one flow. It stays open when it is empty,
// as the way to the flow's tables is the longer one.
type openTrain struct {
	src, dst netip.AddrPort
	flow     udpFlow
	changes  uint64 // Port.flowChanges when flow was found

	// What waits: headers and payload of the first datagram, whose packet is
	// first, and the payloads of the others.
	buf     *trainBuf
	first   packet
	start   int // of the first payload
	end     int
	segment int
	count   int
}

type trainBuf [headLen + dgram.MaxBytes]byte

var trainBufs = sync.Pool{New: func() any { return new(trainBuf) }}

// flowsChanged makes the port look for the flow of each datagram again.
func (p *Port) flowsChanged() { p.flowChanges.Add(1) }

// payload is what follows the UDP header. It is valid until the next call.
func (ts *trains) payload(ip *packet) [][]byte {
	ts.parts = [2][]byte{ip.l4()[udpLen:], ip.tail}
	return ts.parts[:]
}

// add takes a datagram, or several that must be cut.
func (ts *trains) add(p *Port, ip *packet, src, dst netip.AddrPort, segment int) {
	changes := p.flowChanges.Load()
	t := ts.find(src, dst)
	if t == nil || t.changes != changes {
		flow, ok := p.find(ip, src, dst, segment)
		if !ok {
			return
		}
		if t == nil {
			t = &ts.open[ts.victim]
			ts.last, ts.victim = ts.victim, (ts.victim+1)%openTrains
		}
		ts.flush(t)
		t.src, t.dst, t.flow, t.changes = src, dst, flow, changes
	}
	n := ip.l4Size() - udpLen
	if segment > 0 || n == 0 || n > maxJoined {
		ts.flush(t) // keeps their order
		t.flow.send(ip, segment, ts.payload(ip))
		return
	}
	if !t.fits(ip, n) {
		ts.flush(t)
	}
	if t.count == 0 {
		t.begin(ip, n)
		ts.waiting++
	}
	t.end += copy(t.buf[t.end:], ip.l4()[udpLen:])
	t.end += copy(t.buf[t.end:], ip.tail)
	t.count++
	if n < t.segment || t.count == dgram.MaxSegments {
		ts.flush(t)
	}
}

func (ts *trains) find(src, dst netip.AddrPort) *openTrain {
	for i := range openTrains {
		i = (ts.last + i) % openTrains
		if t := &ts.open[i]; t.src == src && t.dst == dst {
			ts.last = i
			return t
		}
	}
	return nil
}

// fits tells whether a datagram of n bytes can follow those that wait.
func (t *openTrain) fits(ip *packet, n int) bool {
	return t.count == 0 || n <= t.segment && t.end-t.start+n <= dgram.MaxBytes &&
		ip.ttl == t.first.ttl && ip.df == t.first.df
}

// begin makes a datagram the first of a train.
func (t *openTrain) begin(ip *packet, n int) {
	t.buf = trainBufs.Get().(*trainBuf)
	t.start = copy(t.buf[:], ip.head[:ip.hdrLen+udpLen])
	t.end, t.segment = t.start, n
	t.first = *ip
	t.first.head, t.first.tail = t.buf[:t.start+min(n, headLen)], nil
}

// flush sends what waits of one flow.
func (ts *trains) flush(t *openTrain) {
	if t.count == 0 {
		return
	}
	segment := t.segment
	if t.count == 1 {
		segment = 0
	}
	t.count = 0
	if ts.waiting--; ts.waiting == 0 {
		ts.burst = 0
	}
	ts.parts = [2][]byte{t.buf[t.start:t.end]}
	t.flow.send(&t.first, segment, ts.parts[:1])
	trainBufs.Put(t.buf)
	t.buf = nil
}

// age counts what the reader has read since something waits.
func (ts *trains) age(p *Port, n int) {
	if ts.waiting == 0 {
		return
	}
	if ts.burst += n; ts.burst > maxBurst {
		p.flushTrains()
	}
}

// flushTrains sends whatever waits.
func (p *Port) flushTrains() {
	ts := &p.trains
	for i := 0; ts.waiting > 0 && i < openTrains; i++ {
		ts.flush(&ts.open[i])
	}
}
