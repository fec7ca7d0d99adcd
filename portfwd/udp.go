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

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

// The way of a datagram, in the order of the functions below: read with the
// address that the client talked to, assigned to the client's flow, sent to the
// guest; its reply read from the guest and sent from that same address.
//
// The reading goroutine never waits for the guest: a new flow is set up on its
// own goroutine, and datagrams queue until it is.

//
// Datagrams of one client that have come together go on together, as a train: see
// internal/dgram.

const (
	maxFlowQueue = 32 // datagrams that wait for their flow
	// maxReads bounds how often a socket is read without a look at whether it
	// has been closed.
	maxReads = 64
	// udpBuf is asked for; the kernel cuts it to net.core.rmem_max.
	udpBuf = 1 << 20
)

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
	control []byte        // key.local's control message
	last    dgram.LastUse // either way
	replied atomic.Bool

	mu    sync.Mutex // guards what follows
	queue [][]byte   // datagrams that wait for send
	send  sendFunc   // nil until the guest's side is set up
	first []byte     // the first datagram, to be sent again over the other family
}

// sendFunc sends a datagram or a train without blocking. It does not keep it.
type sendFunc = func(segment int, pieces ...[]byte) error

func newUDPSocket(uc *net.UDPConn) (*udpSocket, error) {
	rc, err := uc.SyscallConn()
	if err != nil {
		uc.Close()
		return nil, err
	}
	enlarge(uc, rc)
	v6 := uc.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is6()
	return &udpSocket{uc: uc, rc: rc, v6: v6, flows: map[flowKey]*flow{}}, nil
}

// enlarge makes room in a socket for bursts, as far as the kernel allows.
func enlarge(uc *net.UDPConn, rc syscall.RawConn) {
	_ = uc.SetReadBuffer(udpBuf)
	_ = uc.SetWriteBuffer(udpBuf)
	_ = rc.Control(func(fd uintptr) { dgram.Join(int(fd)) })
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
	for {
		err := s.rc.Read(func(fd uintptr) bool {
			in := dgram.GetInbox()
			defer in.Put()
			for range maxReads {
				switch errno := in.Receive(int(fd)); errno {
				case 0:
					s.deliverAll(in)
				case unix.EAGAIN:
					return false
				case unix.EINTR:
				default:
					s.p.m.count.udpDropped.Add(1)
				}
			}
			return true
		})
		if err != nil {
			return // closed
		}
	}
}

func (s *udpSocket) deliverAll(in *dgram.Inbox) {
	c := &s.p.m.count
	for {
		t, ok := in.Next()
		if !ok {
			return
		}
		if t.Truncated {
			c.udpDropped.Add(1)
			continue
		}
		c.udpIn.Add(uint64(t.Count))
		s.deliver(keyOf(&t), &t)
	}
}

// deliver gives datagrams to their flow, which it makes if there is room.
func (s *udpSocket) deliver(key flowKey, t *dgram.Train) {
	m := s.p.m
	s.mu.Lock()
	f := s.flows[key]
	if f == nil {
		if !take(&m.count.flows, 1, int64(m.lim.UDPFlows)) {
			s.mu.Unlock()
			m.count.udpDropped.Add(uint64(t.Count))
			return
		}
		f = &flow{s: s, key: key, control: key.local.control()}
		f.touch()
		s.flows[key] = f
		s.p.wg.Go(f.run)
	}
	s.mu.Unlock()
	f.touch()
	f.toGuest(t)
}

func (f *flow) touch() { f.last.Set(time.Now()) }

func (f *flow) toGuest(t *dgram.Train) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.s.p.m
	if f.send != nil {
		if f.send(t.Segment, t.Data...) != nil {
			m.count.udpDropped.Add(uint64(t.Count))
		}
		return
	}
	dgram.Cut(t.Segment, t.Data, func(a, b []byte) bool {
		f.enqueue(append(append([]byte{}, a...), b...))
		return true
	})
	if t.Bytes == 0 {
		f.enqueue([]byte{})
	}
}

// enqueue keeps a datagram until the guest's side is set up. f.mu is held.
func (f *flow) enqueue(b []byte) {
	m := f.s.p.m
	if len(f.queue) >= maxFlowQueue || !take(&m.count.udpBytes, int64(len(b)), int64(m.lim.UDPBytes)) {
		m.count.udpDropped.Add(1)
		return
	}
	f.queue = append(f.queue, b)
}

// open sends what has waited and lets the reader send from now on.
func (f *flow) open(send sendFunc, keepFirst bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.s.p.m
	for i, b := range f.queue {
		if send(0, b) != nil {
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
			slog.String("port", p.String()), slog.Any("client", f.key.client), slog.Any("err", err))
	}
}

// idle returns how long the flow may stay silent from now on; 0 or less means
// that its time is over.
func (f *flow) idle() time.Duration {
	limit := f.s.p.m.lim.UDPUnreplied
	if f.replied.Load() {
		limit = f.s.p.m.lim.UDPIdle
	}
	return limit - f.last.Ago(time.Now())
}

func (f *flow) runStack(src, dst netip.AddrPort) error {
	p := f.s.p
	uf, err := p.m.cfg.Stack.OpenUDP(src, dst, func(segment int, pieces ...[]byte) { f.toClient(segment, pieces, false) })
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
	f.send = func(int, ...[]byte) error { return net.ErrClosed }
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
	enlarge(c, rc)
	send := func(segment int, pieces ...[]byte) error {
		var serr error
		if err := rc.Control(func(fd uintptr) { serr = sendNow(int(fd), segment, pieces) }); err != nil {
			return err
		}
		if serr == nil {
			_, size := dgram.Count(segment, pieces)
			p.m.count.bytesIn.Add(uint64(size))
		}
		return serr
	}
	f.mu.Lock()
	again := f.first
	f.first = nil
	f.mu.Unlock()
	if again != nil {
		send(0, again) // lost like any other datagram if it cannot be sent
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
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			rerr = f.readSocket(int(fd))
			return rerr != unix.EAGAIN
		})
		switch {
		case err != nil && f.s.p.ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case err != nil, rerr == nil:
			continue // the deadline: idle decides
		}
		// Most likely ECONNREFUSED: nothing listens. A server may yet start.
		f.s.p.m.count.refused.Add(1)
		if retry && !f.replied.Load() && rerr == unix.ECONNREFUSED {
			return rerr
		}
	}
}

// readSocket passes on what waits in the guest's socket. EAGAIN says that it was
// everything.
func (f *flow) readSocket(fd int) error {
	in := dgram.GetInbox()
	defer in.Put()
	for range maxReads {
		if errno := in.Receive(fd); errno != 0 {
			return errno
		}
		for {
			t, ok := in.Next()
			if !ok {
				break
			}
			f.s.p.m.count.bytesOut.Add(uint64(t.Bytes))
			f.toClient(t.Segment, t.Data, true)
		}
	}
	return nil
}

// toClient sends replies from the address that the client talked to.
func (f *flow) toClient(segment int, pieces [][]byte, wait bool) {
	c := &f.s.p.m.count
	if !f.replied.Swap(true) {
		f.forget() // the first datagram has arrived
	}
	f.touch()
	n, _ := dgram.Count(segment, pieces)
	if err := f.s.sendTo(f, segment, pieces, wait); err != nil {
		c.udpDropped.Add(uint64(n))
		return
	}
	c.udpOut.Add(uint64(n))
}

// sendTo sends to a flow's client. It may wait for room in the socket's buffer.
func (s *udpSocket) sendTo(f *flow, segment int, pieces [][]byte, wait bool) error {
	var errno unix.Errno
	to := f.key.client
	zone := zoneID(to.Addr())
	one := func(segment int, pieces [][]byte) error {
		err := s.rc.Write(func(fd uintptr) bool {
			errno = dgram.Send(int(fd), to, zone, f.control, segment, pieces)
			return errno != unix.EAGAIN || !wait
		})
		if err == nil && errno != 0 {
			err = errno
		}
		return err
	}
	return sendTrain(one, segment, pieces)
}

// sendNow sends on a connected socket without waiting.
func sendNow(fd int, segment int, pieces [][]byte) error {
	return sendTrain(func(segment int, pieces [][]byte) error {
		errno := dgram.Send(fd, netip.AddrPort{}, 0, nil, segment, pieces)
		if errno == unix.ECONNREFUSED {
			// A pending error of an earlier datagram is reported here once and
			// this one not sent; so try twice.
			errno = dgram.Send(fd, netip.AddrPort{}, 0, nil, segment, pieces)
		}
		if errno != 0 {
			return errno
		}
		return nil
	}, segment, pieces)
}

// sendTrain sends datagrams together or, where the kernel refuses that, one by
// one.
func sendTrain(send func(int, [][]byte) error, segment int, pieces [][]byte) error {
	err := send(segment, pieces)
	var errno unix.Errno
	if segment == 0 || !errors.As(err, &errno) || !dgram.Refuses(errno) {
		return err
	}
	err = nil
	dgram.Cut(segment, pieces, func(a, b []byte) bool {
		err = send(0, [][]byte{a, b})
		return true
	})
	return err
}
