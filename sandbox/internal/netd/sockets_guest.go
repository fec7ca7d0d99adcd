package netd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// guestSockets is netd's half: portfwd.Guest over a connection to the monitor.
// It asks for socketBatch at a time and keeps what is left over, at most
// spareSockets of a kind, so that most connections cost no round trip. One request
// is under way at a time: a crowd shares its sockets instead of asking for more.
type guestSockets struct {
	lease Lease
	conn  *wire.Conn // nil: the monitor offers none
	done  chan struct{}
	turn  chan struct{} // holds the one request under way

	mu     sync.Mutex // guards what follows
	closed bool
	spare  map[[2]int][]*os.File
}

const (
	socketBatch  = 16
	spareSockets = socketBatch
)

var errNoSockets = errors.New("the sandbox's monitor makes no sockets: use port driver stack")

func newGuestSockets(lease Lease, sockets *os.File) (*guestSockets, error) {
	g := &guestSockets{lease: lease, turn: make(chan struct{}, 1), spare: map[[2]int][]*os.File{}}
	if sockets == nil {
		return g, nil
	}
	var err error
	if g.conn, err = wire.NewConn(sockets); err != nil {
		return nil, err
	}
	g.done = make(chan struct{})
	go func() {
		defer close(g.done)
		g.conn.Serve(func(*wire.Message) {})
	}()
	return g, nil
}

// Addr4 implements portfwd.Guest.
func (g *guestSockets) Addr4() netip.Addr { return g.lease.Addr4 }

// Addr6 implements portfwd.Guest.
func (g *guestSockets) Addr6() netip.Addr { return g.lease.Addr6 }

// Socket implements portfwd.Guest.
func (g *guestSockets) Socket(ctx context.Context, family, typ int) (*os.File, error) {
	if g.conn == nil {
		return nil, errNoSockets
	}
	kind := [2]int{family, typ}
	if f := g.takeSpare(kind); f != nil {
		return f, nil
	}
	select {
	case g.turn <- struct{}{}:
		defer func() { <-g.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("a socket of the sandbox: %w", context.Cause(ctx))
	}
	if f := g.takeSpare(kind); f != nil {
		return f, nil
	}
	m, err := g.conn.Call(ctx, msgSocket, SocketRequest{family, typ, socketBatch}, nil)
	if err != nil {
		return nil, fmt.Errorf("a socket of the sandbox: %w", err)
	}
	defer m.CloseFiles()
	var got []*os.File
	for i := range socketBatch {
		f, err := m.Take(strconv.Itoa(i))
		if err == nil {
			err = checkSocket(f, family, typ)
			got = append(got, f)
		}
		if err != nil {
			closeAll(got)
			return nil, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range got[1:] {
		if g.closed || len(g.spare[kind]) >= spareSockets {
			f.Close()
			continue
		}
		g.spare[kind] = append(g.spare[kind], f)
	}
	return got[0], nil
}

func (g *guestSockets) takeSpare(kind [2]int) *os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.spare[kind]
	if len(s) == 0 {
		return nil
	}
	f := s[len(s)-1]
	g.spare[kind] = s[:len(s)-1]
	return f
}

// close lets go of the spare sockets, which keep the sandbox's namespace alive.
func (g *guestSockets) close() {
	if g.conn != nil {
		g.conn.Close()
		<-g.done
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for k, s := range g.spare {
		closeAll(s)
		delete(g.spare, k)
	}
}

// checkSocket verifies that a received descriptor is what was asked for.
func checkSocket(f *os.File, family, typ int) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var dom, st, fl int
	var e1, e2, e3 error
	if err := rc.Control(func(fd uintptr) {
		dom, e1 = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		st, e2 = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
		fl, e3 = unix.FcntlInt(fd, unix.F_GETFL, 0)
	}); err != nil {
		return err
	}
	if err := errors.Join(e1, e2, e3); err != nil {
		return fmt.Errorf("descriptor from the monitor: %w", err)
	}
	if dom != family || st != typ || fl&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("descriptor from the monitor: family %d, type %d, flags %#x; asked for family %d, type %d, non-blocking", dom, st, fl, family, typ)
	}
	return nil
}
