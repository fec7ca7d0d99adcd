//go:build !cgo

// With cgo a program cannot shed its privileges, and needs its libraries.

package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/confine/confinetest"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/sealed"
)

const roleEnv = "MONITOR_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "confined":
		err = confinedRole()
	case "sandbox":
		err = sandboxRole()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(roleEnv)+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// deeds are what a monitor might do if somebody took it over, and what it has to do.
var deeds = []confinetest.Deed{
	{Name: "read a file of the user", Stages: "files", Do: func(dir string) error { return confinetest.Read(filepath.Join(dir, "secret")) }},
	{Name: "make a file", Stages: "files", Do: func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) }},
	{Name: "make a directory at the top", Do: func(dir string) error {
		err := os.Mkdir("/made by a test", 0o700)
		if err == nil {
			return errors.New("it was made")
		}
		return confinetest.Ignore(err, unix.EROFS, unix.EACCES)
	}},
	{Name: "move a file out", Stages: "files", Do: func(dir string) error {
		return os.Rename(filepath.Join(dir, "own/file"), filepath.Join(dir, "moved"))
	}},
	{Name: "connect to the user's other programs", Stages: "files", Do: func(dir string) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return confinetest.Ignore(unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "secret")}), unix.ECONNREFUSED)
	}},
	{Name: "leave by what is open", Stages: "files", Do: leaveByDescriptors},
	{Name: "execute a program of the machine", Stages: "files", Do: func(string) error { return exec.Command("/bin/true").Run() }},
	{Name: "use io_uring", Stages: "calls", Do: func(string) error {
		_, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0)
		return confinetest.Ignore(e, unix.EFAULT, unix.EINVAL)
	}},
	{Name: "watch the kernel", Stages: "calls", Do: func(string) error {
		_, _, e := unix.Syscall6(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0, 0)
		return confinetest.Ignore(e, unix.EFAULT)
	}},
	{Name: "stop the kernel in its reading of memory", Stages: "calls", Do: func(string) error {
		fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|1 /* UFFD_USER_MODE_ONLY */, 0, 0)
		if e == 0 {
			unix.Close(int(fd))
		}
		return confinetest.Ignore(e, unix.ENOSYS)
	}},
	{Name: "use the user's keys", Stages: "calls", Do: func(string) error {
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, false)
		return confinetest.Ignore(err, unix.ENOKEY, unix.ENOSYS)
	}},
	{Name: "set quotas", Stages: "calls", Do: func(string) error {
		_, _, e := unix.Syscall6(unix.SYS_QUOTACTL, 0xffff, 0, 0, 0, 0, 0)
		return confinetest.Ignore(e, unix.EINVAL, unix.ENOSYS, unix.EFAULT)
	}},
	{Name: "write its own file", Do: func(dir string) error { return os.WriteFile(filepath.Join(dir, "own/other"), nil, 0o600) }},
	{Name: "read the name servers", Do: func(string) error { return confinetest.Read("/etc/resolv.conf") }},
	{Name: "make a sandbox", Do: func(dir string) error {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{roleEnv + "=sandbox", "DIR=" + filepath.Join(dir, "own")}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}},
	{Name: "unmount what hides the user's files", Stages: "files", Do: func(dir string) error {
		for _, d := range []string{"/etc", "/sys", filepath.Join(dir, "own"), "/proc", "/"} {
			_ = unix.Unmount(d, unix.MNT_DETACH)
		}
		return confinetest.Read(filepath.Join(dir, "secret"))
	}},
}

// leaveByDescriptors tries every open directory, and the working one.
func leaveByDescriptors(dir string) error {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	ways := []int{unix.AT_FDCWD}
	for _, n := range names {
		if fd, err := strconv.Atoi(n.Name()); err == nil {
			ways = append(ways, fd)
		}
	}
	for _, fd := range ways {
		var f int
		if f, err = unix.Openat(fd, strings.Repeat("../", 64)+filepath.Join(dir, "secret")[1:], unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			return unix.Close(f)
		}
	}
	return fs.ErrNotExist
}

// sandboxRole does what init does.
func sandboxRole() error {
	root := filepath.Join(os.Getenv("DIR"), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := unix.Sethostname([]byte("inside")); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	if _, _, e := unix.Syscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0); e != 0 && e != unix.ENOSYS {
		return os.NewSyscallError("keyctl", e)
	}
	plan, err := fsoverlay.BuildPlan(fsoverlay.PlanConfig{Root: root, SingleID: true})
	if err != nil {
		return err
	}
	_, err = plan.Apply()
	return err
}

// confinedRole is a monitor, in the user namespace of the test's command.
func confinedRole() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	m, err := testMonitor(confinetest.Dir())
	if err != nil {
		return err
	}
	return confinetest.Role(m.stages(), deeds)
}

func testMonitor(dir string) (*monitor, error) {
	own := filepath.Join(dir, "own")
	m := &monitor{spec: proto.Start{Driver: fsoverlay.DriverNative, Dir: own, DataDir: own, RuntimeDir: own, VolumesDir: own, EventsDir: own}}
	var err error
	m.program, err = sealed.Self(own)
	return m, err
}

// TestConfinement: each stage forbids what it is for and nothing else, and without it
// the same deeds are done.
func TestConfinement(t *testing.T) {
	confinetest.Run(t, (&monitor{}).stages(), deeds, func() *exec.Cmd { return inUserNamespace("confined") })
}

// inUserNamespace is a process that is root in a namespace of its own.
func inUserNamespace(role string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleEnv + "=" + role}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}
