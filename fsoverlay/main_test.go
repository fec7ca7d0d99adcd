package fsoverlay

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"golang.org/x/sys/unix"
)

// Tests that need a user namespace run themselves again in one: inUserns returns
// true in the child. Other roles of the test binary (pid 1 of a sandbox) are
// chosen by the same variable.
const (
	envRole = "SBX_FSOVERLAY_TEST"
	envDir  = "SBX_FSOVERLAY_DIR"

	roleRange  = "range"  // 65,536 ids by newuidmap
	roleSingle = "single" // one id
	roleInit   = "init"   // pid 1 that applies a plan, see plan_test.go
)

func TestMain(m *testing.M) {
	switch os.Getenv(envRole) {
	case roleRange, roleSingle:
		waitMapped()
	case roleInit:
		initMain()
	}
	os.Exit(m.Run())
}

// waitMapped blocks until the parent has written the id maps.
func waitMapped() {
	f := os.NewFile(3, "mapped")
	var b [1]byte
	if n, err := f.Read(b[:]); n != 1 {
		fmt.Fprintln(os.Stderr, "wait for the id maps:", err)
		os.Exit(1)
	}
	f.Close()
	unix.Umask(0o022)
}

// inUserns runs the calling test in a user and mount namespace. In the parent it
// returns false when that is done.
func inUserns(t *testing.T, mode string) bool {
	t.Helper()
	if os.Getenv(envRole) == mode {
		return true
	}
	if os.Getenv(envRole) != "" {
		return false // in the other kind of child
	}
	if mode == roleRange && !haveSubIDs() {
		t.Skip("no subordinate ids for this user, or no newuidmap")
	}
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // other ids must get in
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), envRole+"="+mode, envDir+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, c)
	}
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	cmd.ExtraFiles = []*os.File{r}
	err = cmd.Start()
	r.Close()
	if err != nil {
		t.Fatalf("start in a user namespace: %v", err)
	}
	if err := writeMaps(cmd.Process.Pid, mode); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatal(err)
	}
	w.Write([]byte{1})
	err = cmd.Wait()
	t.Logf("in %s user namespace:\n%s", mode, indent(out.String()))
	if err != nil {
		t.Fatalf("in %s user namespace: %v", mode, err)
	}
	if !strings.Contains(out.String(), "--- PASS: "+t.Name()) && !strings.Contains(out.String(), "--- SKIP: "+t.Name()) {
		t.Fatal("the child did not run the test")
	}
	// What the child made belongs to ids that only such a child can remove; it
	// cleans up itself, and t.TempDir fails the test if something is left.
	return false
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

// scratch is a directory for a test in the child, emptied at its end.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(os.Getenv(envDir), "t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rmtree.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func haveSubIDs() bool {
	if os.Geteuid() == 0 {
		return true
	}
	_, _, err := subIDs()
	return err == nil
}

func subIDs() (start, n int, err error) {
	u, err := user.Current()
	if err != nil {
		return 0, 0, err
	}
	if _, err := exec.LookPath("newuidmap"); err != nil {
		return 0, 0, err
	}
	b, err := os.ReadFile("/etc/subuid")
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && f[0] == u.Username {
			start, err1 := strconv.Atoi(f[1])
			n, err2 := strconv.Atoi(f[2])
			return start, n, errors.Join(err1, err2)
		}
	}
	return 0, 0, errors.New("no subordinate ids")
}

func writeMaps(pid int, mode string) error {
	proc := "/proc/" + strconv.Itoa(pid)
	write := func(name, text string) error { return os.WriteFile(proc+"/"+name, []byte(text), 0) }
	if mode == roleSingle {
		return errors.Join(write("setgroups", "deny"), write("uid_map", fmt.Sprintf("0 %d 1", os.Geteuid())),
			write("gid_map", fmt.Sprintf("0 %d 1", os.Getegid())))
	}
	if os.Geteuid() == 0 {
		return errors.Join(write("uid_map", "0 0 1\n1 100000 65535"), write("gid_map", "0 0 1\n1 100000 65535"))
	}
	start, n, err := subIDs()
	if err != nil {
		return err
	}
	for _, m := range []struct {
		tool string
		id   int
	}{{"newuidmap", os.Getuid()}, {"newgidmap", os.Getgid()}} {
		out, err := exec.Command(m.tool, strconv.Itoa(pid), "0", strconv.Itoa(m.id), "1", "1", strconv.Itoa(start),
			strconv.Itoa(min(n, 65535))).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", m.tool, err, out)
		}
	}
	return nil
}

func openFDs(t testing.TB) int {
	t.Helper()
	// The runtime's poller keeps two descriptors from its first use on.
	if r, w, err := os.Pipe(); err == nil {
		r.Close()
		w.Close()
	}
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
