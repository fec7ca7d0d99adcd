package netstack

import (
	"errors"
	"time"

	"github.com/rootless-sbx/sbx/internal/dgram"
	"golang.org/x/sys/unix"
)

const (
	// maxSocketErrors in a row mean that a socket is broken.
	maxSocketErrors = 1000
	// maxReceives is how often a socket is read in one turn.
	maxReceives = 16
)

// serve takes what the host sends to a mapping, until its socket is closed.
func (m *mapping) serve(s *hostSocket) {
	var failed, err error
	bad := 0
	// turn returns true if there may be more, or the socket is broken.
	turn := func(fd uintptr) bool {
		in := dgram.GetInbox()
		defer in.Put()
		for range maxReceives {
			switch errno := in.Receive(int(fd)); errno {
			case 0:
				bad = 0
				m.fromHost(in)
			case unix.EAGAIN:
				return m.isClosed()
			case unix.EINTR:
			default:
				// The errno belongs to an entry of the error queue.
				bad++
				failed = errno
				m.readErrors(s)
			}
		}
		return true
	}
	for err == nil && bad < maxSocketErrors && !m.isClosed() {
		err = s.raw.Read(turn)
	}
	if !m.isClosed() {
		err = errors.Join(err, failed)
		m.port.net.log.Warn("host socket failed", "port", m.port.cfg.ID, "source", m.src, "error", err)
		m.port.nat.remove(m)
	}
}

func (m *mapping) isClosed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.closed
}

// fromHost sends the host's datagrams to the guest.
func (m *mapping) fromHost(in *dgram.Inbox) {
	p := m.port
	m.used.Set(time.Now())
	for {
		t, ok := in.Next()
		if !ok {
			return
		}
		visible, ok := m.seenAs(t.From)
		switch {
		case !ok:
			p.count.dropN(DropUDPFiltered, t.Count)
		case m.proto == protoUDP:
			p.sendUDP(visible, m.src, t.Segment, t.Data)
		default:
			dgram.Cut(t.Segment, t.Data, func(a, b []byte) bool {
				p.sendEchoReply(visible.Addr(), m.src, flat(a, b))
				return true
			})
		}
	}
}
