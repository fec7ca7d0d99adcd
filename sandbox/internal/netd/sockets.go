package netd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// SocketServer makes sockets inside a sandbox's network namespace for the network's
// process, which has no rights there. A socket belongs for ever to the namespace
// that it was made in, so that the process connects it from where it is.
type SocketServer struct {
	reqs chan socketJob
	done chan struct{}
}

type socketJob struct {
	req   SocketRequest
	reply chan socketResult
}

type socketResult struct {
	files []*os.File
	err   error
}

// NewSocketServer starts a thread in the network namespace ns, which the caller
// must have CAP_SYS_ADMIN over, and may close afterwards.
func NewSocketServer(ns *os.File) (*SocketServer, error) {
	s := &SocketServer{reqs: make(chan socketJob), done: make(chan struct{})}
	entered := make(chan error)
	go func() {
		defer close(s.done)
		// Not unlocked: the thread is in another namespace and ends with us.
		runtime.LockOSThread()
		err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		entered <- os.NewSyscallError("setns", err)
		if err != nil {
			return
		}
		for job := range s.reqs {
			files, err := makeSockets(job.req)
			job.reply <- socketResult{files, err}
		}
	}()
	if err := <-entered; err != nil {
		return nil, fmt.Errorf("enter the sandbox's network namespace: %w", err)
	}
	return s, nil
}

func makeSockets(req SocketRequest) ([]*os.File, error) {
	if req.Family != unix.AF_INET && req.Family != unix.AF_INET6 ||
		req.Type != unix.SOCK_STREAM && req.Type != unix.SOCK_DGRAM || req.N < 1 || req.N > maxSockets {
		return nil, fmt.Errorf("no such sockets: family %d, type %d, number %d", req.Family, req.Type, req.N)
	}
	var files []*os.File
	for range req.N {
		fd, err := unix.Socket(req.Family, req.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, os.NewSyscallError("socket", err)
		}
		files = append(files, os.NewFile(uintptr(fd), "socket"))
	}
	return files, nil
}

// Close ends the thread; connections made by Connect end first.
func (s *SocketServer) Close() {
	close(s.reqs)
	<-s.done
}

// Connect returns one end of a new connection on which requests are served until
// the other side closes it; done is closed then.
func (s *SocketServer) Connect() (end *os.File, done <-chan struct{}, err error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, nil, err
	}
	conn, err := wire.NewConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	ch := make(chan struct{})
	go func() {
		defer close(ch)
		defer conn.Close()
		conn.Serve(func(m *wire.Message) { s.answer(conn, m) })
	}()
	return theirs, ch, nil
}

func (s *SocketServer) answer(conn *wire.Conn, m *wire.Message) {
	job := socketJob{reply: make(chan socketResult, 1)}
	if m.Type != msgSocket {
		conn.Reply(m, nil, fmt.Errorf("unknown request %q", m.Type))
		return
	}
	if err := m.Decode(&job.req); err != nil {
		conn.Reply(m, nil, err)
		return
	}
	s.reqs <- job
	res := <-job.reply
	var files []wire.File
	for i, f := range res.files {
		files = append(files, wire.File{Name: "socket" + strconv.Itoa(i), File: f})
	}
	if err := conn.Reply(m, nil, res.err, files...); err != nil {
		conn.Close()
	}
	for _, f := range res.files {
		f.Close()
	}
}

// guest is the netd side: a portfwd.Guest.
type guest struct {
	addr4, addr6 netip.Addr
	conn         *wire.Conn
	done         chan struct{}
}

func newGuest(l Lease, sockets *os.File) (*guest, error) {
	conn, err := wire.NewConn(sockets)
	if err != nil {
		return nil, err
	}
	g := &guest{addr4: l.Addr4.Addr(), addr6: l.Addr6.Addr(), conn: conn, done: make(chan struct{})}
	go func() {
		defer close(g.done)
		conn.Serve(func(*wire.Message) {})
	}()
	return g, nil
}

func (g *guest) Addr4() netip.Addr { return g.addr4 }
func (g *guest) Addr6() netip.Addr { return g.addr6 }

// Socket gets a socket from the monitor; portfwd keeps some in store.
func (g *guest) Socket(ctx context.Context, family, typ int) (*os.File, error) {
	m, err := g.conn.Call(ctx, msgSocket, SocketRequest{Family: family, Type: typ, N: 1}, nil)
	if err != nil {
		return nil, err
	}
	defer m.CloseFiles()
	return m.Take("socket0")
}

func (g *guest) close() error {
	err := g.conn.Close()
	<-g.done
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
