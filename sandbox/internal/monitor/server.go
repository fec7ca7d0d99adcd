package monitor

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

const (
	maxConns = 64
	// drainConns is how long those who wait for the end may take to be told.
	drainConns = 5 * time.Second
)

// server serves the sandbox's socket.
type server struct {
	m      *monitor
	l      *boxsock.Listener
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex // guards what follows
	conns map[*wire.Conn]bool
}

func newServer(m *monitor, l *boxsock.Listener) *server {
	s := &server{m: m, l: l, conns: map[*wire.Conn]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	go s.accept()
	return s
}

func (s *server) accept() {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return // closed
		}
		s.mu.Lock()
		full := len(s.conns) >= maxConns
		if !full {
			s.conns[c] = true
		}
		s.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		go func() {
			x := &session{m: s.m, conn: c}
			x.serve(s.ctx)
			s.mu.Lock()
			delete(s.conns, c)
			s.mu.Unlock()
			c.Close()
		}()
	}
}

// close takes no more connections.
func (s *server) close() error { return s.l.Close() }

// drain waits until those are told who wait, and hangs up.
func (s *server) drain() {
	done := make(chan struct{})
	go func() {
		s.m.waiters.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(drainConns):
	}
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// session is a connection with the caller or with anybody else of the user's.
type session struct {
	m    *monitor
	conn *wire.Conn
	busy bool // a request waits
	mu   sync.Mutex
}

// serve answers until the connection ends.
func (s *session) serve(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Its error is the end of the other side, which is all the same to us.
	_ = s.conn.Serve(func(req *wire.Message) {
		defer trim()
		if err := s.handle(ctx, req); err != nil && req.ID != 0 {
			s.conn.Reply(req, nil, err)
		}
	})
}

// handle begins to answer a request; its error is the answer.
func (s *session) handle(ctx context.Context, req *wire.Message) error {
	m := s.m
	switch req.Type {
	case proto.MsgSignal:
		var sig proto.Signal
		if err := req.Decode(&sig); err != nil {
			return err
		}
		if err := m.signal(syscall.Signal(sig.Number)); err != nil {
			return err
		}
		if req.ID != 0 {
			return s.conn.Reply(req, nil, nil)
		}
		return nil
	case proto.MsgStop:
		var how proto.Stop
		if err := req.Decode(&how); err != nil {
			return err
		}
		return s.later(func() error {
			if err := m.stop(ctx, how); err != nil {
				return err
			}
			return s.conn.Reply(req, m.exited, nil)
		}, req)
	case proto.MsgWait:
		return s.later(func() error {
			select {
			case <-m.over:
				return s.conn.Reply(req, m.exited, nil)
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}, req)
	case proto.MsgDetach:
		if s.conn != m.caller {
			return wire.Errorf("", "only who has started the sandbox can leave it")
		}
		if err := m.detach(); err != nil {
			return err
		}
		m.event(events.Detach)
		return s.conn.Reply(req, nil, nil)
	case proto.MsgPause:
		return s.do(req, func() error { return m.pause(ctx) })
	case proto.MsgUnpause:
		return s.do(req, func() error { return m.unpause(ctx) })
	case proto.MsgUpdate:
		var u proto.Update
		if err := req.Decode(&u); err != nil {
			return err
		}
		return s.do(req, func() error { return m.update(u) })
	case proto.MsgStats:
		return s.later(func() error {
			st, err := m.stats(ctx)
			if err != nil {
				return err
			}
			return s.conn.Reply(req, st, nil)
		}, req)
	case proto.MsgRenamed:
		if err := m.renamed(ctx); err != nil {
			return err
		}
		return s.conn.Reply(req, nil, nil)
	case proto.MsgConnect:
		var a proto.Attachment
		if err := req.Decode(&a); err != nil {
			return err
		}
		return s.later(func() error {
			if err := m.connect(ctx, a); err != nil {
				return err
			}
			return s.conn.Reply(req, nil, nil)
		}, req)
	case proto.MsgDisconnect:
		var n proto.Name
		if err := req.Decode(&n); err != nil {
			return err
		}
		return s.later(func() error {
			if err := m.disconnect(ctx, n.Name); err != nil {
				return err
			}
			return s.conn.Reply(req, nil, nil)
		}, req)
	case proto.MsgAttach:
		return s.attach(ctx, req)
	case proto.MsgExec:
		return s.exec(ctx, req)
	case proto.MsgHold:
		return s.hold(ctx, req)
	case proto.MsgPorts:
		return s.ports(ctx, req)
	case proto.MsgFiles:
		return s.files(ctx, req)
	case proto.MsgNetNS:
		return s.netns(req)
	}
	return fmt.Errorf("unknown request %q", req.Type)
}

// later runs what takes its time beside the connection's reader; one at a time.
func (s *session) later(f func() error, req *wire.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		return &wire.Error{Code: "busy", Msg: "this connection waits for something already"}
	}
	if !s.m.await() {
		return errNotRunning()
	}
	s.busy = true
	go func() {
		defer s.m.waiters.Done()
		err := f()
		if err != nil && req.ID != 0 {
			s.conn.Reply(req, nil, err)
		}
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
		trim()
	}()
	return nil
}

// with is later for what has descriptors, which are closed if it does not begin.
func (s *session) with(files map[string]*os.File, f func() error, req *wire.Message) error {
	err := s.later(f, req)
	if err != nil {
		closeAll(files)
	}
	return err
}

// do runs what takes its time and has no answer but its end.
func (s *session) do(req *wire.Message, f func() error) error {
	return s.later(func() error {
		if err := f(); err != nil {
			return err
		}
		return s.conn.Reply(req, nil, nil)
	}, req)
}

// await counts a request that waits for something; false when all is over.
func (m *monitor) await() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leaving {
		m.waiters.Add(1)
	}
	return !m.leaving
}

// attach adds the pipes that came to the workload's outputs, hands out its input,
// and tells when this run has ended.
func (s *session) attach(ctx context.Context, req *wire.Message) error {
	var a proto.Attach
	if err := req.Decode(&a); err != nil {
		return err
	}
	files := takeFiles(req, "stdout", "stderr")
	return s.with(files, func() error {
		err := s.m.attachSession(files)
		closeAll(files)
		if err != nil {
			return err
		}
		s.m.mu.Lock()
		input, letGo := s.m.input(a.Stdin)
		ended := s.m.ended
		s.m.mu.Unlock()
		err = s.conn.Reply(req, nil, nil, input...)
		letGo()
		if err != nil {
			return err
		}
		s.m.event(events.Attach)
		select {
		case <-ended:
			if err := s.conn.Send(proto.MsgExited, s.m.lastExit()); !isEOF(err) {
				return err
			}
		case <-ctx.Done():
			s.m.event(events.Detach)
		}
		return nil
	}, req)
}

func (m *monitor) lastExit() proto.Exited {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last
}
