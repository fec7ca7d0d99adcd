package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// flowTable are the TCP connections of one port.
type flowTable struct {
	mu     sync.Mutex
	flows  map[*tcpFlow]struct{}
	dials  int
	closed bool
	share  int // size of a flow's buffers
}

// tcpFlow is one established connection between a guest and the host.
type tcpFlow struct {
	port *Port
	ep   tcpip.Endpoint
	wq   waiter.Queue
	host *hostConn // nil for a service of the gateway
	once sync.Once
	done chan struct{} // if not nil, closed at the end
	// relayBuf is the size of the buffer that upload takes next.
	relayBuf atomic.Int64

	entry    waiter.Entry
	listens  atomic.Bool
	up, down task
	last     task         // sees a reset, and the end
	open     atomic.Int32 // directions that have not ended
	blocked  atomic.Bool  // upload waits for room in the host's socket
	drain    atomic.Bool  // download must read until there is nothing: see hostDrain

	// Used by the task of one direction alone.
	out        collector // what upload has read and not yet written
	rest       []byte    // what download has read and not yet written
	much       bool      // download found a full buffer the last time
	uploaded   bool      // the direction has ended
	downloaded bool
	wait       time.Duration // until settle asks again
}

func (t *flowTable) init() { t.flows, t.share = map[*tcpFlow]struct{}{}, tcpBufMax }

func (t *flowTable) len() (flows, dials int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.flows), t.dials
}

// beginDial takes a place for an attempt. It returns the reason of a refusal,
// or -1. Each place taken counts in p.wg.
func (t *flowTable) beginDial(p *Port) Drop {
	lim := &p.net.cfg.Limits
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.dials >= lim.TCPDials {
		return DropTCPDials
	}
	if len(t.flows)+t.dials >= lim.TCPFlows {
		return DropTCPFlows
	}
	t.dials++
	p.wg.Add(1)
	return -1
}

func (t *flowTable) endDial(p *Port) {
	t.mu.Lock()
	t.dials--
	t.mu.Unlock()
	p.wg.Done()
}

// add registers a flow and sizes its buffers.
func (t *flowTable) add(p *Port, f *tcpFlow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.flows) >= p.net.cfg.Limits.TCPFlows {
		return false
	}
	t.flows[f] = struct{}{}
	if !t.fit(p) {
		f.setBuffers(t.share)
	}
	p.wg.Add(1)
	return true
}

func (t *flowTable) remove(p *Port, f *tcpFlow) {
	t.mu.Lock()
	delete(t.flows, f)
	t.fit(p)
	t.mu.Unlock()
	p.wg.Done()
}

// MinFlowMemory is what a TCP flow takes at most when there are very many.
const MinFlowMemory = tcpRcvFloor + 2*tcpShareMin

// flowMemory is the most that one flow takes if its share is so large: what is
// received, what is to be sent, and the buffer in which upload collects.
func flowMemory(share int) int { return max(share, tcpRcvFloor) + share + relayBufLen(share) }

// fit makes the buffers of all flows together fit into the port's memory: it
// halves them as flows come, and doubles them when a half of the memory would
// do. It returns true if it has set every flow's. t.mu is held.
func (t *flowTable) fit(p *Port) bool {
	n, memory, share := max(1, len(t.flows)), p.net.cfg.Limits.TCPMemory, t.share
	for share > tcpShareMin && n*flowMemory(share) > memory {
		share /= 2
	}
	for share < tcpBufMax && n*flowMemory(2*share) <= memory/2 {
		share *= 2
	}
	if share == t.share {
		return false
	}
	t.share = share
	for f := range t.flows {
		f.setBuffers(share)
	}
	return true
}

// setBuffers bounds a flow's buffers, and ends gVisor's own tuning of them. What
// is in them already stays until it is read.
func (f *tcpFlow) setBuffers(share int) {
	so := f.ep.SocketOptions()
	so.SetSendBufferSize(int64(share), true)
	so.SetReceiveBufferSize(int64(max(share, tcpRcvFloor)), true)
	f.relayBuf.Store(int64(relayBufLen(share)))
}

// abort resets every flow and lets no new one in.
func (t *flowTable) abort(n *Network, p *Port) {
	t.mu.Lock()
	t.closed = true
	var all []*tcpFlow
	for f := range t.flows {
		all = append(all, f)
	}
	t.mu.Unlock()
	for _, f := range all {
		f.abort()
	}
	// A handshake may register its endpoint just now: ask until none is left.
	for {
		n.tcp.abortHandshakes(p)
		if _, dials := t.len(); dials == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// end is called once by each direction.
func (f *tcpFlow) end() {
	if f.open.Add(-1) > 0 {
		return
	}
	f.host.close()
	f.last.wake()
}

// leave ends a connection to a service of the gateway.
func (f *tcpFlow) leave() {
	_ = f.ep.Shutdown(tcpip.ShutdownWrite) // the guest may have gone
	f.last.flow, f.last.do = f, (*tcpFlow).settle
	f.listen(waiter.EventHUp | waiter.EventErr)
	f.last.wake()
}

// listen has NotifyEvent called.
func (f *tcpFlow) listen(events waiter.EventMask) {
	f.entry.Init(f, events)
	f.wq.EventRegister(&f.entry)
	f.listens.Store(true)
}

// settle resets a flow whose guest has reset it, be the relay waiting for the host
// alone. When both directions have ended it closes the guest's side, once the guest
// has acknowledged everything that was sent. Until then the flow has its place in
// the table: what a guest does not read counts in its memory, and is freed with its
// port.
func (f *tcpFlow) settle(*worker) {
	state := tcp.EndpointState(f.ep.State())
	switch {
	case f.open.Load() > 0:
		if state == tcp.StateError {
			f.abort()
		}
	case state == tcp.StateFinWait2, state == tcp.StateTimeWait, state == tcp.StateClose, state == tcp.StateError:
		f.finish(false)
	default: // not every end is an event
		f.wait = min(max(2*f.wait, 10*time.Millisecond), time.Second)
		time.AfterFunc(f.wait, f.last.wake)
	}
}

// abort resets both sides.
func (f *tcpFlow) abort() { f.finish(true) }

func (f *tcpFlow) finish(reset bool) {
	f.once.Do(func() {
		if reset {
			f.ep.Abort()
		} else {
			f.ep.Close()
		}
		if f.listens.Load() {
			f.wq.EventUnregister(&f.entry)
		}
		if f.host != nil {
			f.host.end(reset)
			f.up.wake() // to give back its buffer
		}
		f.port.flows.remove(f.port, f)
		if f.done != nil {
			close(f.done)
		}
	})
}
