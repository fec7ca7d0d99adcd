package confine

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const roleEnv, dirEnv = "CONFINE_ROLE", "CONFINE_DIR"

func TestMain(m *testing.M) {
	role, dir := os.Getenv(roleEnv), os.Getenv(dirEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	var err error
	switch role {
	case "later":
		err = laterRole(dir)
	case "waits":
		err = waitsRole(dir)
	default:
		err = rootCases[role].run(dir)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

type rootCase struct {
	needed, wanted []string
	fails          string
	// found and gone are files afterwards.
	found, gone []string
}

// rootCases begin in a directory with the files a/b/file, a/link that leads to c, c/file,
// a-b/file, to-a that leads to a, and others/file.
var rootCases = map[string]rootCase{
	"a file and a directory": {needed: []string{"a/b/file", "c"}, found: []string{"a/b/file", "c/file"}, gone: []string{"a/link", "others/file", "a-b/file"}},
	"one below another":      {needed: []string{"a/b", "a-b", "a/b/file", "a"}, wanted: []string{"c"}, found: []string{"a/b/file", "a-b/file", "a/link/file"}, gone: []string{"others"}},
	"wanted and missing":     {needed: []string{"c"}, wanted: []string{"none", "none/there"}, found: []string{"c/file"}, gone: []string{"others"}},
	"a link":                 {needed: []string{"to-a"}, wanted: []string{"c"}, found: []string{"to-a/b/file", "to-a/link/file"}, gone: []string{"a", "others"}},
	"needed and missing":     {needed: []string{"c", "none"}, fails: "none: open_tree: no such file or directory", found: []string{"others/file"}},
	"a link that leads out":  {needed: []string{"a", "a/link/file"}, fails: "a/link/file leads through a link", found: []string{"others/file"}},
	"everything":             {needed: []string{"c", "/"}, fails: "all of the machine's files are needed", found: []string{"others/file"}},
	"a relative path":        {needed: []string{"c", "../c"}, fails: "../c is not absolute", found: []string{"others/file"}},
}

func (c rootCase) run(dir string) error {
	if err := slaves(); err != nil {
		return err
	}
	if err := os.Chdir(filepath.Join(dir, "others")); err != nil {
		return err
	}
	before, err := mounts()
	if err != nil {
		return err
	}
	abs := func(list []string) (out []string) {
		for _, p := range list {
			if !strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "..") {
				p = filepath.Join(dir, p)
			}
			out = append(out, p)
		}
		return out
	}
	err = Root{Needed: append(abs(c.needed), "/proc"), Wanted: abs(c.wanted)}.Enter()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wd, werr := os.Getwd()
	after, merr := mounts()
	errs = append(errs, werr, merr)
	if c.fails != "" {
		check(err != nil && strings.Contains(err.Error(), c.fails), "it says: %v", err)
		check(wd == filepath.Join(dir, "others") && slices.Equal(before, after), "it is not as it was: in %s, mounts %v", wd, after)
	} else {
		check(err == nil && wd == "/", "in %s: %v", wd, err)
		merr := os.Mkdir("/new", 0o700)
		check(errors.Is(merr, unix.EROFS), "make something at the top: %v", merr)
	}
	for _, f := range abs(c.found) {
		_, err := os.ReadFile(f)
		check(err == nil, "%v", err)
	}
	for _, f := range abs(c.gone) {
		_, err := os.Lstat(f)
		check(errors.Is(err, os.ErrNotExist), "%s: %v", f, err)
	}
	return errors.Join(errs...)
}

func slaves() error {
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""))
}

// mounts are where something is mounted.
func mounts() (list []string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		list = append(list, strings.Fields(line)[4])
	}
	return list, err
}

func command(role, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{roleEnv + "=" + role, dirEnv + "=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	return cmd
}

func TestRoot(t *testing.T) {
	for name := range rootCases {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range []string{"a/b/file", "c/file", "a-b/file", "others/file"} {
				f = filepath.Join(dir, f)
				if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o755), os.WriteFile(f, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(os.Symlink("../c", filepath.Join(dir, "a/link")), os.Symlink("a", filepath.Join(dir, "to-a"))); err != nil {
				t.Fatal(err)
			}
			if out, err := command(name, dir).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// laterRole is a machine whose process enters a tree; then something is mounted there.
func laterRole(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	inner := command("waits", dir)
	inner.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	in, err := inner.StdinPipe()
	if err != nil {
		return err
	}
	out, err := inner.StdoutPipe()
	if err != nil {
		return err
	}
	if err := inner.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "entered\n" {
		return fmt.Errorf("%q, %v", line, err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dir, "tree/at"), "tmpfs", 0, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tree/at/file"), nil, 0o600); err != nil {
		return err
	}
	if err := in.Close(); err != nil {
		return err
	}
	said, err := io.ReadAll(lines)
	if err = errors.Join(err, inner.Wait()); err != nil {
		return fmt.Errorf("%w: %s", err, said)
	}
	return nil
}

// waitsRole enters the tree, and finds at the end of its input what has been mounted.
func waitsRole(dir string) error {
	if err := slaves(); err != nil {
		return err
	}
	if err := (Root{Needed: []string{"/proc", filepath.Join(dir, "tree")}}).Enter(); err != nil {
		return err
	}
	fmt.Println("entered")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(dir, "tree/at/file"))
	return err
}

// TestMountedLater: what the machine mounts below the tree comes in.
func TestMountedLater(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "tree/at"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := command("later", dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
