// Package initproc is pid 1 of a sandbox until the workload takes its place. It
// runs in all of the sandbox's namespaces with every capability over them, answers
// the monitor's requests one after the other, and executes the workload; with
// --init it stays as reaper and the workload is its child.
package initproc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"golang.org/x/sys/unix"
)

// Main is the body of the init process. It runs on the main thread, which is
// locked: what it changes about itself is inherited by the workload.
func Main(ctx context.Context, conn *wire.Conn) error {
	i := &initd{conn: conn, marks: proto.NewMarks("init")}
	i.marks.Add("ids mapped")
	if err := ownCgroupNamespace(); err != nil {
		return err
	}
	for {
		m, err := conn.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil // the monitor has gone, and with us the sandbox goes
			}
			return err
		}
		if err := i.handle(ctx, m); err != nil {
			return err
		}
	}
}

// ownCgroupNamespace makes the group that this process was born in the root of what
// the workload sees.
func ownCgroupNamespace() error {
	err := unix.Unshare(unix.CLONE_NEWCGROUP)
	if err == nil {
		return nil
	}
	e := wire.ToError("create the cgroup namespace", err)
	if err == unix.ENOSPC {
		e.Fix = "end other sandboxes, or ask the administrator to raise the sysctl user.max_cgroup_namespaces"
	}
	return e
}

type initd struct {
	conn  *wire.Conn
	root  proto.Root
	stage *stage // with --init
	marks *proto.Marks
}

// handle answers one request. Its error is init's end.
func (i *initd) handle(ctx context.Context, m *wire.Message) error {
	defer m.CloseFiles()
	switch m.Type {
	case proto.MsgNet:
		err := makeLink(i.conn, m)
		i.marks.Add("network device made")
		return err
	case proto.MsgRoot:
		return i.buildRoot(ctx, m)
	case proto.MsgExec:
		return i.exec(ctx, m)
	}
	return i.conn.Reply(m, nil, fmt.Errorf("unknown request %q", m.Type))
}

// buildRoot mounts the root, everything in it, and changes into it.
func (i *initd) buildRoot(ctx context.Context, m *wire.Message) error {
	if err := m.Decode(&i.root); err != nil {
		return i.conn.Reply(m, nil, err)
	}
	r := &i.root
	if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
		return i.conn.Reply(m, nil, &wire.Error{Step: "set the hostname", Path: r.Hostname, Errno: err.(unix.Errno)})
	}
	// Before the plan makes /proc/sys read-only.
	if err := workload.ApplySysctls(r.Sysctls); err != nil {
		return i.conn.Reply(m, nil, err)
	}
	if r.Init {
		var err error
		if i.stage, err = startStage(); err != nil {
			return i.conn.Reply(m, nil, err)
		}
	}
	driver, err := fsoverlay.NewDriver(r.Spec.Driver, nil)
	if err == nil {
		err = driver.Mount(r.Spec)
	}
	if err != nil {
		return i.conn.Reply(m, nil, wire.ToError("mount the root file system", err))
	}
	i.marks.Add("layers mounted")
	plan, err := fsoverlay.BuildPlan(r.Plan)
	if err != nil {
		return i.conn.Reply(m, nil, err)
	}
	notes, err := plan.Apply()
	if err != nil {
		return i.conn.Reply(m, nil, err)
	}
	i.marks.Add("root built")
	var files []wire.File
	if r.TTY {
		pty, err := useTerminal(fsoverlay.OpenConsole, r.Rows, r.Cols)
		if err != nil {
			return i.conn.Reply(m, nil, err)
		}
		defer pty.Close()
		files = append(files, wire.File{Name: "pty", File: pty})
	}
	// The tree is complete now, and nobody else is in it.
	rules, err := fsoverlay.Landlock(r.Plan.Mounts)
	if err != nil {
		return i.conn.Reply(m, nil, err)
	}
	if rules != nil {
		defer rules.Close()
		files = append(files, wire.File{Name: proto.FileRules, File: rules})
	}
	return i.conn.Reply(m, proto.Rooted{Notes: notes, Marks: i.marks.List}, nil, files...)
}
