package monitor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxroot"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
)

// start brings the sandbox up. Init is cloned first, as its binary takes its time to
// load; what does not need each other is done at the same time.
//
//	clone init -> lease addresses | directories, storage -> files
//	           -> shed | link -> attach | root -> workload | record, socket
//
// Except with fuse-overlayfs, whose mount init inherits: there storage comes first.
func (m *monitor) start(ctx context.Context, stdio map[string]*os.File) (*proto.Started, error) {
	prepare := m.prepareRoot
	if m.spec.Driver == fsoverlay.DriverFuse {
		if err := prepare(ctx); err != nil {
			return nil, err
		}
		prepare = func(context.Context) error { return nil }
	}
	if err := m.shareNetwork(ctx); err != nil {
		return nil, err
	}
	enforce, err := m.makeRoom()
	if err != nil {
		return nil, err
	}
	if err := m.startInit(ctx, stdio); err != nil {
		return nil, err
	}
	m.marks.Add("init cloned")
	st := &proto.Started{PID: m.init.PID}
	if err := both(ctx, func(ctx context.Context) error { return m.lease(ctx) }, prepare); err != nil {
		return nil, err
	}
	m.marks.Add("addresses leased, storage prepared")
	if err := m.writeFiles(); err != nil {
		return nil, err
	}
	m.marks.Add("files written")
	shed := func(context.Context) error { m.shed(); return nil }
	if err := both(ctx, shed, func(ctx context.Context) error { return m.joinAndBuild(ctx, st) }); err != nil {
		return nil, err
	}
	m.marks.Add("network joined, root built")
	st.Notes = m.takeNotes()
	published := make(chan error, 1)
	public := *st
	go func() { published <- m.publish(&public) }()
	if err = m.runWorkload(ctx); err == nil {
		err = enforce()
	}
	if m.spec.Life.Detach || m.spec.Life.Keep || err != nil {
		err = errors.Join(err, <-published)
	} else {
		m.published = published // the caller need not wait for it
	}
	if err != nil {
		return nil, err
	}
	m.marks.Add("workload runs")
	m.startEvents()
	st.Marks = append(m.marks.List, m.inits...)
	m.marks.List = nil
	return st, nil
}

// joinAndBuild waits for init most of the time.
func (m *monitor) joinAndBuild(ctx context.Context, st *proto.Started) error {
	if err := m.makeLinks(ctx); err != nil {
		return err
	}
	m.marks.Add("network device there")
	return both(ctx, func(ctx context.Context) error { return m.attach(ctx, st) }, m.buildRoot)
}

// both runs f beside g, returns when they have ended, and ends f early if g fails.
func both(ctx context.Context, f, g func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	if err := g(ctx); err != nil {
		cancel()
		<-done
		return err
	}
	return <-done
}

// startInit clones pid 1 into the rest of its namespaces.
func (m *monitor) startInit(ctx context.Context, stdio map[string]*os.File) error {
	// Not the cgroup namespace: its root would be our group and not that of init,
	// which makes it itself.
	flags := uintptr(syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS)
	if m.ownNetwork() {
		flags |= syscall.CLONE_NEWNET
	}
	box, err := m.box()
	if err != nil {
		return err
	}
	if box != nil {
		defer box.Close()
	}
	spec := userns.Spec{
		Path:       m.program.Path(),
		Args:       []string{proto.RoleInit},
		Cgroup:     box,
		Cloneflags: flags,
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
		Stdin:      stdio["stdin"], Stdout: stdio["stdout"], Stderr: stdio["stderr"],
	}
	if m.shared != nil {
		spec.NetNS = m.shared.netns
	}
	child, err := userns.Start(ctx, spec)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.init = child
	m.mu.Unlock()
	if ctx.Err() != nil { // the caller went while init was not yet there to be killed
		return context.Cause(ctx)
	}
	go m.serveInit(child)
	// Before the workload can shake off the death signal that ties it to us.
	return boxdir.Record(m.spec.Dir, child.PID)
}

// serveInit takes init's answers, and its last words if it panics. They are kept
// before the Call that waits for an answer sees the end of the connection.
func (m *monitor) serveInit(child *userns.Child) {
	err := child.Conn.Serve(func(msg *wire.Message) {
		if msg.Type != userns.MsgError {
			return
		}
		var e *wire.Error
		if err := msg.Decode(&e); err != nil || e == nil {
			e = wire.Errorf("", "init failed and its message cannot be read: %v", err)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.failure = e
	})
	if err != nil {
		m.log.Warn("connection to init", "err", err)
	}
}

// prepareRoot makes the directories and the init layer and starts the storage driver.
func (m *monitor) prepareRoot(ctx context.Context) error {
	s := &m.spec
	if err := limitShare(); err != nil { // /proc/sys is read-only in some containers
		m.log.Debug("the sandbox's share of what its user may have is not limited", "err", err)
	}
	root, err := boxroot.Prepare(ctx, s, m.volumes(), m.state.Volumes, m.log)
	m.mu.Lock()
	m.state.Volumes = root.Volumes
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.root, s.Mounts = root, root.Mounts
	m.tell(root.Storage.Notes...)
	return nil
}

// writeFiles makes /etc/hosts, hostname and resolv.conf, which are bound into the
// root and are no part of the writable layer. Those of a sandbox whose network this
// is are there already, and the same for both.
func (m *monitor) writeFiles() error {
	s := &m.spec
	if m.shared != nil && m.shared.dir != "" {
		return nil
	}
	hosts, err := m.hosts()
	if err != nil {
		return err
	}
	resolv, err := m.resolvConf()
	if err != nil {
		return err
	}
	m.resolv = resolv
	for name, text := range map[string][]byte{
		"hosts":       hosts,
		"hostname":    []byte(s.Hostname + "\n"),
		"resolv.conf": resolv,
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// buildRoot lets init mount the root and everything in it, and change into it.
func (m *monitor) buildRoot(ctx context.Context) error {
	s := &m.spec
	etc, hostname := s.Dir, s.Hostname
	if m.shared != nil && m.shared.dir != "" {
		etc, hostname = m.shared.dir, m.shared.hostname
	}
	req := proto.Root{
		Spec: m.root.Spec,
		Plan: fsoverlay.PlanConfig{
			Root:        m.root.Spec.Merged,
			ReadOnly:    s.ReadOnly,
			Mounts:      s.Mounts,
			Hosts:       filepath.Join(etc, "hosts"),
			Hostname:    filepath.Join(etc, "hostname"),
			ResolvConf:  filepath.Join(etc, "resolv.conf"),
			ShmSize:     s.ShmSize,
			NetworkHost: m.hostNetwork(),
			SingleID:    s.Single,
			TTY:         s.TTY,
		},
		Hostname: hostname, Sysctls: s.Sysctls,
		TTY: s.TTY, Rows: s.Rows, Cols: s.Cols, Init: s.Init,
	}
	if s.SystemPathsUnconfined {
		req.Plan.MaskedPaths, req.Plan.ReadonlyPaths = []string{}, []string{}
	}
	var res proto.Rooted
	reply, err := m.init.Conn.Call(ctx, proto.MsgRoot, req, &res)
	if err != nil {
		return m.initError(err)
	}
	defer reply.CloseFiles()
	m.tell(res.Notes...)
	m.inits = res.Marks
	if s.TTY {
		if m.pty, err = reply.Take("pty"); err != nil {
			return err
		}
		if err := m.takePty(); err != nil {
			return err
		}
	}
	if slices.Contains(reply.Files, proto.FileRules) {
		rules, err := reply.Take(proto.FileRules)
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.rules = rules
		m.mu.Unlock()
	}
	// init has its own view of a fuse mount now; ours would outlive the sandbox's.
	return m.root.Storage.Detach()
}

// rulesFile is for everybody who executes a program of the sandbox's.
func (m *monitor) rulesFile() []wire.File {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rules == nil {
		return nil
	}
	return []wire.File{{Name: proto.FileRules, File: m.rules}}
}

// runWorkload lets init become the workload. Success is the end of the connection:
// the control socket closes on exec.
func (m *monitor) runWorkload(ctx context.Context) error {
	m.mu.Lock()
	m.started = true
	m.mu.Unlock()
	m.copiers.begin()
	reply, err := m.init.Conn.Call(ctx, proto.MsgExec, m.spec.Process, nil, m.rulesFile()...)
	if err == nil {
		reply.CloseFiles() // --init: the reaper answers and stays
		return nil
	}
	if isEOF(err) && m.reported() == nil {
		return nil // if init was killed before it got there, its status says so
	}
	return m.initError(err)
}
