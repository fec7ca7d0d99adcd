package security

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestTerminal: a sandbox whose output goes to the user's terminal types nothing there,
// takes it from nobody and gives it no other discipline.
func TestTerminal(t *testing.T) {
	e := harness.New(t, harness.BB)
	con, path, err := console.NewPty()
	must(t, err)
	defer con.Close()
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	defer tty.Close()
	discipline := func() int {
		d, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGETD)
		must(t, err)
		return d
	}
	before := discipline()
	for _, try := range []string{"tiocsti", "stealtty", "tioclinux"} {
		t.Run(try, func(t *testing.T) {
			for _, flags := range [][]string{nil, everyCap} {
				p := e.In(t).StartWith(func(c *exec.Cmd) {
					c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
					c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
				}, slices.Concat([]string{"run", "--rm", "--network", "none"}, flags, []string{harness.BB, "/probe", "try", try})...)
				buf := make([]byte, 256)
				n, err := con.Read(buf)
				must(t, err)
				if got := strings.TrimSpace(string(buf[:n])); !strings.HasPrefix(got, "E") {
					t.Errorf("with %v: %q", flags, got)
				}
				p.Wait(10 * time.Second)
				waiting, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCINQ)
				must(t, err)
				if waiting != 0 || discipline() != before {
					t.Errorf("with %v: %d bytes of input, discipline %d", flags, waiting, discipline())
				}
			}
		})
	}
}

// TestLogBomb: what a detached sandbox writes takes no more of the disk than its log may.
func TestLogBomb(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "bomb")
	id := strings.TrimSpace(e.Must("run", "-d", "--name", "bomb", "--network", "none", "--log-opt", "max-size=1m", "--log-opt", "max-file=2",
		harness.BB, "/probe", "flood", "8000000"))
	e.Must("wait", "bomb")
	var size int64
	must(t, filepath.WalkDir(filepath.Join(e.Data(), "containers", id, "log"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		size += st.Size()
		return err
	}))
	if size == 0 || size > 2<<20 {
		t.Errorf("16 MB of output are %d bytes of log", size)
	}
}

// TestEscapeSequences: what a hostile image or command is called does not reach the
// terminal of who lists sandboxes.
func TestEscapeSequences(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "escapes")
	e.Must("create", "--name", "escapes", "--network", "none", "-l", "k=\x1b]0;owned\a", harness.BB, "echo", "\x1b]0;owned\a\x1b[2J")
	for _, args := range [][]string{{"ps", "-a", "--no-trunc"}, {"ps", "-a", "--format", "{{.Command}}"}, {"inspect", "escapes"}} {
		if r := e.Run(args...); r.Code != 0 || strings.ContainsAny(r.Stdout+r.Stderr, "\x1b\a") {
			t.Errorf("%q", r)
		}
	}
}

// TestMemoryBomb: with a limit it is killed, and where none can be set it does not start.
func TestMemoryBomb(t *testing.T) {
	e := harness.New(t, harness.BB)
	r := e.Run("run", "--rm", "--network", "none", "-m", "64m", harness.BB, "/probe", "try", "memory", "256")
	switch {
	case r.Code == 137:
	case r.Code == 125 && strings.Contains(r.Stderr, "limit"):
	default:
		t.Errorf("%v", r)
	}
	if r := e.Run("run", "--rm", "--network", "none", harness.BB, "/probe", "try", "memory", "256"); r.Stdout != "ok\n" {
		t.Errorf("without a limit: %v", r)
	}
}
