package sealed

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const envRole = "SEALED_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case "inside":
		if err := inside(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	case "sealed":
		fmt.Println("runs")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestSealed makes both kinds of copy in a user and mount namespace.
func TestSealed(t *testing.T) {
	if interpreted, err := hasInterpreter(); err != nil || interpreted {
		t.Skipf("the test is linked dynamically, CGO_ENABLED=0 does otherwise: %v", err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{envRole + "=inside", "DIR=" + t.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	before, err := os.Stat("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	after, err := os.Stat("/proc/self/exe")
	if err != nil || after.Mode() != before.Mode() || after.ModTime() != before.ModTime() {
		t.Errorf("the program was %v, is %v, %v", before, after, err)
	}
}

func inside() error {
	p, err := Self(os.Getenv("DIR"))
	if err != nil {
		return err
	}
	if err := tryHard("behind an overlay", p.Path(), unix.EROFS); err != nil {
		return err
	}
	// The sandbox's directory is below that of the program, or the reverse.
	if p, err = Self("/"); err != nil {
		return err
	}
	if err := tryHard("behind another overlay", p.Path(), unix.EROFS); err != nil {
		return err
	}
	fd, err := inMemory()
	if err != nil {
		return err
	}
	return tryHard("in memory", (&Program{os.NewFile(uintptr(fd), "memory")}).Path(), unix.EPERM)
}

// tryHard executes the copy and then tries to change it.
func tryHard(kind, path string, want error) error {
	cmd := exec.Command(path)
	cmd.Env = []string{envRole + "=sealed"}
	if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "runs" {
		return fmt.Errorf("%s: execute: %v %q", kind, err, out)
	}
	attempts := map[string]error{"truncate": unix.Truncate(path, 1)}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte("x"))
	}
	attempts["write"] = err
	if want == unix.EROFS { // the mode of a copy in memory is nobody's business
		attempts["chmod"] = os.Chmod(path, 0o777)
		attempts["times"] = unix.UtimesNano(path, make([]unix.Timespec, 2))
		attempts["attribute"] = unix.Setxattr(path, "user.test", []byte("x"), 0)
	}
	for what, err := range attempts {
		if !strings.Contains(fmt.Sprint(err), want.Error()) {
			return fmt.Errorf("%s: %s: %v, want %v", kind, what, err, want)
		}
	}
	var held int
	if held, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	err = unix.MountSetattr(held, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	if err != unix.EINVAL && err != unix.ENOSYS {
		return fmt.Errorf("%s: change the mount: %v", kind, err)
	}
	return nil
}
