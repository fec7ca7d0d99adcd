// Package vm tests sbx where the build machine cannot: on a stock Debian with systemd,
// the unified cgroup tree and its kernel, as a user without sudo. scripts/vm-guest.sh
// runs it in each of the places below; make test-vm boots the machine.
package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// Places in which a user's program runs.
const (
	login     = "login"     // a session of systemd-logind
	linger    = "linger"    // a service of the user's systemd; there is no session
	bare      = "bare"      // no session, no systemd of the user's
	delegated = "delegated" // login, after the administrator did what sbx doctor says
)

var place = os.Getenv("SBX_TEST_VM")

func TestMain(m *testing.M) {
	if place == "" && !probe.IsProbe() {
		fmt.Fprintln(os.Stderr, "e2e/vm needs the virtual machine of scripts/vm.sh: make test-vm")
		os.Exit(1)
	}
	os.Exit(harness.Main(m))
}

// env returns an environment with the runtime directory that the place gives.
func env(t *testing.T, images ...string) *harness.Env {
	t.Helper()
	e := harness.New(t, images...)
	if dir, ok := os.LookupEnv("XDG_RUNTIME_DIR"); ok {
		e.Setenv("XDG_RUNTIME_DIR=" + dir)
	} else {
		e.Setenv("XDG_RUNTIME_DIR")
	}
	return e
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func kernel(t *testing.T) string {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	return unix.ByteSliceToString(u.Release[:])
}

// TestPlace: the ring tests what it says it does.
func TestPlace(t *testing.T) {
	uid := os.Getuid()
	user := fmt.Sprintf("0::/user.slice/user-%d.slice/", uid)
	want, ok := map[string]string{
		login: user + "session-", delegated: user + "session-",
		linger: user + fmt.Sprintf("user@%d.service/app.slice/", uid),
		bare:   "0::/system.slice/",
	}[place]
	if got := read(t, "/proc/self/cgroup"); !ok || !strings.HasPrefix(got, want) {
		t.Errorf("%s: in cgroup %q, want %q", place, got, want)
	}
	runtime := fmt.Sprintf("/run/user/%d", uid)
	_, err := os.Stat(filepath.Join(runtime, "systemd/private"))
	if place == bare {
		if err == nil || os.Getenv("XDG_RUNTIME_DIR") != "" || os.Getenv("DBUS_SESSION_BUS_ADDRESS") != "" {
			t.Errorf("there is a systemd of the user's: %v %q", err, os.Environ())
		}
	} else if err != nil || os.Getenv("XDG_RUNTIME_DIR") != runtime {
		t.Errorf("the user's systemd: %v; XDG_RUNTIME_DIR=%s", err, os.Getenv("XDG_RUNTIME_DIR"))
	}
	if k := kernel(t); !strings.HasPrefix(k, "6.1.") {
		t.Errorf("kernel %s, want that of Debian 12", k)
	}
	if err := unix.Access("/usr/bin/sudo", unix.X_OK); err == nil {
		t.Error("there is a sudo")
	}
}

// disk is the one that the root file system is on.
func disk(t *testing.T) string {
	t.Helper()
	for _, d := range []string{"/dev/ubda", "/dev/vda"} {
		if _, err := os.Stat(d); err == nil {
			return d
		}
	}
	t.Fatal("no disk that we know")
	return ""
}

// blob is a file of 3 MiB that is on the disk.
func blob(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}
