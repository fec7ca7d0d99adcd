package fsoverlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// fuseStart bounds the time until the mount of fuse-overlayfs appears.
const fuseStart = 20 * time.Second

const maxStderr = 8 << 10 // kept for the message if the process ends

// fuseDriver runs fuse-overlayfs in the monitor's mount namespace; init gets the
// mount with its copy of that namespace.
type fuseDriver struct{ log *slog.Logger }

func (fuseDriver) Name() string { return DriverFuse }

// FuseProcess is a running fuse-overlayfs.
type FuseProcess struct {
	PID  int
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid once done is closed
	out  *tail
}

// Done is closed when the process has ended and was reaped.
func (p *FuseProcess) Done() <-chan struct{} { return p.done }

// Wait waits for the end. It returns nil for a clean one, which follows the end
// of the last copy of the mount, else what the process printed.
func (p *FuseProcess) Wait() error {
	<-p.done
	return p.err
}

// fuseEnd is the signal that asks fuse-overlayfs to end. SIGTERM and SIGHUP do too, but
// those are what systemd sends to each process of a session that it ends: see start.
const fuseEnd = syscall.SIGINT

// stop ends the process: politely first, since it may be writing.
func (p *FuseProcess) stop() error {
	for _, s := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{0, 500 * time.Millisecond}, {fuseEnd, 2 * time.Second}, {syscall.SIGKILL, 10 * time.Second}} {
		if s.sig != 0 {
			if err := p.cmd.Process.Signal(s.sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fail("end fuse-overlayfs", "", err)
			}
		}
		select {
		case <-p.done:
			return nil
		case <-time.After(s.wait):
		}
	}
	return failf("", "end fuse-overlayfs", "", "", "process %d does not end", p.PID)
}

// Prepare starts fuse-overlayfs and returns when its mount has appeared. Mounts
// of the calling namespace stop propagating anywhere.
func (d fuseDriver) Prepare(ctx context.Context, s RootSpec) (*Prepared, error) {
	const step = "start fuse-overlayfs"
	if err := s.check(); err != nil {
		return nil, err
	}
	prog, err := fuseProgram(s.FuseOverlayfs)
	if err != nil {
		return nil, err
	}
	if strings.Contains(s.Upper, ":") && !s.ReadOnly {
		// It splits the resolved path of upperdir too.
		return nil, &DriverError{Driver: DriverFuse, Reason: "the path of the writable directory contains a colon: " + s.Upper,
			Fix: "use a data directory without one"}
	}
	if err := mkdirs(s.Merged); err != nil {
		return nil, err
	}
	if !s.ReadOnly {
		if err := errors.Join(mkUpper(s.Upper), mkdirs(s.Work)); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return nil, fail("make mounts private to the sandbox", "/", err)
	}
	cmd, err := fuseCommand(prog, &s)
	if err != nil {
		return nil, fail(step, prog, err)
	}
	p := &FuseProcess{cmd: cmd, done: make(chan struct{}), out: &tail{max: maxStderr}}
	cmd.Stderr, cmd.Stdout = p.out, p.out
	err = p.start()
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	if err != nil {
		return nil, fail(step, prog, err)
	}
	prep := &Prepared{Process: p, merged: s.Merged}
	if err := p.ready(ctx, s.Merged); err != nil {
		if cerr := prep.Close(); cerr != nil {
			d.log.Warn("clean up after fuse-overlayfs", "err", cerr)
		}
		return nil, fail(step, s.Merged, err)
	}
	return prep, nil
}

// Mount checks that the mount came along with the namespace.
func (fuseDriver) Mount(s RootSpec) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.Merged, &st); err != nil {
		return fail("find the fuse-overlayfs mount", s.Merged, err)
	}
	if uint32(st.Type) != unix.FUSE_SUPER_MAGIC {
		return failf(CodeDriver, "find the fuse-overlayfs mount", s.Merged, "", "not a fuse file system (type %#x)", st.Type)
	}
	return nil
}

// fuseCommand names every directory by descriptor: fuse-overlayfs has no way to
// write a ':' in lowerdir, and libfuse splits at ','.
func fuseCommand(prog string, s *RootSpec) (*exec.Cmd, error) {
	cmd := exec.Command(prog, "-f")
	var err error
	defer func() {
		if err != nil {
			for _, f := range cmd.ExtraFiles {
				f.Close()
			}
		}
	}()
	add := func(path string) (string, error) {
		fd, err := inroot.OpenDir(path)
		if err != nil {
			return "", err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), path))
		return inroot.FdPath(2 + len(cmd.ExtraFiles)), nil
	}
	names := make([]string, len(s.Lowers))
	for i, l := range s.Lowers {
		if names[i], err = add(l); err != nil {
			return nil, err
		}
	}
	opts := []string{"lowerdir=" + strings.Join(names, ":")}
	for _, o := range s.upperOptions() {
		var n string
		if n, err = add(o.path); err != nil {
			return nil, err
		}
		opts = append(opts, o.key+"="+n)
	}
	if s.ReadOnly {
		opts = append(opts, "ro")
	}
	var merged string
	if merged, err = add(s.Merged); err != nil {
		return nil, err
	}
	cmd.Args = append(cmd.Args, "-o", strings.Join(opts, ","), merged)
	cmd.Dir = "/"
	// It needs no secrets of ours; PATH is for fusermount3 on kernels that want it.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: fuseEnd, Setpgid: true}
	return cmd, nil
}

// start runs the command on a thread of its own that stays until the process
// ends: the parent-death signal follows the thread that forked, not the process.
//
// The process does not see SIGTERM and SIGHUP: at the end of a session the workload is to
// have its files until it has ended. A new process has the signal mask of the thread.
func (p *FuseProcess) start() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: nobody else is to have this mask
		err := blockSignals(syscall.SIGTERM, syscall.SIGHUP)
		if err == nil {
			err = p.cmd.Start()
		}
		if err == nil {
			p.PID = p.cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		if err := p.cmd.Wait(); err != nil {
			p.err = fmt.Errorf("fuse-overlayfs: %w%s", err, p.out.suffix())
		}
		close(p.done)
	}()
	return <-started
}

// blockSignals keeps signals from the calling thread, and from what it starts.
func blockSignals(sigs ...syscall.Signal) error {
	var set unix.Sigset_t
	bits := 8 * int(unsafe.Sizeof(set.Val[0]))
	for _, s := range sigs {
		n := int(s) - 1
		set.Val[n/bits] |= 1 << (n % bits)
	}
	return os.NewSyscallError("rt_sigprocmask", unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil))
}

// ready waits until a fuse file system answers at merged.
func (p *FuseProcess) ready(ctx context.Context, merged string) error {
	ctx, cancel := context.WithTimeout(ctx, fuseStart)
	defer cancel()
	for wait := 500 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		var st unix.Statfs_t
		if unix.Statfs(merged, &st) == nil && uint32(st.Type) == unix.FUSE_SUPER_MAGIC {
			return nil
		}
		select {
		case <-p.done:
			if p.err != nil {
				return p.err
			}
			return fmt.Errorf("fuse-overlayfs ended before it mounted%s", p.out.suffix())
		case <-ctx.Done():
			return fmt.Errorf("no mount after %v: %w%s", fuseStart, ctx.Err(), p.out.suffix())
		case <-time.After(wait):
		}
	}
}

// tail keeps the last bytes of what a process prints.
type tail struct {
	mu  sync.Mutex // guards b
	b   []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b) - t.max; n > 0 {
		t.b = append(t.b[:0], t.b[n:]...)
	}
	return len(p), nil
}

// suffix is the text as the end of an error message.
func (t *tail) suffix() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.Join(strings.FieldsFunc(string(bytes.ToValidUTF8(t.b, nil)), func(r rune) bool { return r == '\n' }), "; ")
	if s == "" {
		return ""
	}
	return " (it says: " + s + ")"
}
