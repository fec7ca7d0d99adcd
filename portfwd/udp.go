package portfwd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The way of a datagram, in the order of the functions below: read with the
// address that the client talked to, assigned to the client's flow, sent to the
// guest; its reply read from the guest and sent from that same address.
//
// The reading goroutine never waits for the guest: a new flow is set up on its
// own goroutine, and datagrams queue until it is.

const (
	maxDatagram  = 65535
	maxFlowQueue = 32 // datagrams that wait for their flow
)

var datagrams = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// udpSocket is one listening socket and its flows.
type udpSocket struct {
	uc *net.UDPConn
	rc syscall.RawConn
	v6 bool
	p  *published // set by start

	mu    sync.Mutex // guards what follows
	flows map[flowKey]*flow
}

// flowKey tells flows apart. A client that talks to two addresses of the host
// has two, because the replies come from different ones.
type flowKey struct {
	client netip.AddrPort
	local  localAddr
}

// flow is one client's connected way to the guest.
type flow struct {
	s       *udpSocket
	key     flowKey
	last    atomic.Int64 // time of the last datagram, either way
	replied atomic.Bool

	mu    sync.Mutex         // guards what follows
	queue [][]byte           // datagrams that wait for send
	send  func([]byte) error // nil until the guest's side is set up; does not block
	first []byte             // the first datagram, to be sent again over the other family
}

func newUDPSocket(uc *net.UDPConn) (*udpSocket, error) {
	rc, err := uc.SyscallConn()
	if err != nil {
		uc.Close()
		return nil, err
	}
	// Best effort: the kernel caps it at net.core.rmem_max.
	uc.SetReadBuffer(1 << 20)
	v6 := uc.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is6()
	return &udpSocket{uc: uc, rc: rc, v6: v6, flows: map[flowKey]*flow{}}, nil
}

func (s *udpSocket) localPort() uint16 { return s.uc.LocalAddr().(*net.UDPAddr).AddrPort().Port() }
func (s *udpSocket) close() error      { return s.uc.Close() }

func (s *udpSocket) start(p *published) {
	s.p = p
	p.wg.Go(s.read)
}

// read takes datagrams until the socket is closed. A buffer is held only while
// there is something to read, so that many idle ports cost no memory.
func (s *udpSocket) read() {
	c := &s.p.m.count
	for {
		var (
			buf  *[]byte
			key  flowKey
			n    int
			rerr error
		)
		err := s.rc.Read(func(fd uintptr) bool {
			buf = datagrams.Get().(*[]byte)
			if n, key, rerr = recvFrom(int(fd), *buf); rerr == unix.EAGAIN {
				datagrams.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if err != nil {
			return // closed
		}
		if rerr != nil {
			c.udpDropped.Add(1)
		} else {
			c.udpIn.Add(1)
			s.deliver(key, (*buf)[:n])
		}
		datagrams.Put(buf)
	}
}

// deliver gives a datagram to its flow, which it makes if there is room.
func (s *udpSocket) deliver(key flowKey, b []byte) {
	m := s.p.m
	s.mu.Lock()
	f := s.flows[key]
	if f == nil {
		if !take(&m.count.flows, 1, int64(m.lim.UDPFlows)) {
			s.mu.Unlock()
			m.count.udpDropped.Add(1)
			return
		}
		f = &flow{s: s, key: key}
		f.touch()
		s.flows[key] = f
		s.p.wg.Go(f.run)
	}
	s.mu.Unlock()
	f.touch()
	if err := f.toGuest(b); err != nil {
		m.count.udpDropped.Add(1)
		return
	}
	m.count.bytesIn.Add(uint64(len(b)))
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

var errQueueFull = errors.New("too many datagrams wait for their flow")

func (f *flow) toGuest(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.send != nil {
		return f.send(b)
	}
	m := f.s.p.m
	if len(f.queue) >= maxFlowQueue || !take(&m.count.udpBytes, int64(len(b)), int64(m.lim.UDPBytes)) {
		return errQueueFull
	}
	f.queue = append(f.queue, append([]byte{}, b...))
	return nil
}

// open sends what has waited and lets the reader send from now on.
func (f *flow) open(send func([]byte) error, keepFirst bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.s.p.m
	for i, b := range f.queue {
		if send(b) != nil {
			m.count.udpDropped.Add(1)
		}
		if i == 0 && keepFirst {
			f.first = b
			continue
		}
		m.count.udpBytes.Add(-int64(len(b)))
	}
	f.queue, f.send = nil, send
}

// forget drops the datagrams that the flow still holds.
func (f *flow) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range append(f.queue, f.first) {
		f.s.p.m.count.udpBytes.Add(-int64(len(b)))
	}
	f.queue, f.first = nil, nil
}

// run is the flow's life.
func (f *flow) run() {
	p := f.s.p
	var err error
	if src, dst, ok := p.viaStack(f.key.client, f.key.local.addr()); ok {
		err = f.runStack(src, dst)
	} else {
		err = f.runDirect()
	}
	f.s.mu.Lock()
	delete(f.s.flows, f.key)
	f.s.mu.Unlock()
	f.forget()
	p.m.count.flows.Add(-1)
	if err != nil && p.ctx.Err() == nil {
		p.m.cfg.Logger.LogAttrs(p.ctx, slog.LevelDebug, "published port: UDP flow failed",
			slog.String("port", describe(p.spec)), slog.Any("client", f.key.client), slog.Any("err", err))
	}
}

// idle returns how long the flow may stay silent from now on; 0 or less means
// that its time is over.
func (f *flow) idle() time.Duration {
	limit := f.s.p.m.lim.UDPUnreplied
	if f.replied.Load() {
		limit = f.s.p.m.lim.UDPIdle
	}
	return limit - time.Since(time.Unix(0, f.last.Load()))
}

func (f *flow) runStack(src, dst netip.AddrPort) error {
	p := f.s.p
	uf, err := p.m.cfg.Stack.OpenUDP(src, dst, func(b []byte) { f.toClient(b, unix.MSG_DONTWAIT) })
	if err != nil {
		return err
	}
	defer uf.Close()
	f.open(uf.Send, false)
	defer f.shut()
	t := time.NewTimer(f.idle())
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return nil
		case <-t.C:
		}
		d := f.idle()
		if d <= 0 {
			return nil
		}
		t.Reset(d)
	}
}

// shut makes the reader's datagrams fail from now on, in the moment between the
// end of the flow and its removal from the table.
func (f *flow) shut() {
	f.mu.Lock()
	f.send = func([]byte) error { return net.ErrClosed }
	f.mu.Unlock()
}

// runDirect goes to the guest's address of the client's family and, if that is
// refused before any reply, to the other.
func (f *flow) runDirect() error {
	defer f.shut()
	targets := f.s.p.targets(f.key.client.Addr())
	for i, dst := range targets {
		err := f.runSocket(dst, i == 0 && len(targets) > 1)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
	}
	return nil
}

// runSocket carries the flow over one socket until it is idle. With retry, it
// returns ECONNREFUSED if nothing has ever answered.
func (f *flow) runSocket(dst netip.AddrPort, retry bool) error {
	p := f.s.p
	c, err := p.dialUDP(dst)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	defer stop()
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	send := func(b []byte) error {
		var serr error
		if err := rc.Control(func(fd uintptr) { serr = sendNow(int(fd), b) }); err != nil {
			return err
		}
		return serr
	}
	f.mu.Lock()
	again := f.first
	f.first = nil
	f.mu.Unlock()
	if again != nil {
		send(again) // lost like any other datagram if it cannot be sent
		p.m.count.udpBytes.Add(-int64(len(again)))
	}
	f.open(send, retry)
	return f.readReplies(c, rc, retry)
}

// dialUDP connects a datagram socket of the guest's namespace.
func (p *published) dialUDP(dst netip.AddrPort) (*net.UDPConn, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.m.lim.DialTimeout)
	defer cancel()
	family := familyInet
	if dst.Addr().Is6() {
		family = familyInet6
	}
	sock, err := p.m.cfg.Guest.Socket(ctx, family, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	c, err := connect(ctx, sock, dst)
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("the guest's socket is not a datagram socket")
	}
	return uc, nil
}

// readReplies passes replies to the client until the flow is idle or its socket
// is closed.
func (f *flow) readReplies(c *net.UDPConn, rc syscall.RawConn, retry bool) error {
	for {
		d := f.idle()
		if d <= 0 {
			return nil
		}
		if err := c.SetReadDeadline(time.Now().Add(d)); err != nil {
			return nil // closed
		}
		var (
			buf  *[]byte
			n    int
			rerr error
		)
		err := rc.Read(func(fd uintptr) bool {
			buf = datagrams.Get().(*[]byte)
			if n, rerr = unix.Read(int(fd), *buf); rerr == unix.EAGAIN {
				datagrams.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		switch {
		case err != nil && f.s.p.ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			continue // the deadline; idle decides
		case rerr == nil:
			f.toClient((*buf)[:n], 0)
		}
		datagrams.Put(buf)
		if rerr == nil {
			continue
		}
		// Most likely ECONNREFUSED: nothing listens. A server may yet start.
		f.s.p.m.count.refused.Add(1)
		if retry && !f.replied.Load() && rerr == unix.ECONNREFUSED {
			return rerr
		}
	}
}

// toClient sends a reply from the address that the client talked to.
func (f *flow) toClient(b []byte, flags int) {
	c := &f.s.p.m.count
	if !f.replied.Swap(true) {
		f.forget() // the first datagram has arrived
	}
	f.touch()
	if err := f.s.sendTo(b, f.key, flags); err != nil {
		c.udpDropped.Add(1)
		return
	}
	c.udpOut.Add(1)
	c.bytesOut.Add(uint64(len(b)))
}

// sendTo waits for room in the socket's buffer unless flags say MSG_DONTWAIT.
func (s *udpSocket) sendTo(b []byte, key flowKey, flags int) error {
	var serr error
	call := func(fd uintptr) bool {
		for {
			_, serr = unix.SendmsgN(int(fd), b, key.local.control(), sockaddr(key.client), flags|unix.MSG_NOSIGNAL)
			if serr != unix.EINTR {
				return serr != unix.EAGAIN || flags&unix.MSG_DONTWAIT != 0
			}
		}
	}
	if err := s.rc.Write(call); err != nil {
		return err
	}
	return serr
}

// sendNow sends on a connected socket without waiting.
func sendNow(fd int, b []byte) error {
	for {
		// A pending error of an earlier datagram, such as ECONNREFUSED, is
		// reported here once and the datagram not sent; so try twice.
		_, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECONNREFUSED {
			_, err = unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		return err
	}
}
