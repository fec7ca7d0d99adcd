package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The header of a TCP connection, big endian:
//
//	0  kind          one of the constants below
//	4  session       of UDP
//	8  from          the window's begin, Unix time in ns
//	16 window        ns
//	24
//
// All streams of a measure count in the same window of the machine's clock, or the
// sum of streams that run one after the other would be more than the path carried.
const headerLen = 24

const (
	kindUp      = 'U' // server receives, reports, drains, closes
	kindDown    = 'D' // server sends until the client shuts its side down
	kindEcho    = 'E' // server echoes
	kindOnce    = 'O' // server answers one byte and closes
	kindHold    = 'H' // server answers one byte and waits; echoes what comes
	kindSession = 'S' // a UDP session: each byte is answered with its counters
)

type header struct {
	kind    byte
	session uint32
	from    time.Time
	window  time.Duration
}

func (h header) bytes() []byte {
	b := make([]byte, headerLen)
	b[0] = h.kind
	binary.BigEndian.PutUint32(b[4:], h.session)
	binary.BigEndian.PutUint64(b[8:], uint64(h.from.UnixNano()))
	binary.BigEndian.PutUint64(b[16:], uint64(h.window))
	return b
}

func parseHeader(b []byte) header {
	return header{
		kind:    b[0],
		session: binary.BigEndian.Uint32(b[4:]),
		from:    time.Unix(0, int64(binary.BigEndian.Uint64(b[8:]))),
		window:  time.Duration(binary.BigEndian.Uint64(b[16:])),
	}
}

// serve listens on TCP and UDP and serves until the process ends.
func (a *agent) serve(r Request) (Reply, error) {
	l, err := net.Listen("tcp", r.Addr)
	if err != nil {
		return Reply{}, err
	}
	sessions, err := serveUDP(r.Addr)
	if err != nil {
		l.Close()
		return Reply{}, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // too many open files
				fmt.Fprintln(os.Stderr, "server:", err)
				time.Sleep(10 * time.Millisecond)
				continue
			}
			go serveConn(c.(*net.TCPConn), sessions)
		}
	}()
	return Reply{}, nil
}

func serveConn(c *net.TCPConn, sessions *sessions) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, headerLen)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	h := parseHeader(b)
	switch h.kind {
	case kindOnce:
		c.Write(b[:1])
	case kindHold:
		c.SetDeadline(time.Time{})
		hold(c, b[:1])
	case kindSession:
		sessions.serve(c, h.session)
	case kindUp, kindDown, kindEcho:
		fd, err := blocking(c)
		if err != nil {
			return
		}
		defer unix.Close(fd)
		switch h.kind {
		case kindUp:
			serveUp(fd, h)
		case kindDown:
			serveDown(fd)
		case kindEcho:
			echo(fd)
		}
	}
}

// blocking takes the socket out of Go's poller: a blocking read or write is one
// system call and no wake-up of another thread. It closes c.
func blocking(c *net.TCPConn) (int, error) {
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(orig uintptr) {
		fd, dupErr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err == nil {
		err = dupErr
	}
	if err != nil {
		return -1, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return -1, err
	}
	// A path that stands still must not hold the bench.
	tv := unix.Timeval{Sec: 5}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	return fd, nil
}

// dial connects, sends the header and gives the socket in blocking mode.
func dial(addr string, h header) (int, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return -1, err
	}
	fd, err := blocking(c.(*net.TCPConn))
	if err != nil {
		return -1, err
	}
	if err := writeAll(fd, h.bytes()); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("send the header: %w", err)
	}
	return fd, nil
}

// hold answers first and then echoes what comes. io.Copy would splice, which takes
// three descriptors for each connection.
func hold(c *net.TCPConn, first []byte) {
	if _, err := c.Write(first); err != nil {
		return
	}
	buf := make([]byte, 4096)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}
