package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"golang.org/x/sys/unix"
)

// lan is a segment outside, in a network namespace of its own, and this side's
// descriptor of its TAP.
type lan struct {
	tap  *os.File
	next io.Writer // lines: the address that its DHCP server gives out
}

// newLAN starts one; see the probe's segment.
func newLAN(t *testing.T, here, gives string) *lan {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	id := func(n int) []syscall.SysProcIDMap { return []syscall.SysProcIDMap{{HostID: n, Size: 1}} }
	cmd := &exec.Cmd{Path: exe, Args: []string{"probe", "segment", here, gives}, Stderr: os.Stderr, SysProcAttr: &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: id(os.Getuid()), GidMappings: id(os.Getgid()), Pdeathsig: syscall.SIGKILL,
	}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	harness.Helper(cmd.Process.Pid)
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	var fd int
	if err == nil {
		_, err = fmt.Sscanf(line, "ready %d", &fd)
	}
	if err != nil {
		t.Fatalf("the segment says %q: %v", line, err)
	}
	pid, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pid)
	if fd, err = unix.PidfdGetfd(pid, fd, 0); err != nil {
		t.Fatal(err)
	}
	tap := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { tap.Close() })
	return &lan{tap, in}
}

// with runs sbx with the TAP as descriptor 3.
func (l *lan) with(t *testing.T, e *harness.Env, args ...string) {
	t.Helper()
	p := e.StartWith(func(cmd *exec.Cmd) { cmd.ExtraFiles = []*os.File{l.tap} }, args...)
	if r := p.Wait(20 * time.Second); r.Code != 0 {
		t.Fatal(r)
	}
}

// TestUplinkDescriptor: the parent of an uplink is an open TAP, which the network's
// process keeps, and the sandboxes on it for the process after that.
func TestUplinkDescriptor(t *testing.T) {
	e := harness.New(t, harness.BB)
	l := newLAN(t, "192.168.77.1/24", "192.168.77.50")
	e.AtEnd("network", "rm", "-f", "up-a")
	l.with(t, e, "network", "create", "-d", "uplink", "--parent", "3", "--subnet", "192.168.77.0/24", "--gateway", "192.168.77.1", "--ip-range", "192.168.77.64/28", "up-a")
	reach := []string{"run", "--rm", "--network", "up-a", "--dns", "192.168.77.1", harness.BB, "sh", "-c", "/probe get http://192.168.77.1/client; /probe get http://router.lab.example/"}
	check := func() {
		t.Helper()
		if out := e.Must(reach...); !strings.HasPrefix(out, "192.168.77.6") || !strings.HasSuffix(out, "probe /\n") {
			t.Errorf("%q", out)
		}
	}
	check()
	pid := func() (n int) {
		t.Helper()
		out := e.Must("network", "inspect", "-f", "{{.Status.Pid}} {{.Options.parent}}", "up-a")
		if _, err := fmt.Sscanf(out, "%d seg0", &n); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return n
	}
	detached(t, e, "up-box", "--network", "up-a", "--ip", "192.168.77.70", harness.BB, "/probe", "serve", "80")
	until(t, e, "ready", "logs", "up-box")
	before := pid()
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 15*time.Second, func() error {
		if r := e.Run("exec", "up-box", "/probe", "get", "http://192.168.77.1/client"); r.Code != 0 || !strings.HasPrefix(r.Stdout, "192.168.77.70:") {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if pid() == before {
		t.Error("the process that was killed is still there")
	}
	check()
	e.Fails(1, []string{"up-box"}, "network", "uplink", "up-a", "tap0")
	// With nobody on it nobody but its process has the device.
	e.Must("rm", "-f", "up-box")
	for _, pid := range e.Role("sbx-netd") { // none: it has left by itself
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	lost := append([]string{}, reach...)
	e.Fails(125, []string{"seg0", "was closed", "sbx network uplink up-a FD"}, lost...)
	l.with(t, e, "network", "uplink", "up-a", "fd:3")
	check()
	e.Fails(125, []string{"--parent 9", "no open descriptor"}, "network", "create", "-d", "uplink", "--parent", "9", "up-b")
	e.Fails(1, []string{"is no uplink"}, "network", "uplink", "bridge", "tap0")
}

// TestUplinkMoves: the server of the segment gives a sandbox that runs another address.
func TestUplinkMoves(t *testing.T) {
	e := harness.New(t, harness.BB)
	l := newLAN(t, "192.168.78.1/24", "192.168.78.50")
	e.AtEnd("network", "rm", "-f", "up-d")
	l.with(t, e, "network", "create", "-d", "uplink", "--parent", "3", "up-d")
	detached(t, e, "up-moves", "--hostname", "mover", "--network", "up-d", harness.BB, "/probe", "serve", "80")
	at := func(addr string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, func() error {
			if got := endpoint(t, e, "up-moves", "up-d").IPAddress; got != addr {
				return fmt.Errorf("inspect says %s, want %s", got, addr)
			}
			return nil
		})
		harness.Eventually(t, 20*time.Second, func() error { // its files come last
			out := e.Must("exec", "up-moves", "sh", "-c", "ip -4 addr show dev eth0; ip route; cat /etc/hosts /etc/resolv.conf; /probe get http://192.168.78.1/client; /probe get http://router/")
			for _, want := range []string{"inet " + addr + "/24", "default via 192.168.78.1 ", addr + "\tmover up-moves\n", "search lab.example\n", "\n" + addr + ":", "probe /\n"} {
				if !strings.Contains(out, want) {
					return fmt.Errorf("at %s lacks %q: %s", addr, want, out)
				}
			}
			if n := strings.Count(out, "inet "); n != 1 {
				return fmt.Errorf("%d addresses: %s", n, out)
			}
			return nil
		})
	}
	at("192.168.78.50")
	for _, next := range []string{"192.168.78.60", "192.168.78.61"} {
		if _, err := fmt.Fprintln(l.next, next); err != nil {
			t.Fatal(err)
		}
		at(next)
	}
}
