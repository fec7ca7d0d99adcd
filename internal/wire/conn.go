package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout is how long a peer may leave its messages unread.
const sendTimeout = 30 * time.Second

// Conn is one end of a control connection. Send, Call and Reply may be used
// from several goroutines; Recv and Serve from one.
type Conn struct {
	uc   *net.UnixConn
	wsem chan struct{} // of one: held by the writer, who may set the write deadline
	next atomic.Uint64

	mu      sync.Mutex // guards what follows
	pending map[uint64]chan *Message
	readErr error // set once Serve has ended
}

// NewConn wraps one end of a connected SOCK_SEQPACKET socket and takes over f.
func NewConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("control socket: not a unix socket but %T", c)
	}
	return NewUnixConn(uc), nil
}

// NewUnixConn wraps a connected "unixpacket" connection.
func NewUnixConn(uc *net.UnixConn) *Conn {
	return &Conn{uc: uc, wsem: make(chan struct{}, 1), pending: map[uint64]chan *Message{}}
}

// Pair makes two connected sockets, to be given to NewConn on either side.
func Pair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control"), nil
}

// Close closes the connection; the other side reads io.EOF.
func (c *Conn) Close() error { return c.uc.Close() }

// Peer says which process made the other end (SO_PEERCRED), and its user, as seen from
// our namespaces.
func (c *Conn) Peer() (*unix.Ucred, error) {
	rc, err := c.uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var serr error
	if err := rc.Control(func(fd uintptr) {
		cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if serr != nil {
		return nil, os.NewSyscallError("getsockopt SO_PEERCRED", serr)
	}
	return cred, nil
}

// Send sends a message that has no reply.
func (c *Conn) Send(typ string, body any, files ...File) error {
	return c.send(context.Background(), &Message{V: Version, Type: typ}, body, files)
}

// Reply answers request m with a body, or with an error if rerr is not nil.
func (c *Conn) Reply(m *Message, body any, rerr error, files ...File) error {
	out := &Message{V: Version, Type: m.Type, ID: m.ID, Reply: true, Err: ToError("", rerr)}
	if rerr != nil {
		body, files = nil, nil
	}
	return c.send(context.Background(), out, body, files)
}

func (c *Conn) send(ctx context.Context, m *Message, body any, files []File) error {
	if len(files) >= maxFiles {
		return fmt.Errorf("message %q: %d descriptors, limit %d", m.Type, len(files), maxFiles-1)
	}
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return fmt.Errorf("message %q: %w", m.Type, err)
		}
	}
	if len(raw) > maxBody {
		return fmt.Errorf("message %q: body of %d bytes, limit %d", m.Type, len(raw), maxBody)
	}
	var fds []int
	if len(raw) > maxDatagram/2 {
		f, err := spill(raw)
		if err != nil {
			return fmt.Errorf("message %q: %w", m.Type, err)
		}
		defer f.Close()
		m.Spill = true
		fd, err := rawFd(f)
		if err != nil {
			return fmt.Errorf("message %q: %w", m.Type, err)
		}
		fds = append(fds, fd)
	} else {
		m.Body = raw
	}
	for _, f := range files {
		fd, err := rawFd(f.File)
		if err != nil {
			return fmt.Errorf("message %q: descriptor %q: %w", m.Type, f.Name, err)
		}
		m.Files = append(m.Files, f.Name)
		fds = append(fds, fd)
	}
	b, err := json.Marshal(m)
	if err == nil && len(b) > maxDatagram && m.Err != nil {
		m.Err = m.Err.clip() // a shortened answer is better than none
		b, err = json.Marshal(m)
	}
	if err != nil {
		return fmt.Errorf("message %q: %w", m.Type, err)
	}
	if len(b) > maxDatagram {
		return fmt.Errorf("message %q: %d bytes, limit %d", m.Type, len(b), maxDatagram)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	err = c.write(ctx, b, oob)
	runtime.KeepAlive(files)
	if err != nil {
		return fmt.Errorf("send %q: %w", m.Type, err)
	}
	return nil
}

// write sends one datagram. A peer that does not read fills the socket's buffer;
// ctx and sendTimeout bound how long we put up with it.
func (c *Conn) write(ctx context.Context, b, oob []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	select {
	case c.wsem <- struct{}{}:
		defer func() { <-c.wsem }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.uc.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	_, _, err := c.uc.WriteMsgUnix(b, oob, nil)
	if !stop() {
		<-fired
		c.uc.SetWriteDeadline(time.Time{}) // for the next writer
		if err != nil {
			err = context.Cause(ctx)
		}
	}
	return err
}

// rawFd returns f's descriptor without making it blocking, as File.Fd would: the
// flag belongs to the open file, which the receiver shares.
func rawFd(f syscall.Conn) (int, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var fd int
	err = rc.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

var buffers = sync.Pool{New: func() any { b := make([]byte, maxDatagram); return &b }}

// Recv reads the next message. The caller answers a request and calls
// CloseFiles. At the end of the connection it returns io.EOF.
func (c *Conn) Recv() (*Message, error) {
	bp := buffers.Get().(*[]byte) // parse keeps nothing of it
	defer buffers.Put(bp)
	buf := *bp
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.uc.ReadMsgUnix(buf, oob)
	if errors.Is(err, syscall.ECONNRESET) {
		// The other side has gone without reading all that we sent. The kernel says
		// so once, before it hands out what the other side sent last: its error.
		n, oobn, flags, _, err = c.uc.ReadMsgUnix(buf, oob)
	}
	fds := parseRights(oob[:oobn])
	fail := func(err error) (*Message, error) {
		for _, f := range fds {
			f.Close()
		}
		return nil, err
	}
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF) {
			err = io.EOF
		}
		return fail(err)
	}
	if n == 0 {
		return fail(io.EOF)
	}
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		return fail(errors.New("control message cut short: it or its descriptors are over a limit"))
	}
	m, err := parse(buf[:n])
	if err != nil {
		return fail(err)
	}
	if m.Spill {
		if len(fds) == 0 {
			return fail(fmt.Errorf("message %q: its body is missing", m.Type))
		}
		body, err := unspill(fds[0])
		fds[0].Close()
		fds = fds[1:]
		if err != nil {
			return fail(fmt.Errorf("message %q: %w", m.Type, err))
		}
		m.Body = body
	}
	if len(fds) != len(m.Files) {
		return fail(fmt.Errorf("message %q: %d descriptors, %d named", m.Type, len(fds), len(m.Files)))
	}
	m.fds = fds
	return m, nil
}

// Serve reads messages until the connection ends: replies go to the Call that
// waits for them, everything else to handle, which runs on the reading
// goroutine and so must not Call on the same Conn. The end of the connection is
// returned as nil.
func (c *Conn) Serve(handle func(*Message)) error {
	var err error
	for {
		var m *Message
		if m, err = c.Recv(); err != nil {
			break
		}
		if m.Reply {
			c.mu.Lock()
			ch := c.pending[m.ID]
			delete(c.pending, m.ID)
			if ch != nil {
				ch <- m // has room for the one reply; under mu, so that forget cannot miss it
			}
			c.mu.Unlock()
			if ch == nil {
				m.CloseFiles() // its caller has given up
			}
			continue
		}
		handle(m)
		m.CloseFiles()
	}
	c.mu.Lock()
	c.readErr = err
	for id, ch := range c.pending {
		delete(c.pending, id)
		close(ch)
	}
	c.mu.Unlock()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Call sends a request and waits for its reply, decoding the body into resp if
// that is not nil. Serve must be running on this Conn. The caller takes the
// descriptors it wants from the returned message and closes the others.
func (c *Conn) Call(ctx context.Context, typ string, req, resp any, files ...File) (*Message, error) {
	id := c.next.Add(1)
	ch := make(chan *Message, 1)
	c.mu.Lock()
	if c.readErr != nil {
		err := c.readErr
		c.mu.Unlock()
		return nil, fmt.Errorf("call %q: %w", typ, err)
	}
	c.pending[id] = ch
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		select {
		case m := <-ch:
			if m != nil {
				m.CloseFiles()
			}
		default:
		}
	}
	if err := c.send(ctx, &Message{V: Version, Type: typ, ID: id}, req, files); err != nil {
		forget()
		return nil, err
	}
	select {
	case m := <-ch:
		return c.answer(typ, m, resp)
	case <-ctx.Done():
		forget()
		return nil, fmt.Errorf("call %q: %w", typ, context.Cause(ctx))
	}
}

func (c *Conn) answer(typ string, m *Message, resp any) (*Message, error) {
	if m == nil {
		return nil, fmt.Errorf("call %q: the other process has gone: %w", typ, io.EOF)
	}
	if m.Err != nil {
		m.CloseFiles()
		return nil, m.Err
	}
	if resp != nil {
		if err := m.Decode(resp); err != nil {
			m.CloseFiles()
			return nil, err
		}
	}
	return m, nil
}

// SetReadDeadline bounds the next Recv; the zero time means no bound.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.uc.SetReadDeadline(t) }
