package monitor

import (
	"context"
	"os"
	"sync"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
	"github.com/rootless-sbx/sbx/userns"
)

const maxCopiers = 16

// copiers are processes that have the files of a sandbox that runs, for those who copy.
// They end before its storage does.
type copiers struct {
	mu      sync.Mutex
	open    bool // the sandbox runs
	running map[*userns.Child]bool
	all     sync.WaitGroup
}

// begin lets them come.
func (c *copiers) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.running = true, map[*userns.Child]bool{}
}

// end kills those there are and returns when they have gone.
func (c *copiers) end() {
	c.mu.Lock()
	c.open = false
	for child := range c.running {
		child.Kill()
	}
	c.mu.Unlock()
	c.all.Wait()
}

// add takes a process over, or kills it if it comes too late.
func (c *copiers) add(child *userns.Child) {
	c.mu.Lock()
	c.running[child] = true
	if !c.open {
		child.Kill()
	}
	c.mu.Unlock()
	go func() {
		defer c.all.Done()
		child.Wait()
		c.mu.Lock()
		delete(c.running, child)
		c.mu.Unlock()
		child.Close()
	}()
}

// may counts one that is to be started.
func (c *copiers) may() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.open:
		return errNotRunning()
	case len(c.running) >= maxCopiers:
		return wire.Errorf("", "%d commands copy files of the sandbox already", len(c.running))
	}
	c.all.Add(1)
	return nil
}

// files starts a process that has the sandbox's files, and hands out a connection to
// it. It ends with that connection.
func (s *session) files(ctx context.Context, req *wire.Message) error {
	return s.later(func() error {
		conn, err := s.m.startCopier(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		return s.conn.Reply(req, nil, nil, wire.File{Name: "files", File: conn})
	}, req)
}

func (m *monitor) startCopier(ctx context.Context) (_ *os.File, err error) {
	if err := m.copiers.may(); err != nil {
		return nil, err
	}
	child, ours, err := m.enterFiles(ctx)
	if child == nil {
		m.copiers.all.Done()
		return nil, err
	}
	m.copiers.add(child)
	if err != nil {
		child.Kill()
	}
	return ours, err
}

// enterFiles starts the process and lets it enter the sandbox's tree.
func (m *monitor) enterFiles(ctx context.Context) (_ *userns.Child, _ *os.File, err error) {
	m.mu.Lock()
	if m.init == nil || !m.started {
		m.mu.Unlock()
		return nil, nil, errNotRunning()
	}
	one, err := streams.Dup(m.init.PidFD)
	m.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	defer one.Close()
	ours, theirs, err := wire.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	child, err := userns.Start(ctx, userns.Spec{
		Path: "/proc/self/exe", Args: []string{proto.RoleFiles}, Setsid: true, Pdeathsig: syscall.SIGKILL,
	})
	if err != nil {
		return nil, nil, err
	}
	go child.Serve(func(*wire.Message) {})
	reply, err := child.Conn.Call(ctx, proto.MsgEnter, nil, nil, wire.File{Name: "pid1", File: one}, wire.File{Name: "peer", File: theirs})
	if err != nil {
		if isEOF(err) {
			if ferr := child.Failure(ctx); ferr != nil {
				err = ferr
			}
		}
		return child, nil, err
	}
	reply.CloseFiles()
	return child, ours, nil
}
