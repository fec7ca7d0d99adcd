package e2e

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

func TestSignalsForwarded(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, args := range [][]string{{}, {"--init"}} {
		p := e.Start(append(append([]string{"run", "--rm"}, args...), harness.BB, "/probe", "signal")...)
		p.WaitOut("ready", 20*time.Second)
		for _, s := range []syscall.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2, unix.SIGINT, unix.SIGQUIT} {
			p.Signal(s)
			p.WaitOut("signal "+unix.SignalName(s), 10*time.Second)
		}
		p.Signal(unix.SIGTERM)
		if r := p.Wait(10 * time.Second); r.Code != 42 {
			t.Errorf("%v: the workload's own status was 42: %v", args, r)
		}
	}
}

// TestInitReaps: with --init, orphans do not stay as zombies, and a workload
// without handlers dies of TERM; without it, pid 1 ignores what it does not handle.
func TestInitReaps(t *testing.T) {
	e := harness.New(t, harness.BB)
	// An orphan that ends has its directory in /proc until it is reaped.
	e.Must("run", "--rm", "--init", harness.BB, "sh", "-c", "(sh -c 'echo $$ >/pid' &); until [ -s /pid ]; do sleep 0.02; done;"+
		" for i in $(seq 500); do [ -e /proc/$(cat /pid) ] || exit 0; sleep 0.02; done; ps -o pid,stat,comm; exit 1")
	p := e.Start("run", "--rm", "--init", harness.BB, "sh", "-c", "echo up; exec sleep 1000")
	p.WaitOut("up", 20*time.Second)
	p.Signal(unix.SIGTERM)
	if r := p.Wait(10 * time.Second); r.Code != 143 {
		t.Errorf("%v", r)
	}
	if out := e.Must("run", "--rm", harness.BB, "sh", "-c", "echo $$"); out != "1\n" {
		t.Errorf("the workload is pid 1 without --init: %q", out)
	}
	if out := e.Must("run", "--rm", "--init", harness.BB, "sh", "-c", "echo $$"); out == "1\n" {
		t.Error("the workload is pid 1 with --init")
	}
}

func TestStopSignal(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.Fails(125, []string{"signal"}, "run", "--rm", "--stop-signal", "SIGNOPE", harness.BB, "true")
}

// terminal starts sbx on a new pseudo-terminal.
func terminal(t *testing.T, e *harness.Env, args ...string) (console.Console, *harness.Proc) {
	t.Helper()
	con, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { con.Close() })
	if err := con.Resize(console.WinSize{Height: 40, Width: 100}); err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := e.StartWith(func(c *exec.Cmd) {
		c.Stdin, c.Stdout, c.Stderr = tty, tty, tty
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	}, args...)
	if err := tty.Close(); err != nil {
		t.Fatal(err)
	}
	return con, p
}

// expect reads from the terminal until text is there.
func expect(t *testing.T, con io.Reader, text string) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var all strings.Builder
		buf := make([]byte, 4096)
		for !strings.Contains(all.String(), text) {
			n, err := con.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				break
			}
		}
		got <- all.String()
	}()
	select {
	case s := <-got:
		if !strings.Contains(s, text) {
			t.Fatalf("terminal closed before %q: %q", text, s)
		}
		return s
	case <-time.After(harness.Slow(20 * time.Second)):
		t.Fatalf("no %q on the terminal", text)
	}
	return ""
}

func TestTerminal(t *testing.T) {
	e := harness.New(t, harness.BB)
	con, p := terminal(t, e, "run", "--rm", "-it", harness.BB, "sh")
	type step struct{ in, want string }
	for _, s := range []step{
		{"stty size\n", "40 100"},
		{"tty\n", "/dev/"},
		{"test -t 0 && test -t 1 && test -t 2 && echo all-$((1+1))\n", "all-2"},
		{"echo $TERM-x\n", "-x"},
		{"sh -c 'echo sleeps-$((3+3)); exec sleep 100'\n", "sleeps-6"},
		{"\x03", "\r\n"}, // the terminal's own interrupt key, in raw mode: it goes to the sandbox
		{"echo back-$((2+2))\n", "back-4"},
	} {
		if _, err := io.WriteString(con, s.in); err != nil {
			t.Fatal(err)
		}
		expect(t, con, s.want)
	}
	if err := con.Resize(console.WinSize{Height: 50, Width: 120}); err != nil {
		t.Fatal(err)
	}
	p.Signal(unix.SIGWINCH) // what the kernel sends to the foreground group
	if _, err := io.WriteString(con, "until stty size | grep '50 120'; do sleep 0.1; done; echo resized-$((4+4))\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, con, "resized-8")
	if _, err := io.WriteString(con, "exit 7\n"); err != nil {
		t.Fatal(err)
	}
	if r := p.Wait(20 * time.Second); r.Code != 7 {
		t.Errorf("%v", r)
	}
}

// TestTerminalRestored: raw mode ends with sbx, also when it is killed by a signal it can catch.
func TestTerminalRestored(t *testing.T) {
	e := harness.New(t, harness.BB)
	con, p := terminal(t, e, "run", "--rm", "-it", harness.BB, "sh", "-c", "echo started; exec sleep 100")
	expect(t, con, "started")
	if before, err := unix.IoctlGetTermios(int(con.Fd()), unix.TCGETS); err != nil || before.Lflag&unix.ICANON != 0 {
		t.Errorf("not raw while it runs: %v", err)
	}
	p.Signal(unix.SIGTERM)
	time.Sleep(200 * time.Millisecond)
	p.Stop()
	if after, err := unix.IoctlGetTermios(int(con.Fd()), unix.TCGETS); err != nil || after.Lflag&unix.ICANON == 0 {
		t.Errorf("still raw after the end: %v", err)
	}
}

func TestTerminalWanted(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.Fails(125, []string{"-t"}, "run", "--rm", "-it", harness.BB, "true")
}
