package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxfiles"
	"github.com/rootless-sbx/sbx/sandbox/internal/du"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
)

// A worker is a short-lived process in a user namespace with a sandbox's ids, for
// the work on files that belong to them: unpacking layers, removing trees,
// probing storage drivers.
type worker struct {
	child *userns.Child
	done  chan struct{}
}

func (e *Engine) startWorker(ctx context.Context, m *userns.Mapping) (*worker, error) {
	return e.startWorkerWith(ctx, m, syscall.SIGKILL)
}

// startWorkerWith says what the worker gets if this process is killed: with no signal
// it ends in good order by the end of its connection.
func (e *Engine) startWorkerWith(ctx context.Context, m *userns.Mapping, pdeathsig syscall.Signal) (*worker, error) {
	child, err := userns.Start(ctx, userns.Spec{
		Path:       e.initPath,
		Args:       []string{proto.RoleWorker},
		Env:        helperEnv(),
		Mapping:    m,
		Cloneflags: syscall.CLONE_NEWNS,
		Setsid:     true,
		Pdeathsig:  pdeathsig,
		Logger:     e.log,
	})
	if err != nil {
		return nil, err
	}
	w := &worker{child: child, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		child.Serve(func(*wire.Message) {})
	}()
	return w, nil
}

// call asks the worker; when ctx ends first, the worker is killed.
func (w *worker) call(ctx context.Context, typ string, req, resp any, files ...wire.File) error {
	m, err := w.child.Conn.Call(ctx, typ, req, resp, files...)
	if err != nil {
		if ctx.Err() != nil {
			w.child.Kill()
			return context.Cause(ctx)
		}
		if errors.Is(err, io.EOF) {
			if ferr := w.child.Failure(ctx); ferr != nil {
				return ferr
			}
		}
		return err
	}
	m.CloseFiles()
	return nil
}

func (w *worker) close() {
	w.child.Conn.Close()
	<-w.done
	w.child.Wait()
	w.child.Close()
}

// helperEnv is the environment of processes that look for fuse-overlayfs.
func helperEnv() []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = workload.DefaultPath
	}
	return []string{"PATH=" + path}
}

func (e *Engine) unpack(ctx context.Context, m *userns.Mapping, job image.UnpackJob) (image.UnpackResult, error) {
	var res image.UnpackResult
	w, err := e.startWorker(ctx, m)
	if err != nil {
		return res, err
	}
	defer w.close()
	err = w.call(ctx, proto.MsgUnpack, proto.Unpack{Job: job}, &res, wire.File{Name: "blob", File: job.Blob})
	return res, err
}

// removeTree removes a tree that may hold files of subordinate ids: directly where
// the user may, else through a worker that has all of the user's ids.
func (e *Engine) removeTree(ctx context.Context, path string) error {
	err := rmtree.Remove(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return e.inWorker(ctx, proto.MsgRemoveTree, proto.Path{Path: path}, nil)
}

// inWorker makes one request to a worker that has all of the user's ids.
func (e *Engine) inWorker(ctx context.Context, typ string, req, resp any) error {
	m, err := userns.ResolveMapping(userns.MappingConfig{})
	if err != nil {
		return err
	}
	w, err := e.startWorker(ctx, m)
	if err != nil {
		return err
	}
	defer w.close()
	return w.call(ctx, typ, req, resp)
}

// probeStorage tries the storage drivers on the file system of the data directory.
func (e *Engine) probeStorage(ctx context.Context, m *userns.Mapping) (res []fsoverlay.ProbeResult, err error) {
	d, err := boxdir.Create(ctx, e.containers(), "probe-"+workload.NewID()[:12], nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr := e.removeBox(context.WithoutCancel(ctx), d); rerr != nil {
			e.log.Warn("the directory of a storage probe could not be removed", "dir", d.Path, "err", rerr)
		}
		d.Release()
	}()
	w, err := e.startWorker(ctx, m)
	if err != nil {
		return nil, err
	}
	defer w.close()
	err = w.call(ctx, proto.MsgProbe, proto.Path{Path: d.Path}, &res)
	return res, err
}

// workerMain is the worker's side. It ends when the caller closes the connection.
func workerMain(ctx context.Context, conn *wire.Conn) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &working{}
	defer func() { err = errors.Join(err, w.box.Close()) }()
	return conn.Serve(func(m *wire.Message) {
		body, err := w.work(ctx, m)
		if serr := conn.Reply(m, body, err); serr != nil {
			conn.Close()
		}
	})
}

// working is a worker's state.
type working struct {
	box *boxfiles.Mounted // the root that it has mounted
}

func (w *working) work(ctx context.Context, m *wire.Message) (any, error) {
	if w.box != nil {
		if body, ok, err := w.box.Handle(ctx, m); ok {
			return body, err
		}
	}
	switch m.Type {
	case proto.MsgUnpack:
		var req proto.Unpack
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		blob, err := m.Take("blob")
		if err != nil {
			return nil, err
		}
		defer blob.Close()
		req.Job.Blob = blob
		res, err := image.Unpack(ctx, req.Job)
		if err != nil {
			return nil, image.WireError(err)
		}
		return res, nil
	case proto.MsgRemoveTree:
		var req proto.Path
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return nil, rmtree.Remove(req.Path)
	case proto.MsgRemoveBox:
		var req proto.Path
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return nil, boxdir.Remove(ctx, req.Path)
	case proto.MsgUsage:
		var req proto.Paths
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return du.Sizes(ctx, req.Paths)
	case proto.MsgProbe:
		var req proto.Path
		if err := m.Decode(&req); err != nil {
			return nil, err
		}
		return fsoverlay.Probe(ctx, req.Path), nil
	case proto.MsgTree:
		return writeTree(ctx, m)
	case proto.MsgMountRoot:
		return w.mountRoot(ctx, m)
	}
	return nil, fmt.Errorf("unknown request %q", m.Type)
}

func (w *working) mountRoot(ctx context.Context, m *wire.Message) (any, error) {
	var req proto.MountRoot
	if err := m.Decode(&req); err != nil {
		return nil, err
	}
	lock, err := m.Take("lock")
	if err != nil {
		return nil, err
	}
	box, res, err := boxfiles.Mount(ctx, &req, lock)
	if err != nil {
		lock.Close()
		return nil, err
	}
	w.box = box
	return res, nil
}
