package security

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestSpoof: what a sandbox says on the link in the name of others does not reach its
// neighbour. After each such frame an honest one goes the same way and arrives.
func TestSpoof(t *testing.T) {
	e := harness.New(t, harness.BB)
	p := e.Start("run", "--rm", harness.BB, "/probe", "listen")
	f := strings.Fields(lastLine(p.WaitOut("listening", 10*time.Second)))
	if len(f) != 4 {
		t.Fatalf("the listener says %q", f)
	}
	mac, addr4, addr6 := f[1], f[2], f[3]
	gateway4 := addr4[:strings.LastIndexByte(addr4, '.')] + ".1"
	gateway6 := addr6[:strings.LastIndex(addr6, "::")] + "::1"
	for i, kind := range []string{"ip4", "ip6", "mac", "vlan", "arp", "advert", "router", "redirect"} {
		t.Run(kind, func(t *testing.T) {
			e.In(t).Must("run", "--rm", harness.BB, "/probe", "try", "spoof", kind, mac, addr4, addr6, gateway4, gateway6)
			harness.Eventually(t, 5*time.Second, func() error {
				if n := strings.Count(p.Result().Stdout, `got "honest"`); n <= i {
					return fmt.Errorf("%d honest frames have arrived", n)
				}
				return nil
			})
			if out := p.Result().Stdout; strings.Contains(out, fmt.Sprintf("got %q", kind)) {
				t.Errorf("it has arrived: %s", out)
			}
		})
	}
}

// TestVolumeRace: while one sandbox makes a directory of a volume a link to the host's
// file system and back, the others that mount it get the directory or an error.
func TestVolumeRace(t *testing.T) {
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	e.AtEnd("volume", "rm", "race")
	target := strings.TrimSuffix(o.canary, "/canary")
	p := e.Start("run", "--rm", "--network", "none", "-v", "race:/v", harness.BB, "/probe", "try", "swap", "/v/dir", target)
	p.WaitOut("swapping", 10*time.Second)
	mounted := 0
	for i := 0; i < 12 || mounted == 0 && i < 100; i++ {
		r := e.Run("run", "--rm", "--network", "none", "--mount", "type=volume,source=race,target=/x,volume-subpath=dir", harness.BB, "ls", "/x")
		switch {
		case strings.Contains(r.Stdout, "canary"):
			t.Fatalf("the host's directory is mounted: %v", r)
		case r.Code == 0:
			mounted++
		case r.Code != 125:
			t.Fatalf("%v", r)
		}
	}
	if mounted == 0 {
		t.Error("the directory was never there")
	}
	o.unchanged(t)
}

// TestWorkingDirectory: no descriptor of ours leads out (CVE-2024-21626 in runc).
func TestWorkingDirectory(t *testing.T) {
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	box := e.Start("run", "--rm", "--network", "none", "--name", "cwd", harness.BB, "/probe", "signal")
	box.WaitOut("ready", 10*time.Second)
	refused := 0
	for fd := range 16 {
		for _, form := range []string{"/proc/self/fd/%d", "/proc/thread-self/fd/%d/../../..", "/proc/1/fd/%d"} {
			dir := fmt.Sprintf(form, fd)
			args := []string{"exec", "-w", dir, "cwd"}
			if fd%4 == 0 { // and at the start
				args = []string{"run", "--rm", "--network", "none", "-w", dir, harness.BB}
			}
			r := e.Run(append(args, "cat", "."+o.canary, "../../../../../.."+o.canary)...)
			if r.Code == 0 || strings.Contains(r.Stdout, canaryText) {
				t.Errorf("-w %s leads out: %v", dir, r)
			}
			if slices.Contains([]int{125, 126, 127}, r.Code) {
				refused++
			}
		}
	}
	if refused == 0 {
		t.Error("none was refused")
	}
}

// TestDescriptors: what sbx has inherited reaches neither a workload nor what is executed
// beside it, nor stays with the monitor.
func TestDescriptors(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.AtEnd("rm", "-f", "box")
	secret := filepath.Join(e.Dir(), "secret")
	must(t, os.WriteFile(secret, []byte("x"), 0o600))
	f, err := os.Open(secret)
	must(t, err)
	defer f.Close()
	with := func(c *exec.Cmd) { c.ExtraFiles = []*os.File{f} }
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "try", "leaks")
	cmd.Args[0] = "probe"
	with(cmd)
	if out, err := cmd.Output(); err != nil || string(out) != "ok\n" {
		t.Fatalf("without a sandbox: %q, %v", out, err)
	}
	e.StartWith(with, "run", "-d", "--name", "box", harness.BB, "sleep", "1000").Wait(20*time.Second).Want(t, 0)
	for _, args := range [][]string{{"exec", "box"}, {"run", "--rm", harness.BB}, {"run", "--rm", "--init", "--network", "none", harness.BB}} {
		r := e.StartWith(with, append(args, "/probe", "try", "leaks")...).Wait(20 * time.Second)
		if r.Stdout != "EBADF\n" {
			t.Errorf("%v: %v", args, r)
		}
	}
	monitor := strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Monitor.Pid}}", "box"))
	fds, err := os.ReadDir("/proc/" + monitor + "/fd")
	must(t, err)
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/" + monitor + "/fd/" + fd.Name()); err == nil && to == secret {
			t.Errorf("the monitor has it as %s", fd.Name())
		}
	}
}
