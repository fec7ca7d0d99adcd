package netstack

import (
	"net"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// flowTable are the TCP connections of one port.
type flowTable struct {
	mu     sync.Mutex
	flows  map[*tcpFlow]struct{}
	dials  int
	closed bool
}

// tcpFlow is one established connection between a guest and the host.
type tcpFlow struct {
	ep   tcpip.Endpoint
	host *net.TCPConn // nil for a service of the gateway
	once sync.Once
	dead chan struct{} // closed by abort
}

func (t *flowTable) init() { t.flows = map[*tcpFlow]struct{}{} }

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

// add registers a flow and sizes its buffers: what is left of the port's
// memory, evenly shared.
func (t *flowTable) add(p *Port, f *tcpFlow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.flows) >= p.net.cfg.Limits.TCPFlows {
		return false
	}
	t.flows[f] = struct{}{}
	size := min(tcpBufMax, max(tcpBufFloor, p.net.cfg.Limits.TCPMemory/(2*len(t.flows))))
	so := f.ep.SocketOptions()
	so.SetSendBufferSize(int64(size), true)
	so.SetReceiveBufferSize(int64(size), true)
	p.wg.Add(1)
	return true
}

func (t *flowTable) remove(p *Port, f *tcpFlow) {
	t.mu.Lock()
	delete(t.flows, f)
	t.mu.Unlock()
	p.wg.Done()
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

// abort resets both sides.
func (f *tcpFlow) abort() {
	f.once.Do(func() {
		close(f.dead)
		f.ep.Abort()
		if f.host != nil {
			resetConn(f.host)
		}
	})
}

// resetConn closes a connection with a RST. Its errors have no reader: the
// connection is gone in any case.
func resetConn(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
