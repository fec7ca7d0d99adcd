package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/racelog"
)

// Env is one test's view of a user: home, XDG directories, environment.
type Env struct {
	t testing.TB
	*state
}

// state is what a test shares with its subtests.
type state struct {
	dir     string
	data    string
	Home    string
	Tmp     string
	Runtime string // XDG_RUNTIME_DIR
	extra   []string
	procs   []*Proc
	ports   []int

	// Prefix is a command before sbx: one that takes something away from it first.
	Prefix []string
}

// In returns the same environment for a subtest, which is then the one that fails.
func (e *Env) In(t testing.TB) *Env { return &Env{t: t, state: e.state} }

// New returns an environment with the shared image store and its own runtime
// directory, after whose test nothing may be left. images are loaded first.
func New(t testing.TB, images ...string) *Env {
	t.Helper()
	e := newEnv(t)
	e.data = filepath.Join(current.dir, "data")
	for _, ref := range images {
		current.load(t, e, ref)
	}
	e.watch()
	return e
}

// NewPrivate returns an environment with an empty image store of its own.
func NewPrivate(t testing.TB) *Env {
	t.Helper()
	e := newEnv(t)
	e.data = filepath.Join(e.dir, "data")
	e.watch()
	return e
}

// Own returns the environment of the user's own: his home and directories, in which
// what one run of the tests leaves is there for the next. Nobody looks for what is left.
func Own(t testing.TB) *Env {
	t.Helper()
	home := os.Getenv("HOME")
	e := &Env{t, &state{dir: home, data: filepath.Join(home, ".local/share"), Home: home, Tmp: os.TempDir(), Runtime: os.Getenv("XDG_RUNTIME_DIR")}}
	e.Setenv("XDG_DATA_HOME", "SBX_NETD_LINGER")
	return e
}

// Load puts an image into the store of the environment.
func (e *Env) Load(ref string) {
	e.t.Helper()
	if err := current.loadNow(e.t.Context(), e, ref); err != nil {
		e.t.Fatalf("load %s: %v", ref, err)
	}
}

func newEnv(t testing.TB) *Env {
	t.Helper()
	dir, err := os.MkdirTemp(current.dir, "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e := &Env{t, &state{dir: dir, Home: filepath.Join(dir, "home"), Tmp: filepath.Join(dir, "tmp"), Runtime: filepath.Join(dir, "run")}}
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{e.Home, e.Tmp, e.Runtime} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// Dir returns the test's own directory, world-readable, removed afterwards.
func (e *Env) Dir() string { return e.dir }

// Data returns the data directory (XDG_DATA_HOME/sbx).
func (e *Env) Data() string { return filepath.Join(e.data, "sbx") }

// Setenv adds to the environment of every sbx started from now on. A value
// without "=" removes the variable.
func (e *Env) Setenv(kv ...string) { e.extra = append(e.extra, kv...) }

// reports is where the processes write what the race detector finds: a network's process
// can write nowhere else.
func (e *Env) reports() string { return filepath.Join(e.Runtime, "sbx") }

// Environ is the whole environment sbx is given.
func (e *Env) Environ() []string {
	env := []string{
		"PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG=C.UTF-8", "TERM=dumb",
		"USER=" + os.Getenv("USER"), "HOME=" + e.Home, "TMPDIR=" + e.Tmp,
		"XDG_DATA_HOME=" + e.data, "XDG_RUNTIME_DIR=" + e.Runtime,
		"SBX_NETD_LINGER=" + Slow(500*time.Millisecond).String(),
	}
	if current.race {
		env = append(env, racelog.Into(e.reports()))
	}
	// Where the user's systemd listens; the runtime directory above is not its.
	if bus := os.Getenv("DBUS_SESSION_BUS_ADDRESS"); bus != "" {
		env = append(env, "DBUS_SESSION_BUS_ADDRESS="+bus)
	}
	for _, kv := range e.extra {
		key, _, set := strings.Cut(kv, "=")
		env = slices.DeleteFunc(env, func(s string) bool { return strings.HasPrefix(s, key+"=") })
		if set {
			env = append(env, kv)
		}
	}
	return env
}

// Result is what a finished sbx leaves.
type Result struct {
	Args           []string
	Code           int // 128+N when it was killed by signal N
	Stdout, Stderr string
}

func (r Result) String() string {
	return fmt.Sprintf("sbx %s: status %d\nstdout: %s\nstderr: %s", strings.Join(r.Args, " "), r.Code, clip(r.Stdout), clip(r.Stderr))
}

func clip(s string) string {
	const most = 4000
	if len(s) > most {
		return s[:most/2] + "\n...\n" + s[len(s)-most/2:]
	}
	return s
}

// line is the whole command line.
func (e *Env) line(args []string) []string {
	return slices.Concat(e.Prefix, []string{current.bin}, args)
}

// InNamespace runs sbx as root of a user and mount namespace in which script has
// been executed: the place for mounts over what sbx is to miss.
func (e *Env) InNamespace(script string) {
	e.Prefix = []string{"unshare", "--user", "--map-auto", "--map-root-user", "--mount", "sh", "-ec", script + `; exec "$@"`, "sh"}
}

// InNamespaceAsUser is InNamespace without becoming root: one id, no capabilities.
func (e *Env) InNamespaceAsUser(script string) {
	e.Prefix = []string{"unshare", "--user", "--map-current-user", "--keep-caps", "--mount", "sh", "-ec",
		script + `; exec setpriv --ambient-caps -all --inh-caps -all "$@"`, "sh"}
}

// RunTimeout bounds each sbx that is waited for.
const RunTimeout = 2 * time.Minute

// Run runs sbx to its end.
func (e *Env) Run(args ...string) Result { e.t.Helper(); return e.RunInput(nil, args...) }

// RunInput is Run with a standard input.
func (e *Env) RunInput(stdin io.Reader, args ...string) Result {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), Slow(RunTimeout))
	defer cancel()
	line := e.line(args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = e.Environ()
	cmd.Dir = e.Home
	cmd.Stdin = stdin
	cmd.WaitDelay = 5 * time.Second // a leaked process that holds the pipes must not hang the test
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	if cmd.ProcessState == nil {
		e.t.Fatalf("start sbx: %v", err)
	}
	r := Result{Args: args, Code: exitCode(cmd.ProcessState), Stdout: out.String(), Stderr: errb.String()}
	if ctx.Err() != nil {
		e.t.Fatalf("not over after %v: %v", Slow(RunTimeout), r)
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		e.t.Errorf("something still held the output of: %v", r)
	}
	return r
}

// AtEnd runs sbx when the test is over, before what is left is looked for. It may
// fail: what it is to end may have ended.
func (e *Env) AtEnd(args ...string) {
	e.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Slow(RunTimeout))
		defer cancel()
		line := e.line(args)
		cmd := exec.CommandContext(ctx, line[0], line[1:]...)
		cmd.Env, cmd.Dir = e.Environ(), e.Home
		_ = cmd.Run()
	})
}

func exitCode(ps *os.ProcessState) int {
	if ws := ps.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ps.ExitCode()
}

// Must runs sbx, requires success, and returns its standard output.
func (e *Env) Must(args ...string) string {
	e.t.Helper()
	r := e.Run(args...)
	if r.Code != 0 {
		e.t.Fatalf("%v", r)
	}
	return r.Stdout
}

// Fails runs sbx and requires this status and that stderr holds every one of words.
func (e *Env) Fails(code int, words []string, args ...string) Result {
	e.t.Helper()
	r := e.Run(args...)
	r.Want(e.t, code, words...)
	return r
}

// Want checks the status, that stderr holds every one of words in any case, and
// that nothing panicked.
func (r Result) Want(t testing.TB, code int, words ...string) {
	t.Helper()
	if r.Code != code {
		t.Errorf("want status %d: %v", code, r)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(r.Stderr), strings.ToLower(w)) {
			t.Errorf("stderr lacks %q: %v", w, r)
		}
	}
	if strings.Contains(r.Stderr, "goroutine ") || strings.Contains(r.Stderr, "panic:") {
		t.Errorf("panic: %v", r)
	}
}

// Proc is a running sbx.
type Proc struct {
	t        testing.TB
	args     []string
	Cmd      *exec.Cmd
	out, err *buffer
	done     chan struct{}
}

// Start starts sbx in the background; it is killed when the test ends.
func (e *Env) Start(args ...string) *Proc { e.t.Helper(); return e.StartWith(nil, args...) }

// StartWith is Start with a hook that may change the command first.
func (e *Env) StartWith(edit func(*exec.Cmd), args ...string) *Proc {
	e.t.Helper()
	line := e.line(args)
	p := &Proc{t: e.t, args: args, Cmd: exec.Command(line[0], line[1:]...), out: newBuffer(), err: newBuffer(), done: make(chan struct{})}
	p.Cmd.Env, p.Cmd.Dir = e.Environ(), e.Home
	p.Cmd.Stdout, p.Cmd.Stderr = p.out, p.err
	p.Cmd.WaitDelay = 5 * time.Second
	if edit != nil {
		edit(p.Cmd)
	}
	if err := p.Cmd.Start(); err != nil {
		e.t.Fatalf("start sbx: %v", err)
	}
	started.Store(p.Cmd.Process.Pid, true)
	go func() {
		_ = p.Cmd.Wait() // the state says all
		started.Delete(p.Cmd.Process.Pid)
		close(p.done)
	}()
	e.procs = append(e.procs, p)
	return p
}

// Result returns what there is so far; the status is -1 while it runs.
func (p *Proc) Result() Result {
	r := Result{Args: p.args, Code: -1, Stdout: p.out.String(), Stderr: p.err.String()}
	select {
	case <-p.done:
		r.Code = exitCode(p.Cmd.ProcessState)
	default:
	}
	return r
}

// Signal sends a signal to sbx.
func (p *Proc) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.Cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal %v: %v", sig, err)
	}
}

// Wait waits for the end.
func (p *Proc) Wait(timeout time.Duration) Result {
	p.t.Helper()
	timeout = Slow(timeout)
	select {
	case <-p.done:
	case <-time.After(timeout):
		p.t.Fatalf("still running after %v: %v", timeout, p.Result())
	}
	return p.Result()
}

// Stop ends a sandbox as a user would, and waits for it.
func (p *Proc) Stop() Result {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Slow(3 * time.Second)):
		// The workload is pid 1 and may not care about SIGTERM.
		p.Signal(syscall.SIGINT)
		select {
		case <-p.done:
		case <-time.After(Slow(2 * time.Second)):
			p.Signal(syscall.SIGKILL)
		}
	}
	return p.Wait(10 * time.Second)
}

// WaitOut waits until standard output holds text and returns all of it.
func (p *Proc) WaitOut(text string, timeout time.Duration) string {
	p.t.Helper()
	return p.waitFor(p.out, text, timeout)
}

// WaitErr is WaitOut for standard error.
func (p *Proc) WaitErr(text string, timeout time.Duration) string {
	p.t.Helper()
	return p.waitFor(p.err, text, timeout)
}

func (p *Proc) waitFor(b *buffer, text string, timeout time.Duration) string {
	p.t.Helper()
	timeout = Slow(timeout)
	end := time.After(timeout)
	for {
		s, changed := b.get()
		if strings.Contains(s, text) {
			return s
		}
		select {
		case <-changed:
		case <-p.done:
			if s := b.String(); strings.Contains(s, text) {
				return s
			}
			p.t.Fatalf("ended without %q: %v", text, p.Result())
		case <-end:
			p.t.Fatalf("no %q after %v: %v", text, timeout, p.Result())
		}
	}
}

// buffer is a growing buffer whose readers can wait for more.
type buffer struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func newBuffer() *buffer { return &buffer{changed: make(chan struct{})} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.changed)
	b.changed = make(chan struct{})
	return b.buf.Write(p)
}

func (b *buffer) get() (string, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String(), b.changed
}

func (b *buffer) String() string { s, _ := b.get(); return s }
