package netstack

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"
)

// relay moves bytes between a guest's connection and the host's until both
// directions have ended. The end of one direction is passed on as a FIN and
// leaves the other one open; an error resets both sides. It returns at once: what
// happens to the flow wakes the task of a direction, and wait tells the end.
func (p *Port) relay(f *tcpFlow) {
	f.port = p
	f.up.flow, f.up.do = f, (*tcpFlow).upload
	f.down.flow, f.down.do = f, (*tcpFlow).download
	f.last.flow, f.last.do = f, (*tcpFlow).settle
	f.open.Store(2)
	if !p.flows.add(p, f) {
		f.ep.Abort()
		f.host.reset()
		if f.done != nil {
			close(f.done)
		}
		return
	}
	setKeepAlive(f.ep)
	f.listen(waiter.ReadableEvents | waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	f.up.wake() // data may have come with the handshake
	if err := f.host.watch(f); err != nil {
		f.abort()
	}
}

// NotifyEvent implements waiter.EventListener for the guest's side. gVisor calls
// it with the endpoint locked.
func (f *tcpFlow) NotifyEvent(events waiter.EventMask) {
	if events&(waiter.EventErr|waiter.EventHUp) != 0 {
		f.last.wake()
	}
	if f.open.Load() == 0 {
		return
	}
	if events&^waiter.WritableEvents != 0 {
		f.up.wake()
	}
	if events&^waiter.ReadableEvents != 0 {
		f.down.wake()
	}
}

// hostEvent implements hostListener.
func (f *tcpFlow) hostEvent(events uint32) {
	if events&hostDrain != 0 {
		f.drain.Store(true)
	}
	// Nearly every event says that there is room.
	if f.blocked.Load() {
		f.up.wake()
	}
	if events&^unix.EPOLLOUT != 0 {
		f.down.wake()
	}
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
	buf    []byte
	off, n int // buf[off:n] is to be written to the host
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
	c.buf, c.off, c.n = nil, 0, 0
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

// upload moves bytes from the guest to the host, until one of them makes it wait.
func (f *tcpFlow) upload(*worker) {
	for c := &f.out; !f.uploaded; {
		if c.off < c.n {
			if wait, ok := f.flush(); wait {
				return
			} else if !ok {
				f.abort()
				break
			}
			f.ep.ModerateRecvBuf(c.n)
		}
		if want := f.relayBuf.Load(); int64(len(c.buf)) != want {
			c.release()
			c.take(want)
		}
		c.off, c.n = 0, 0
		_, err := f.ep.Read(c, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
			c.release() // an idle connection holds no buffer
			return
		case *tcpip.ErrClosedForReceive:
			if f.host.closeWrite() == nil {
				f.end()
			} else {
				f.abort()
			}
		default:
			f.abort()
		}
		break
	}
	f.uploaded = true
	f.out.release()
}

// flush writes to the host what upload has collected. wait: there is no room, and
// hostEvent will wake upload.
func (f *tcpFlow) flush() (wait, ok bool) {
	f.blocked.Store(false)
	for c := &f.out; c.off < c.n; {
		n, errno := f.host.write(c.buf[c.off:c.n])
		switch {
		case errno == 0:
			c.off += n
		case errno != unix.EAGAIN:
			return false, false
		case f.blocked.Load():
			return true, true
		default:
			f.blocked.Store(true) // and once more, for an event that came before
		}
	}
	return false, true
}

// scratchLen is what a read from the host takes at first.
const scratchLen = 4 << 10

// download moves bytes from the host to the guest, until one of them makes it
// wait. Little goes through the worker's buffer, with one system call; much is
// read straight into gVisor's.
func (f *tcpFlow) download(w *worker) {
	for !f.downloaded {
		if len(f.rest) > 0 {
			w.src.b = f.rest
			ok := f.send(&w.src)
			f.rest = w.src.b
			if !ok {
				return
			}
			f.rest = nil
		}
		if f.much {
			src := socketPayload{conn: f.host}
			if src.fill(); src.n >= scratchLen {
				if !f.send(&src) {
					return
				}
				if w.account.passed() {
					w.account.wait()
				}
				continue
			}
			f.much = src.n == 0 // all of it has been read
		}
		if w.scratch == nil {
			w.scratch = make([]byte, scratchLen)
		}
		n, errno := f.host.read(w.scratch)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			f.downloaded = true
			f.abort()
			return
		case n == 0:
			// The guest may have gone meanwhile: then there is nobody to tell.
			_ = f.ep.Shutdown(tcpip.ShutdownWrite)
			f.downloaded = true
			f.end()
			return
		}
		w.src.b = w.scratch[:n]
		if !f.send(&w.src) {
			f.rest = append([]byte(nil), w.src.b...)
			return
		}
		f.much = n == scratchLen
		if !f.much && !f.drain.Load() {
			return // that was all; the next event says when there is more
		}
	}
}

// send writes to the guest. False: it took not all of it, and NotifyEvent will
// wake download, or the flow is reset.
func (f *tcpFlow) send(src tcpip.Payloader) bool {
	for src.Len() > 0 {
		// Atomic: else gVisor discards what it has read if setBuffers makes the
		// buffer smaller meanwhile.
		_, err := f.ep.Write(src, tcpip.WriteOptions{Atomic: true})
		if err == nil {
			continue
		}
		if _, full := err.(*tcpip.ErrWouldBlock); !full {
			f.downloaded = true
			f.abort()
		}
		return false
	}
	return true
}

// bytesPayload is what a worker has read.
type bytesPayload struct{ b []byte }

func (s *bytesPayload) Len() int { return len(s.b) }

func (s *bytesPayload) Read(b []byte) (int, error) {
	n := copy(b, s.b)
	s.b = s.b[n:]
	return n, nil
}

// maxRead is the most that one write to the guest moves. Nobody else has a turn
// meanwhile: with twice as much a neighbour has fewer connections.
const maxRead = 512 << 10

// socketPayload reads from a socket straight into gVisor's buffers. gVisor
// asks Len first and then reads exactly that much: it would loop for ever on
// less, so Len is what the kernel says is there.
type socketPayload struct {
	conn *hostConn
	n    int
}

// fill asks how much there is to read. What it means that there is nothing, the
// next read will say.
func (s *socketPayload) fill() { s.n = min(s.conn.unread(), maxRead) }

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
	n, errno := s.conn.read(b[:min(len(b), s.n)])
	if errno != 0 {
		return 0, os.NewSyscallError("read", errno)
	}
	if n == 0 {
		// Not io.EOF: gVisor would ask again, and for ever.
		return 0, syscall.ECONNRESET
	}
	s.n -= n
	return n, nil
}
