package sandbox_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/sys/unix"
)

// roleEnv chooses the part that a copy of the test binary plays.
const roleEnv = "SBX_LIB_TEST_ROLE"

func TestMain(m *testing.M) {
	sandbox.MaybeInit() // the test binary is its own init binary
	if role := os.Getenv(roleEnv); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Orphans come to us, so that a test sees what it left.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	// Go's poller keeps its descriptors: it opens them before a test counts.
	if r, w, err := os.Pipe(); err != nil || r.Close() != nil || w.Close() != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(busyboxDir()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

var roles = map[string]func([]string) error{
	"caller":   callerRole,
	"many":     manyRole,
	"diagnose": diagnoseRole,
}

func busyboxDir() string { return filepath.Join(os.TempDir(), "sbx-lib-"+strconv.Itoa(os.Getpid())) }

// rootfs is a root directory made of busybox, of the Debian package busybox-static.
var rootfs = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(busyboxDir(), "root")
	for _, d := range []string{"bin", "etc", "tmp", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	prog, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("%w: apt-get install busybox-static", err)
	}
	b, err := os.ReadFile(prog)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command(prog, "--list").Output()
	if err != nil {
		return "", err
	}
	for _, a := range strings.Fields(string(out)) {
		if a != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
				return "", err
			}
		}
	}
	return dir, os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/:/bin/sh\n"), 0o644)
})

// world is a test's own engine and directories.
type world struct {
	testing.TB
	*sandbox.Engine
	dir  string
	opts sandbox.Options
	log  syncBuffer

	netdLog string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t}
	fds, goroutines := openFiles(), runtime.NumGoroutine()
	var err error
	if w.dir, err = os.MkdirTemp("", "sbx-lib-"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(w.dir, 0o755); err != nil { // subordinate ids get through
		t.Fatal(err)
	}
	w.opts = sandbox.Options{
		DataDir: filepath.Join(w.dir, "data"), RuntimeDir: filepath.Join(w.dir, "run"),
		NetdLinger: 200 * time.Millisecond,
		Logger:     slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(filepath.Join(w.dir, "run/net/default/log")); err == nil {
			w.netdLog = string(b)
		}
		w.check(fds, goroutines)
		if err := os.RemoveAll(w.dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(w.log.String())
			t.Log(w.netdLog)
		}
	})
	w.Engine = w.engine()
	return w
}

// engine makes another engine for the same directories.
func (w *world) engine() *sandbox.Engine {
	w.Helper()
	e, err := sandbox.NewEngine(w.opts)
	if err != nil {
		w.Fatal(err)
	}
	return e
}

// check fails the test if anything of its sandboxes is left.
func (w *world) check(fds, goroutines int) {
	w.Helper()
	var left []string
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = w.leftovers()
		if n := openFiles(); n > fds {
			left = append(left, fmt.Sprintf("%d descriptors, %d before: %s", n, fds, listFiles()))
		}
		if n := runtime.NumGoroutine(); n > goroutines {
			left = append(left, fmt.Sprintf("%d goroutines, %d before", n, goroutines))
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	stacks := make([]byte, 1<<20)
	w.Errorf("left behind:\n  %s\n%s", strings.Join(left, "\n  "), stacks[:runtime.Stack(stacks, true)])
	for _, pid := range descendants(os.Getpid()) {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// leftovers lists processes, mounts and files.
func (w *world) leftovers() []string {
	var left []string
	for _, pid := range descendants(os.Getpid()) {
		if state, _ := stat(pid); state == "Z" {
			unix.Wait4(pid, nil, unix.WNOHANG, nil) // an orphan
			continue
		}
		left = append(left, fmt.Sprintf("process %d %s", pid, comm(pid)))
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(b, []byte(w.dir)) {
		left = append(left, fmt.Sprintf("mounts in %s (%v)", w.dir, err))
	}
	for _, pattern := range []string{"data/containers/*", "data/.storage*", "data/volumes/*", "run/b/*", "run/net/*/*"} {
		names, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			left = append(left, err.Error())
		}
		for _, n := range names {
			if filepath.Base(n) != "lock" && filepath.Base(n) != ".lock" && !strings.Contains(n, "/keep-") {
				left = append(left, n)
			}
		}
	}
	return left
}

func openFiles() int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(names)
}

func listFiles() string {
	names, _ := os.ReadDir("/proc/self/fd")
	var out []string
	for _, n := range names {
		l, _ := os.Readlink("/proc/self/fd/" + n.Name())
		out = append(out, n.Name()+"="+l)
	}
	return strings.Join(out, " ")
}

// stat returns the state of a process and its parent.
func stat(pid int) (state string, ppid int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	ppid, _ = strconv.Atoi(f[1])
	return f[0], ppid
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}

// descendants are all processes below pid.
func descendants(pid int) []int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	children := map[int][]int{}
	for _, d := range dirs {
		p, _ := strconv.Atoi(filepath.Base(d))
		if state, ppid := stat(p); state != "" {
			children[ppid] = append(children[ppid], p)
		}
	}
	var out []int
	for queue := children[pid]; len(queue) > 0; queue = queue[1:] {
		out = append(out, queue[0])
		queue = append(queue, children[queue[0]]...)
	}
	return out
}

// find returns the living processes below pid that are called name.
func find(pid int, name string) (pids []int) {
	for _, p := range descendants(pid) {
		if state, _ := stat(p); comm(p) == name && state != "Z" {
			pids = append(pids, p)
		}
	}
	return pids
}

// config runs a command in the busybox root.
func (w *world) config(command ...string) sandbox.Config {
	w.Helper()
	dir, err := rootfs()
	if err != nil {
		w.Fatal(err)
	}
	return sandbox.Config{RootFS: dir, Cmd: command, Networks: sandbox.On(sandbox.NetworkNone)}
}

func (w *world) create(cfg sandbox.Config) *sandbox.Sandbox {
	w.Helper()
	s, err := w.Create(w.Context(), cfg)
	if err != nil {
		w.Fatal(err)
	}
	return s
}

func (w *world) start(cfg sandbox.Config) *sandbox.Sandbox {
	w.Helper()
	s := w.create(cfg)
	if err := s.Start(w.Context()); err != nil {
		w.Fatal(err)
	}
	return s
}

// wait bounds the wait for a sandbox.
func (w *world) wait(s *sandbox.Sandbox) (sandbox.ExitStatus, error) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := s.Wait(ctx)
	if ctx.Err() != nil {
		w.Fatalf("Wait does not return: %v", err)
	}
	return st, err
}

// output runs a sandbox and returns what it wrote.
func (w *world) output(cfg sandbox.Config) (stdout, stderr string, st sandbox.ExitStatus) {
	w.Helper()
	var o, e bytes.Buffer
	cfg.Stdout, cfg.Stderr = &o, &e
	st, err := w.wait(w.start(cfg))
	if err != nil {
		w.Error(err)
	}
	return o.String(), e.String(), st
}

// lineWriter signals the first line.
type lineWriter struct {
	once  sync.Once
	first chan struct{}
	buf   syncBuffer
}

func newLineWriter() *lineWriter { return &lineWriter{first: make(chan struct{})} }

func (l *lineWriter) Write(p []byte) (int, error) {
	n, err := l.buf.Write(p)
	if bytes.IndexByte(p, '\n') >= 0 {
		l.once.Do(func() { close(l.first) })
	}
	return n, err
}

// wait returns when a line was written.
func (l *lineWriter) wait(t testing.TB) {
	t.Helper()
	select {
	case <-l.first:
	case <-time.After(20 * time.Second):
		t.Fatal("no output")
	}
}

// startReady starts a sandbox that writes a line when it is ready.
func (w *world) startReady(cfg sandbox.Config) (*sandbox.Sandbox, *lineWriter) {
	w.Helper()
	out := newLineWriter()
	cfg.Stdout, cfg.Stderr = out, out
	s := w.start(cfg)
	out.wait(w)
	return s, out
}

func kill(pids ...int) {
	for _, p := range pids {
		unix.Kill(p, unix.SIGKILL)
	}
}

// helper is a copy of this program in another role.
func (w *world) helper(role string, args ...string) (*exec.Cmd, io.WriteCloser, *lineWriter) {
	w.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "SBX_LIB_TEST_DIR="+w.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		w.Fatal(err)
	}
	out := newLineWriter()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	return cmd, in, out
}

// helperWorld is the world of the test in a copy of this program.
func helperEngine() (*sandbox.Engine, error) {
	dir := os.Getenv("SBX_LIB_TEST_DIR")
	return sandbox.NewEngine(sandbox.Options{
		DataDir: filepath.Join(dir, "data"), RuntimeDir: filepath.Join(dir, "run"), NetdLinger: 200 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}
