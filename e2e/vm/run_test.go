package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestDevices: a distribution's own modes.
func TestDevices(t *testing.T) {
	for _, dev := range []string{"/dev/net/tun", "/dev/fuse"} {
		if fi, err := os.Stat(dev); err != nil || fi.Mode().Perm() != 0o666 {
			t.Errorf("%s: %v, %v", dev, fi, err)
		}
	}
}

// TestDefaults: what sbx chooses on a stock Debian is the best of each, wherever it is
// started, and it has nothing to note.
func TestDefaults(t *testing.T) {
	e := env(t, harness.BB)
	r := e.Run("run", "--rm", harness.BB, "sh", "-c", "grep ' / ' /proc/mounts; cat /sys/class/net/eth0/tun_flags; awk '{n+=$3} END {print n}' /proc/self/uid_map")
	r.Want(t, 0)
	for _, want := range []string{"overlay / overlay ", "userxattr", "\n0x", "\n65537\n"} {
		if !strings.Contains(r.Stdout, want) {
			t.Errorf("no %q: %v", want, r)
		}
	}
}

// TestDrivers: every driver that the doctor calls usable works.
func TestDrivers(t *testing.T) {
	e := env(t, harness.BB)
	for _, storage := range []string{"native", "fuse", "copy"} {
		for _, link := range []string{"tap", "packet"} {
			t.Run(storage+"-"+link, func(t *testing.T) {
				got := e.In(t).Must("run", "--rm", "--storage-driver", storage, "--link-driver", link, harness.BB,
					"sh", "-c", "rm -r /data/owned && echo new >/data/owned && cat /data/owned && ls /sys/class/net")
				if got != "new\neth0\nlo\n" {
					t.Errorf("%q", got)
				}
			})
		}
	}
}

// TestWithoutBus: as in cron or over su, where nothing leads to the user's systemd.
func TestWithoutBus(t *testing.T) {
	e := env(t, harness.BB)
	e.Setenv("DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")
	if got := e.Must("run", "--rm", harness.BB, "echo", "here"); got != "here\n" {
		t.Errorf("%q", got)
	}
	if c := diagnose(t, e)["runtime-dir"]; c.Status != "degraded" {
		t.Errorf("%+v", c)
	}
}

// TestRuntimeDirectory: in the runtime directory of the session nothing is left.
func TestRuntimeDirectory(t *testing.T) {
	e := env(t, harness.BB)
	dir := fmt.Sprintf("%s/sbx-%d", e.Tmp, os.Getuid())
	if place != bare {
		dir = filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "sbx")
	}
	port := e.FreePort()
	p := e.Start("run", "--rm", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), harness.BB, "/probe", "serve", "80")
	p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if n := sockets(t, dir); n == 0 {
		t.Errorf("no socket in %s", dir)
	}
	p.Stop()
	harness.Eventually(t, 20*time.Second, func() error {
		if n := sockets(t, dir); n > 0 {
			return fmt.Errorf("%d sockets left in %s", n, dir)
		}
		return nil
	})
}

// sockets counts those below dir.
func sockets(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && d.Type() == os.ModeSocket {
			n++
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return n
}
