package netstack

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relay moves bytes between a guest's connection and a host's until both
// directions have ended. The end of one direction is passed on as a FIN and
// leaves the other one open; an error resets both sides.
func (p *Port) relay(ep tcpip.Endpoint, wq *waiter.Queue, host *net.TCPConn) {
	f := &tcpFlow{ep: ep, host: host, dead: make(chan struct{})}
	if !p.flows.add(p, f) {
		f.abort()
		return
	}
	defer p.flows.remove(p, f)
	setKeepAlive(ep)
	stop := f.abortOnReset(wq)
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() {
		if !f.upload(wq) {
			f.abort()
		}
	})
	if !f.download(wq) {
		f.abort()
	}
	wg.Wait()
	_ = host.Close() // both directions are through
	f.finish(wq)
}

// abortOnReset ends a flow whose guest is gone while the relay waits for the host
// alone: for room to write, or for something to read.
func (f *tcpFlow) abortOnReset(wq *waiter.Queue) (stop func()) {
	entry := waiter.NewFunctionEntry(waiter.EventErr, func(waiter.EventMask) {
		if tcp.EndpointState(f.ep.State()) == tcp.StateError {
			go f.abort() // not from here: the endpoint is locked
		}
	})
	wq.EventRegister(&entry)
	return func() { wq.EventUnregister(&entry) }
}

// finish closes the guest's side when the guest has acknowledged everything that
// was sent. Until then the flow has its place in the table: what a guest does not
// read counts in its memory, and is freed with its port.
func (f *tcpFlow) finish(wq *waiter.Queue) {
	entry, ready := waiter.NewChannelEntry(waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	for wait := 10 * time.Millisecond; !f.acknowledged(); wait = min(2*wait, time.Second) {
		select {
		case <-ready:
		case <-time.After(wait): // not every end is an event
		case <-f.dead:
			return
		}
	}
	f.once.Do(f.ep.Close)
}

// acknowledged tells whether nothing is left to be sent to the guest, after a
// shutdown.
func (f *tcpFlow) acknowledged() bool {
	switch tcp.EndpointState(f.ep.State()) {
	case tcp.StateFinWait2, tcp.StateTimeWait, tcp.StateClose, tcp.StateError:
		return true
	}
	return false
}

func setKeepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepAliveIdle), tcpip.KeepaliveIntervalOption(keepAliveInterval)
	// These fail only on endpoints that are not TCP.
	_ = ep.SetSockOpt(&idle)
	_ = ep.SetSockOpt(&interval)
	_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepAliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// Sizes of what upload collects for one write(2).
const (
	relayBufMax = 256 << 10
	relayBufMin = 32 << 10
)

// relayBufLen is the size for a flow whose buffers have a size.
func relayBufLen(share int) int {
	if share >= relayBufMax {
		return relayBufMax
	}
	return relayBufMin
}

var (
	largeRelayBufs = sync.Pool{New: func() any { return new([relayBufMax]byte) }}
	smallRelayBufs = sync.Pool{New: func() any { return new([relayBufMin]byte) }}
)

// collector is the io.Writer that Endpoint.Read fills. Read holds the
// endpoint's lock, so it must not block.
type collector struct {
	buf []byte
	n   int
}

// take gets a buffer.
func (c *collector) take(size int64) {
	if size >= relayBufMax {
		c.buf = largeRelayBufs.Get().(*[relayBufMax]byte)[:]
	} else {
		c.buf = smallRelayBufs.Get().(*[relayBufMin]byte)[:]
	}
}

// release gives it back, if there is one.
func (c *collector) release() {
	switch len(c.buf) {
	case relayBufMax:
		largeRelayBufs.Put((*[relayBufMax]byte)(c.buf))
	case relayBufMin:
		smallRelayBufs.Put((*[relayBufMin]byte)(c.buf))
	}
	c.buf = nil
}

var errCollectorFull = errors.New("buffer is full")

func (c *collector) Write(b []byte) (int, error) {
	n := copy(c.buf[c.n:], b)
	c.n += n
	if n < len(b) {
		// Short with a nil error would make gVisor panic.
		return n, errCollectorFull
	}
	return n, nil
}

// upload moves bytes from the guest to the host. It returns false if the
// connection must be reset.
func (f *tcpFlow) upload(wq *waiter.Queue) bool {
	entry, ready := waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	var c collector
	defer c.release()
	for {
		if want := f.relayBuf.Load(); int64(len(c.buf)) != want {
			c.release()
			c.take(want)
		}
		c.n = 0
		_, err := f.ep.Read(&c, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if _, err := f.host.Write(c.buf[:c.n]); err != nil {
				return false
			}
			f.ep.ModerateRecvBuf(c.n)
		case *tcpip.ErrWouldBlock:
			// An idle connection holds no buffer.
			c.release()
			select {
			case <-ready:
			case <-f.dead:
				return false
			}
		case *tcpip.ErrClosedForReceive:
			return f.host.CloseWrite() == nil
		default:
			return false
		}
	}
}

// download moves bytes from the host to the guest. It returns false if the
// connection must be reset.
func (f *tcpFlow) download(wq *waiter.Queue) bool {
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)

	rc, err := f.host.SyscallConn()
	if err != nil {
		return false
	}
	var (
		src  socketPayload
		werr tcpip.Error
		end  error
	)
	// step moves what is there. It returns false to wait for the host, true to
	// look at werr and end.
	step := func(fd uintptr) bool {
		for {
			if end = src.fill(int(fd)); end != nil {
				return !errors.Is(end, errNotReady)
			}
			if _, werr = f.ep.Write(&src, tcpip.WriteOptions{}); werr != nil {
				return true
			}
		}
	}
	for {
		werr, end = nil, nil
		if err := rc.Read(step); err != nil {
			return false
		}
		switch {
		case end == io.EOF:
			// The guest may have gone meanwhile: then there is nobody to tell.
			_ = f.ep.Shutdown(tcpip.ShutdownWrite)
			return true
		case end != nil:
			return false
		}
		if _, full := werr.(*tcpip.ErrWouldBlock); !full {
			return false
		}
		select {
		case <-ready:
		case <-f.dead:
			return false
		}
	}
}

var errNotReady = errors.New("socket has nothing to read")

// maxRead is the most that one wake-up moves.
const maxRead = 1 << 20

// socketPayload reads from a socket straight into gVisor's buffers. gVisor
// asks Len first and then reads exactly that much: it would loop for ever on
// less, so Len is what the kernel says is there.
type socketPayload struct {
	fd, n int
}

// fill asks how much there is to read: errNotReady if nothing, io.EOF if
// nothing will come, another error if the connection failed.
func (s *socketPayload) fill(fd int) error {
	s.fd = fd
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return err
	}
	if n > 0 {
		s.n = min(n, maxRead)
		return nil
	}
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return errNotReady
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		}
		s.n = n
		return nil
	}
}

func (s *socketPayload) Len() int { return s.n }

// Read implements io.Reader. gVisor calls it with nil between reads, which
// must not cost a system call.
func (s *socketPayload) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	if s.n == 0 {
		return 0, io.EOF
	}
	for {
		n, err := unix.Read(s.fd, b[:min(len(b), s.n)])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n <= 0:
			// Not io.EOF: gVisor would ask again, and for ever.
			return 0, syscall.ECONNRESET
		}
		s.n -= n
		return n, nil
	}
}
