package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/archive"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/userns"
)

// boxFiles is a connection to a process that has a sandbox's tree.
type boxFiles struct {
	s      *Sandbox
	conn   *wire.Conn
	kill   func() // the process, in an emergency
	finish func() // waits for its end
}

// abortPatience is how long a copy that was given up may take to clean up.
const abortPatience = 5 * time.Second

// openFiles finds the sandbox's files, of one that runs through its monitor.
func (s *Sandbox) openFiles(ctx context.Context) (*boxFiles, error) {
	for end := time.Now().Add(claimPatience); ; {
		st, err := s.look(ctx)
		if err != nil {
			return nil, err
		}
		var f *boxFiles
		if st.Alive() {
			f, err = s.filesOfRunning(ctx)
		} else {
			f, err = s.filesOfStopped(ctx)
		}
		// It has been started, or has ended, just now, or is being started again.
		again := errors.Is(err, ErrRunning) || errors.Is(err, ErrNotRunning)
		if !again || time.Now().After(end) {
			return f, err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (s *Sandbox) filesOfRunning(ctx context.Context) (*boxFiles, error) {
	c, err := s.dial(ctx)
	if err != nil {
		return nil, err
	}
	m, err := c.Call(ctx, proto.MsgFiles, nil, nil)
	if err != nil {
		c.close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, s.controlError(err)
	}
	defer c.close()
	defer m.CloseFiles()
	file, err := m.Take("files")
	if err != nil {
		return nil, err
	}
	conn, err := wire.NewConn(file)
	if err != nil {
		return nil, err
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn.Serve(func(*wire.Message) {})
	}()
	return &boxFiles{s: s, conn: conn, kill: func() { conn.Close() }, finish: func() { <-served }}, nil
}

// filesOfStopped has a worker mount the root, under the sandbox's lock.
func (s *Sandbox) filesOfStopped(ctx context.Context) (_ *boxFiles, err error) {
	dir, err := s.claimStopped(ctx)
	if err != nil {
		return nil, err
	}
	defer dir.Release() // the worker has the lock too
	st, err := s.storage(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			st.release()
		}
	}()
	start := s.start
	start.Dir, start.VolumesDir = dir.Path, s.e.Volumes().Root
	start.Lowers, start.Single = st.layers, st.mapping.Mode == userns.ModeSingle
	start.Life.Keep = true // what is copied is to stay
	if err := fsoverlay.PrepareSources(start.Mounts); err != nil {
		return nil, err
	}
	state, err := record.ReadState(dir.Path)
	if err != nil {
		return nil, err
	}
	w, err := s.e.startWorkerWith(ctx, st.mapping, 0)
	if err != nil {
		return nil, err
	}
	var res proto.Mounted
	err = w.call(ctx, proto.MsgMountRoot, proto.MountRoot{Start: start, Volumes: state.Volumes}, &res, wire.File{Name: "lock", File: dir.Lock})
	if err == nil && !maps.Equal(res.Volumes, state.Volumes) { // they are the sandbox's from now on
		state.Volumes = res.Volumes
		err = record.WriteState(dir.Path, state)
	}
	if err != nil {
		w.close()
		return nil, fmt.Errorf("mount the sandbox's files: %w", err)
	}
	return &boxFiles{s: s, conn: w.child.Conn, kill: func() { w.child.Kill() }, finish: func() {
		w.close()
		st.release()
	}}, nil
}

func (f *boxFiles) close() {
	f.conn.Close()
	f.finish()
}

// call asks the process. When ctx ends it is given time to clean up: what it reads from
// or writes to has been closed then.
func (f *boxFiles) call(ctx context.Context, typ string, req, resp any, files ...wire.File) error {
	done := make(chan error, 1)
	go func() {
		m, err := f.conn.Call(context.WithoutCancel(ctx), typ, req, resp, files...)
		if err == nil {
			m.CloseFiles()
		}
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(abortPatience):
			f.kill()
			<-done
		}
		return context.Cause(ctx)
	}
	if isGone(err) {
		return &StateError{Kind: ErrNotRunning, Name: f.s.name, Msg: "the sandbox has ended while its files were copied", Fix: "copy again"}
	}
	return archive.FromWire(err)
}

// stat looks at a path in the sandbox.
func (f *boxFiles) stat(ctx context.Context, path string, follow bool) (*proto.PathStat, error) {
	var st proto.PathStat
	err := f.call(ctx, proto.MsgStatPath, proto.StatPath{Path: []byte(path), Follow: follow}, &st)
	return &st, err
}

// pack writes what is at a path of stat to a pipe.
func (f *boxFiles) pack(ctx context.Context, path, as string, out *os.File) (res Copied, err error) {
	err = f.call(ctx, proto.MsgPackPath, proto.PackPath{Path: []byte(path), As: []byte(as)}, &res, wire.File{Name: "out", File: out})
	return res, err
}

// unpack makes files in a directory of stat from what comes out of a pipe.
func (f *boxFiles) unpack(ctx context.Context, dir string, owners bool, in *os.File) (res Copied, err error) {
	req := proto.UnpackPath{Dir: []byte(dir), Owners: owners}
	err = f.call(ctx, proto.MsgUnpackPath, req, &res, wire.File{Name: "in", File: in})
	return res, err
}
