package netd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"

	"github.com/rootless-sbx/sbx/internal/wire"
	"golang.org/x/sys/unix"
)

// maxSockets is how many sockets one request may ask for.
const maxSockets = 16

// SocketServer makes sockets inside a sandbox's network namespace for the
// forwarders of netd. It belongs to the monitor, which has CAP_SYS_ADMIN in the
// user namespace that owns the sandbox's; nothing of it is inside the sandbox.
type SocketServer struct {
	// BuiltinDir is where the builtin port driver may be started; set before
	// Connect. Empty: nowhere.
	BuiltinDir string

	log   *slog.Logger
	netns *os.File
	work  chan socketWork
	quit  chan struct{}

	mu     sync.Mutex // guards what follows
	closed bool
	conns  map[*wire.Conn]struct{}
	wg     sync.WaitGroup
}

type socketWork struct {
	req   SocketRequest
	reply chan socketResult
}

type socketResult struct {
	files []*os.File
	err   error
}

// NewSocketServer starts a thread that enters netns (as /proc/PID/ns/net) and
// stays there. netns is not needed after the return. Close must be called: the
// thread keeps the namespace alive.
func NewSocketServer(netns *os.File, log *slog.Logger) (*SocketServer, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &SocketServer{log: log, work: make(chan socketWork), quit: make(chan struct{}), conns: map[*wire.Conn]struct{}{}}
	fd, err := unix.FcntlInt(netns.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, os.NewSyscallError("fcntl F_DUPFD_CLOEXEC", err)
	}
	s.netns = os.NewFile(uintptr(fd), netns.Name())
	entered := make(chan error)
	s.wg.Add(1)
	go s.thread(netns, entered)
	if err := <-entered; err != nil {
		s.wg.Wait()
		s.netns.Close()
		return nil, wire.ToError("enter the sandbox's network namespace", err)
	}
	return s, nil
}

// thread never unlocks its OS thread, which so ends with it: none that has been
// in the sandbox's namespace is used for anything else.
func (s *SocketServer) thread(netns *os.File, entered chan error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Not the main thread: /proc/self/net would be the sandbox's. This
		// goroutine keeps it until another one has found a thread.
		next := make(chan error)
		go s.thread(netns, next)
		entered <- <-next
		runtime.UnlockOSThread()
		return
	}
	defer s.wg.Done()
	err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET)
	entered <- os.NewSyscallError("setns", err)
	if err != nil {
		return
	}
	for {
		select {
		case w := <-s.work:
			files, err := makeSockets(w.req)
			w.reply <- socketResult{files, err}
		case <-s.quit:
			return
		}
	}
}

func makeSockets(r SocketRequest) (files []*os.File, err error) {
	if r.Family != unix.AF_INET && r.Family != unix.AF_INET6 || r.Type != unix.SOCK_STREAM && r.Type != unix.SOCK_DGRAM || r.N < 1 || r.N > maxSockets {
		return nil, wire.Errorf(CodeMisuse, "no sockets of family %d and type %d, %d of them", r.Family, r.Type, r.N)
	}
	for range r.N {
		fd, err := unix.Socket(r.Family, r.Type|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			closeAll(files)
			return nil, os.NewSyscallError("socket", err)
		}
		files = append(files, os.NewFile(uintptr(fd), "guest socket"))
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Connect returns the descriptor to Attach with. The caller closes it after;
// the server then serves netd's end until that is closed.
func (s *SocketServer) Connect() (*os.File, error) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, wire.ToError("connect the socket server", err)
	}
	conn, err := wire.NewConn(ours)
	if err != nil {
		theirs.Close()
		return nil, wire.ToError("connect the socket server", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		conn.Close()
		theirs.Close()
		return nil, errors.New("the socket server is closed")
	}
	s.conns[conn] = struct{}{}
	s.wg.Add(1)
	go s.serve(conn)
	return theirs, nil
}

func (s *SocketServer) serve(conn *wire.Conn) {
	defer s.wg.Done()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	err := conn.Serve(func(m *wire.Message) {
		files, err := s.answer(ctx, m)
		named := make([]wire.File, len(files))
		for i, f := range files {
			named[i] = wire.File{Name: strconv.Itoa(i), File: f}
		}
		if err := conn.Reply(m, nil, err, named...); err != nil {
			s.log.Debug("socket server: reply", "err", err)
		}
		closeAll(files)
	})
	if err != nil {
		s.log.Warn("socket server: connection", "err", err)
	}
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	conn.Close()
}

func (s *SocketServer) answer(ctx context.Context, m *wire.Message) ([]*os.File, error) {
	if m.Type == msgBuiltin {
		return nil, s.runBuiltin(ctx, m)
	}
	var req SocketRequest
	if m.Type != msgSocket {
		return nil, wire.Errorf(CodeMisuse, "unknown request %.40q", m.Type)
	}
	if err := m.Decode(&req); err != nil {
		return nil, wire.ToError("make a socket for the sandbox", err)
	}
	w := socketWork{req, make(chan socketResult, 1)}
	select {
	case s.work <- w:
		r := <-w.reply
		if r.err != nil {
			return nil, wire.ToError("make a socket for the sandbox", r.err)
		}
		return r.files, nil
	case <-s.quit:
		return nil, errors.New("the socket server is closed")
	}
}

// Close ends the thread and every connection, and waits for them.
func (s *SocketServer) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.quit)
	}
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
	return s.netns.Close()
}
