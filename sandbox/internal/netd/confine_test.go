package netd

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// deeds are what a network's process might do if a guest took it over, and what it
// has to do. They are done in a process that has shed all, one stage or nothing.
var deeds = []struct {
	name string
	// stages that forbid it; none: it must go on.
	stages string
	do     func(dir string) error
}{
	{"read a file of the user", "files", func(dir string) error { return read(filepath.Join(dir, "secret")) }},
	{"write a file of the user", "files", func(dir string) error { return os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600) }},
	{"make a file", "files", func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) }},
	{"list the user's directory", "files", func(dir string) error { _, err := os.ReadDir(dir); return err }},
	{"move a file out", "files", func(dir string) error { return os.Rename(filepath.Join(dir, "own/file"), filepath.Join(dir, "moved")) }},
	{"execute a program", "files calls", func(string) error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err == nil {
			_, err = p.Wait()
		}
		return err
	}},
	{"trace a process", "calls", func(string) error { return ignore(unix.PtraceSeize(0x7fffffff), unix.ESRCH) }},
	{"signal a process", "calls", func(string) error { return unix.Kill(os.Getpid(), 0) }},
	{"make a namespace", "calls", func(string) error { return ignore(unix.Unshare(unix.CLONE_NEWUSER), unix.EINVAL) }},
	{"join a namespace", "calls", func(string) error { return ignore(unix.Setns(-1, 0), unix.EBADF) }},
	{"mount", "calls", func(string) error { return ignore(unix.Mount("", "", "", 0, ""), unix.ENOENT) }},
	{"use io_uring", "calls", func(string) error {
		_, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0)
		return ignore(e, unix.EFAULT, unix.EINVAL)
	}},
	{"make an exotic socket", "calls", func(string) error {
		_, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		return ignore(err, unix.EAFNOSUPPORT)
	}},
	{"change ids", "calls", func(string) error { return unix.Setuid(os.Getuid()) }},
	{"write its own file", "", func(dir string) error { return os.WriteFile(filepath.Join(dir, "own/other"), nil, 0o600) }},
	{"replace its own file", "", func(dir string) error {
		return os.Rename(filepath.Join(dir, "own/other"), filepath.Join(dir, "own/third"))
	}},
	{"read the name servers", "", func(string) error { return read("/etc/resolv.conf") }},
	{"read the network's settings", "", func(string) error { return read("/proc/sys/net/ipv4/ping_group_range") }},
	{"connect", "", func(string) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer ln.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		return errors.Join(err, c.Close())
	}},
	{"meet others at a socket", "", func(dir string) error {
		ln, err := net.Listen("unix", filepath.Join(dir, "own/s"))
		if err != nil {
			return err
		}
		return ln.Close()
	}},
}

func read(file string) error { _, err := os.ReadFile(file); return err }

// ignore takes an error of the call itself for a success: it was let in.
func ignore(err error, allowed ...syscall.Errno) error {
	for _, a := range allowed {
		if errors.Is(err, a) {
			return nil
		}
	}
	var e syscall.Errno
	if errors.As(err, &e) && e == 0 {
		return nil
	}
	return err
}

// confinedRole sheds the stages that it is told and prints which deeds are refused.
func confinedRole() error {
	dir := os.Getenv("NETD_TEST_DIR")
	c := &confinement{Writable: []string{filepath.Join(dir, "own")}, Readable: []string{"/etc", "/run", "/proc"}}
	only := os.Getenv("NETD_TEST_STAGE")
	for _, s := range stages {
		if only == "all" || only == s.name {
			if err := s.shed(c); err != nil {
				return err
			}
		}
	}
	refused := map[string]string{}
	for _, d := range deeds {
		if err := d.do(dir); err != nil {
			refused[d.name] = err.Error()
			if !errors.Is(err, fs.ErrPermission) {
				refused[d.name] = "otherwise: " + err.Error()
			}
		}
	}
	if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d != 0 {
		refused["dumpable"] = "it is"
	}
	return json.NewEncoder(os.Stdout).Encode(refused)
}

// TestConfinement: each stage forbids what it is for and nothing else, and without it
// the same deeds are done.
func TestConfinement(t *testing.T) {
	for _, stage := range []string{"none", "inspection", "files", "calls", "all"} {
		t.Run(stage, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range []string{"secret", "own/file"} {
				if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, f)), 0o700), os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = []string{roleEnv + "=confined", "NETD_TEST_STAGE=" + stage, "NETD_TEST_DIR=" + dir}
			out, err := cmd.Output()
			var refused map[string]string
			if err = errors.Join(err, json.Unmarshal(out, &refused)); err != nil {
				t.Fatalf("%v: %q", err, out)
			}
			want := []string{}
			for _, d := range deeds {
				if d.stages != "" && (stage == "all" || slices.Contains(strings.Fields(d.stages), stage)) {
					want = append(want, d.name)
				}
			}
			if stage != "inspection" && stage != "all" {
				want = append(want, "dumpable")
			}
			for _, name := range want {
				if refused[name] == "" {
					t.Errorf("it could %s", name)
				}
			}
			for name, why := range refused {
				if !slices.Contains(want, name) {
					t.Errorf("it could not %s: %s", name, why)
				}
			}
		})
	}
}
