package netd

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/sandbox/internal/confine/confinetest"
)

// deeds are what a network's process might do if a guest took it over, and what it has to do.
var deeds = []confinetest.Deed{
	{Name: "be looked into by the user's other processes", Stages: "inspection", Do: func(string) error {
		if d, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || d == 0 {
			return errors.Join(err, fs.ErrPermission)
		}
		return nil
	}},
	{Name: "read a file of the user", Stages: "files", Do: func(dir string) error { return confinetest.Read(filepath.Join(dir, "secret")) }},
	{Name: "write a file of the user", Stages: "files", Do: func(dir string) error { return os.WriteFile(filepath.Join(dir, "secret"), nil, 0o600) }},
	{Name: "make a file", Stages: "files", Do: func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) }},
	{Name: "list the user's directory", Stages: "files", Do: func(dir string) error { _, err := os.ReadDir(dir); return err }},
	{Name: "move a file out", Stages: "files", Do: func(dir string) error { return os.Rename(filepath.Join(dir, "own/file"), filepath.Join(dir, "moved")) }},
	{Name: "execute a program", Stages: "files calls", Do: func(string) error {
		p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
		if err == nil {
			_, err = p.Wait()
		}
		return err
	}},
	{Name: "trace a process", Stages: "calls", Do: func(string) error { return confinetest.Ignore(unix.PtraceSeize(0x7fffffff), unix.ESRCH) }},
	{Name: "signal a process", Stages: "calls", Do: func(string) error { return unix.Kill(os.Getpid(), 0) }},
	{Name: "make a namespace", Stages: "calls", Do: func(string) error { return confinetest.Ignore(unix.Unshare(unix.CLONE_NEWUSER), unix.EINVAL) }},
	{Name: "join a namespace", Stages: "calls", Do: func(string) error { return confinetest.Ignore(unix.Setns(-1, 0), unix.EBADF) }},
	{Name: "mount", Stages: "calls", Do: func(string) error { return confinetest.Ignore(unix.Mount("", "", "", 0, ""), unix.ENOENT) }},
	{Name: "use io_uring", Stages: "calls", Do: func(string) error {
		_, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0)
		return confinetest.Ignore(e, unix.EFAULT, unix.EINVAL)
	}},
	{Name: "make an exotic socket", Stages: "calls", Do: func(string) error {
		_, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
		return confinetest.Ignore(err, unix.EAFNOSUPPORT)
	}},
	{Name: "change ids", Stages: "calls", Do: func(string) error { return unix.Setuid(os.Getuid()) }},
	{Name: "write its own file", Do: func(dir string) error { return os.WriteFile(filepath.Join(dir, "own/other"), nil, 0o600) }},
	{Name: "replace its own file", Do: func(dir string) error {
		return os.Rename(filepath.Join(dir, "own/other"), filepath.Join(dir, "own/third"))
	}},
	{Name: "read the name servers", Do: func(string) error { return confinetest.Read("/etc/resolv.conf") }},
	{Name: "read the network's settings", Do: func(string) error { return confinetest.Read("/proc/sys/net/ipv4/ping_group_range") }},
	{Name: "connect", Do: func(string) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer ln.Close()
		c, err := net.Dial("tcp", ln.Addr().String())
		return errors.Join(err, c.Close())
	}},
	{Name: "meet others at a socket", Do: func(dir string) error {
		ln, err := net.Listen("unix", filepath.Join(dir, "own/s"))
		if err != nil {
			return err
		}
		return ln.Close()
	}},
}

// confinement of the test's own directory.
func testConfinement() *confinement {
	return &confinement{Writable: []string{filepath.Join(confinetest.Dir(), "own")}, Readable: []string{"/etc", "/run", "/proc"}}
}

func confinedRole() error { return confinetest.Role(testConfinement().stages(), deeds) }

// TestConfinement: each stage forbids what it is for and nothing else, and without it
// the same deeds are done.
func TestConfinement(t *testing.T) {
	confinetest.Run(t, testConfinement().stages(), deeds, func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{roleEnv + "=confined"}
		return cmd
	})
}
