package netd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
)

// roleEnv makes the test binary a network's process or a monitor.
const roleEnv = "NETD_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(runChecked(m))
	case "netd":
		err = netdRole()
	case "monitor":
		err = monitorRole()
	case "confined":
		err = confinedRole()
	case "broken":
		err = errors.New("broken on purpose")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(roleEnv)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runChecked runs the tests, in a directory of their own, and then looks whether they have
// left something there: also what is made again after a test has removed it.
func runChecked(m *testing.M) (code int) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	dir, err := os.MkdirTemp("", "netd")
	if err != nil {
		fail(err)
		return code
	}
	os.Setenv("TMPDIR", dir)
	code = m.Run()
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if path != dir {
			fail(fmt.Errorf("left behind: %s", path))
		}
		return err
	})
	if err = errors.Join(err, os.RemoveAll(dir)); err != nil {
		fail(err)
	}
	return code
}

func netdRole() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conn, err := wire.NewConn(os.NewFile(3, "control"))
	if err != nil {
		return err
	}
	return Main(ctx, conn, MainConfig{Log: os.Stderr, Confine: true})
}

// spawner starts real processes and knows them.
type spawner struct {
	role string

	mu   sync.Mutex
	cmds []*exec.Cmd
	done []chan struct{}
}

func (s *spawner) start(_ context.Context, f StartFiles) error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+s.role)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = f.Log, f.Log
	cmd.ExtraFiles = []*os.File{f.Control}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { defer close(done); cmd.Wait() }()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmds, s.done = append(s.cmds, cmd), append(s.done, done)
	return nil
}

func (s *spawner) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.cmds)
}

// kill ends the newest process with SIGKILL.
func (s *spawner) kill() {
	s.mu.Lock()
	cmd, done := s.cmds[len(s.cmds)-1], s.done[len(s.done)-1]
	s.mu.Unlock()
	cmd.Process.Kill()
	<-done
}

// network is a runtime directory of the test's own and what starts in it.
type network struct {
	t   testing.TB
	dir string
	*spawner
	Config
}

// shortLinger lets a test end quickly and is longer than what a loaded machine
// takes from one step of it to the next.
const shortLinger = 300 * time.Millisecond

func newNetwork(t testing.TB) *network {
	t.Helper()
	checkLeaks(t)
	dir, err := os.MkdirTemp("", "netd")
	if err != nil {
		t.Fatal(err)
	}
	n := &network{t: t, dir: dir, spawner: &spawner{role: "netd"}}
	n.Config = Config{StartConfig: StartConfig{
		RuntimeDir: dir, DataDir: t.TempDir(), Network: netdef.Network{Name: "default"}, Linger: shortLinger, Debug: true,
	}, Start: n.start}
	t.Cleanup(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for i, cmd := range n.cmds {
			select {
			case <-n.done[i]:
			case <-time.After(10 * time.Second):
				t.Errorf("process %d does not leave", cmd.Process.Pid)
				cmd.Process.Kill()
				<-n.done[i]
			}
		}
		n.nobodyLives()
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(dir, "net/*/log"))
			for _, l := range logs {
				b, _ := os.ReadFile(l)
				t.Logf("%s:\n%s", l, b)
			}
		}
		os.RemoveAll(dir)
	})
	return n
}

// nobodyLives waits for a process that a monitor started.
func (n *network) nobodyLives() {
	d, err := openDir(n.dir, n.Name)
	if err != nil {
		return // spoilt by the test, or none was started here
	}
	defer d.close()
	if d.claim(context.Background(), 10*time.Second) == nil {
		return
	}
	n.t.Error("a process does not leave")
	if c, err := connect(context.Background(), d, Hello{Name: n.Name}); err == nil {
		syscall.Kill(c.Info().PID, syscall.SIGKILL)
		c.Close()
	}
}

// owner makes a sandbox, which has its addresses until the returned function removes it.
func (n *network) owner(id string) (remove func()) {
	n.t.Helper()
	dir := filepath.Join(n.DataDir, "containers", id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	return func() {
		if err := os.Remove(dir); err != nil {
			n.t.Error(err)
		}
	}
}

func (n *network) path(name string) string { return filepath.Join(n.dir, "net", n.Name, name) }

func (n *network) ensure() *Client {
	n.t.Helper()
	c, err := Ensure(n.t.Context(), n.Config)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// gone waits until the network's process has left, and checks what it left.
func (n *network) gone() {
	n.t.Helper()
	eventually(n.t, "the process leaves", func() bool {
		_, err := os.Stat(n.path(sockName))
		return errors.Is(err, os.ErrNotExist)
	})
	n.mu.Lock()
	last := n.done[len(n.done)-1]
	n.mu.Unlock()
	select {
	case <-last:
	case <-time.After(10 * time.Second):
		n.t.Fatal("the process hangs")
	}
	files, err := os.ReadDir(n.path(""))
	if err != nil || len(files) != 1 || files[0].Name() != lockName {
		n.t.Errorf("left in the directory: %v, %v", files, err)
	}
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for range 1500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("did not happen: %s", what)
}

func code(err error) string {
	var we *wire.Error
	if errors.As(err, &we) {
		return we.Code
	}
	return ""
}

// checkLeaks fails the test if it leaves goroutines or descriptors behind. It
// must come before whatever the test starts.
func checkLeaks(t testing.TB) {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	t.Cleanup(func() {
		var g, f int
		for range 200 {
			if g, f = runtime.NumGoroutine(), countFDs(t); g <= goroutines && f <= fds {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<20)
		t.Errorf("leak: %d goroutines before, %d after; %d descriptors before, %d after\n%s", goroutines, g, fds, f, buf[:runtime.Stack(buf, true)])
	})
}

func countFDs(t testing.TB) int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range d {
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(l, "anon_inode:[event") {
			n++
		}
	}
	return n
}
