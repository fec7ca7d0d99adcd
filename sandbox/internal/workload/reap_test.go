package workload

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// testReaper is pid 1 of a sandbox with --init.
func testReaper(s setup) error {
	js, err := json.Marshal(setup{Spec: s.Spec})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if s.InitTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.InitTimeout)
		defer cancel()
	}
	status, err := RunInit(ctx, func() (*os.Process, error) {
		return os.StartProcess("/proc/self/exe", []string{"init"}, &os.ProcAttr{
			Env: []string{modeEnv + "=" + string(js)}, Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	})
	if err != nil {
		return err
	}
	os.Exit(status)
	return nil
}

func TestRunInitStatus(t *testing.T) {
	root := newRoot(t)
	for _, tt := range []struct {
		spec   Spec
		status int
	}{
		{Spec{Args: []string{"true"}}, 0},
		{Spec{Args: []string{"/probe", "exit", "42"}}, 42},
		{Spec{Args: []string{"sh", "-c", "kill -TERM $$"}, User: "alice"}, 128 + 15},
		{Spec{Args: []string{"nothing"}}, 127},
		{Spec{Args: []string{"/etc"}}, 126},
	} {
		r := run(t, setup{Root: root, Init: true, Spec: tt.spec})
		if r.status != tt.status {
			t.Errorf("%v: status %d, want %d; %s", tt.spec.Args, r.status, tt.status, r.stderr)
		}
	}
	start := time.Now()
	r := run(t, setup{Root: root, Init: true, InitTimeout: 300 * time.Millisecond, Spec: Spec{Args: []string{"sleep", "60"}, User: "alice"}})
	if r.status != 128+9 || time.Since(start) > 20*time.Second {
		t.Errorf("after its context: status %d, %s", r.status, r.stderr)
	}
}

// Orphans are adopted and reaped, and pid 1 holds no more than it needs and
// cannot be looked into.
func TestRunInitReaps(t *testing.T) {
	script := `
		for i in 1 2 3 4 5; do (sh -c 'exit 3' & ) ; done
		i=0; while cat /proc/1/task/*/status | grep -q '^Cap[EP].*ffffffff' && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.05; done # pid 1 sheds while this runs
		for t in /proc/1/task/*; do grep -E '^(CapEff|CapPrm|NoNewPrivs):' $t/status; done | sort -u
		for f in exe root cwd fd/0; do readlink /proc/1/$f 2>/dev/null && echo readable; done; cat /proc/1/environ /proc/1/maps 2>/dev/null | grep -q . && echo readable
		echo "I am $$"
		i=0; while grep -l '^State:.Z' /proc/[0-9]*/status >/dev/null 2>&1 && [ $i -lt 100 ]; do i=$((i+1)); sleep 0.05; done
		[ $i -lt 100 ] || echo zombies`
	out := mustRun(t, setup{Init: true, Spec: Spec{Args: []string{"sh", "-c", script}, Env: testEnv}})
	if strings.Contains(out, "readable") || strings.Contains(out, "zombies") || strings.Contains(out, "I am 1\n") {
		t.Error(out)
	}
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); e == unix.ENOTSUP {
		return // a test binary with cgo cannot drop capabilities
	}
	for _, want := range []string{"CapEff:\t0000000000000020\n", "CapPrm:\t0000000000000020\n", "NoNewPrivs:\t1\n"} {
		if !strings.Contains(out, want) || strings.Count(out, want[:6]) != 1 {
			t.Errorf("want %q alone in\n%s", want, out)
		}
	}
}

func TestRunInitForwards(t *testing.T) {
	root := newRoot(t)
	for _, user := range []string{"", "alice"} {
		script := `trap 'echo hup' HUP; trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.02; done`
		cmd, release := command(t, setup{Root: root, Init: true, Spec: Spec{Args: []string{"sh", "-c", script}, Env: testEnv, User: user}})
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		release()
		lines := bufio.NewReader(out)
		for _, step := range []struct {
			line string
			sig  syscall.Signal
		}{{"ready\n", unix.SIGHUP}, {"hup\n", unix.SIGUSR1}, {"usr1\n", 0}} {
			line, err := lines.ReadString('\n')
			if line != step.line {
				t.Fatalf("read %q (%v), want %q", line, err, step.line)
			}
			if step.sig != 0 {
				if err := cmd.Process.Signal(step.sig); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := io.Copy(io.Discard, lines); err != nil {
			t.Error(err)
		}
		var ee *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != 7 {
			t.Errorf("user %q: %v", user, err)
		}
	}
}

// openPTY makes a terminal of the host's devpts.
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(filepath.Join("/dev/pts", fmt.Sprint(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// With a terminal the workload is session leader, owns it, and ^C reaches it.
func TestTerminal(t *testing.T) {
	root := newRoot(t)
	for _, tt := range []struct {
		init    bool
		console int
	}{{false, 0}, {true, 0}, {false, 4}} {
		init := tt.init
		master, slave := openPTY(t)
		script := `trap 'echo interrupted; exit 9' INT; tty </dev/tty >/dev/null && echo has tty; echo owner $(stat -L -c %u /proc/self/fd/0); while :; do sleep 0.02; done`
		cmd, release := command(t, setup{Root: root, Init: init, Spec: Spec{Args: []string{"sh", "-c", script}, Env: testEnv, User: "alice", Terminal: true, ConsoleFD: tt.console}})
		if tt.console == 0 {
			cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		} else {
			cmd.ExtraFiles = append(cmd.ExtraFiles, slave) // descriptor 4
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if err := slave.Close(); err != nil {
			t.Fatal(err)
		}
		release()
		lines := bufio.NewReader(master)
		for _, want := range []string{"has tty", "owner 1000", "interrupted"} {
			line, err := lines.ReadString('\n')
			if !strings.Contains(line, want) {
				t.Fatalf("init %v: read %q (%v), want %q", init, line, err, want)
			}
			if strings.HasPrefix(want, "owner") {
				if _, err := master.Write([]byte{3}); err != nil {
					t.Fatal(err)
				}
			}
		}
		var ee *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &ee) || ee.ExitCode() != 9 {
			t.Errorf("init %v: %v", init, err)
		}
	}
}

func TestFromWire(t *testing.T) {
	remote := fmt.Errorf("start: %w", &wire.Error{Code: CodeNotFound, Msg: "x", Errno: unix.ENOENT})
	if err := FromWire(remote); !errors.Is(err, ErrNotFound) || errors.Is(err, ErrNotExecutable) || !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	if ExitStatus(remote) != 127 || ExitStatus(&wire.Error{Code: CodeNotExecutable}) != 126 || ExitStatus(io.EOF) != 125 || ExitStatus(nil) != 0 {
		t.Error("exit statuses")
	}
	if FromWire(io.EOF) != io.EOF {
		t.Error("another error was changed")
	}
}
