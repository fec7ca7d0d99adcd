package workload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// The test binary plays every part itself. With modeEnv set it is init in a
// fresh set of namespaces; as /probe inside the root it is the workload.
const modeEnv = "SBX_WORKLOAD_TEST_INIT"

func init() {
	if os.Getenv(modeEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(modeEnv) != "" {
		err := testInit()
		if encErr := json.NewEncoder(os.Stderr).Encode(wire.ToError("", err)); encErr != nil {
			fmt.Fprintln(os.Stderr, encErr)
		}
		os.Exit(ExitStatus(err))
	}
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == "probe" {
		os.Exit(probe(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// setup is what a test wants of its sandbox.
type setup struct {
	Root          string
	Spec          Spec
	Single        bool  // map a single id
	FullKeys      bool  // root is a subordinate id, whose quota of keys is used up
	IgnoreSignals []int // ignored and blocked by init
	ReadOnly      bool  // root read-only
	LeakFD        bool  // keep a descriptor of the outer root open as 42
	Init          bool  // run the workload under RunInit
	InitTimeout   time.Duration
	Sysctls       map[string]string
}

// testInit is what sandbox's init does, in short.
func testInit() error {
	var s setup
	if err := json.Unmarshal([]byte(os.Getenv(modeEnv)), &s); err != nil {
		return err
	}
	if s.Root == "" { // second stage of RunInit
		return Exec(s.Spec)
	}
	sync := os.NewFile(3, "sync")
	if _, err := sync.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("wait for the id map: %w", err)
	}
	if s.LeakFD {
		fd, err := unix.Open("/", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		if err := unix.Dup2(fd, 42); err != nil {
			return err
		}
	}
	if s.FullKeys {
		if err := errors.Join(syscall.Setresgid(0, 0, 0), syscall.Setresuid(0, 0, 0), fillKeys()); err != nil {
			return err
		}
	}
	if err := testRoot(s); err != nil {
		return fmt.Errorf("build the root: %w", err)
	}
	if err := ApplySysctls(s.Sysctls); err != nil {
		return err
	}
	for _, n := range s.IgnoreSignals {
		signal.Ignore(syscall.Signal(n))
		mask := uint64(1) << (n - 1)
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_BLOCK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0); e != 0 {
			return e
		}
	}
	if s.Init {
		return testReaper(s)
	}
	return Exec(s.Spec)
}

// fillKeys makes a session keyring that has, itself included, all the keys that the user
// may have. Those of one who was the same user before go when the kernel collects them.
func fillKeys() error {
	text, err := os.ReadFile("/proc/sys/kernel/keys/maxkeys")
	if err != nil {
		return err
	}
	maxKeys, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	add := func(make func() error) error {
		for {
			if err := make(); !errors.Is(err, unix.EDQUOT) {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	}
	for n := range maxKeys {
		err := add(func() error {
			if n == 0 {
				_, _, e := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
				if e != 0 {
					return e
				}
				return nil
			}
			_, err := unix.AddKey("user", strconv.Itoa(n), []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
			return err
		})
		if err != nil {
			return fmt.Errorf("key %d: %w", n, err)
		}
	}
	return nil
}

func testRoot(s setup) error {
	steps := []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") },
		func() error { return unix.Mount(s.Root, s.Root, "", unix.MS_BIND, "") },
		func() error { return unix.Mount("/usr", s.Root+"/usr", "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Mount("/dev", s.Root+"/dev", "", unix.MS_BIND|unix.MS_REC, "") },
		func() error { return unix.Mount("proc", s.Root+"/proc", "proc", 0, "") },
		func() error {
			if !s.ReadOnly {
				return nil
			}
			return unix.Mount("", s.Root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		},
		func() error { return unix.Chdir(s.Root) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/") },
	}
	for i, f := range steps {
		if err := f(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// newRoot makes a root of the host's programs and the test binary as /probe.
func newRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	// Ids other than root's have to reach it.
	for d := root; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"usr", "proc", "dev", "etc", "tmp", "root", "home", "home/alice"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+l, filepath.Join(root, l)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root, "etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:Alice:/home/alice:/bin/sh\nfar:x:200000:200000::/:/bin/sh\n")
	write(t, root, "etc/group", 0o644, "root:x:0:root\nalice:x:1001:\nstaff:x:50:alice\nwheel:x:10:root,alice\nhuge:x:300000:root,alice\n")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "probe", 0o755, string(self))
	return root
}

func write(t *testing.T, root, name string, mode os.FileMode, text string) {
	t.Helper()
	p := filepath.Join(root, name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, mode); err != nil {
		t.Fatal(err)
	}
}

// result is what came of a run.
type result struct {
	out    string
	stderr string
	status int
	err    error // of Exec
}

// command prepares the process of init, mapping is to be done after Start.
func command(t *testing.T, s setup) (cmd *exec.Cmd, release func()) {
	t.Helper()
	js, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = []string{modeEnv + "=" + string(js)}
	cmd.ExtraFiles = []*os.File{r}
	var ambient []uintptr
	for c := range 41 {
		ambient = append(ambient, uintptr(c))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET,
		AmbientCaps: ambient,
		Pdeathsig:   syscall.SIGKILL,
	}
	return cmd, func() {
		r.Close()
		defer w.Close()
		if err := mapIDs(cmd.Process.Pid, s); err != nil {
			t.Error(err)
			return
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Error(err)
		}
	}
}

func mapIDs(pid int, s setup) error {
	proc := "/proc/" + strconv.Itoa(pid) + "/"
	if s.Single {
		return errors.Join(
			os.WriteFile(proc+"setgroups", []byte("deny"), 0),
			os.WriteFile(proc+"uid_map", fmt.Appendf(nil, "0 %d 1", os.Getuid()), 0),
			os.WriteFile(proc+"gid_map", fmt.Appendf(nil, "0 %d 1", os.Getgid()), 0))
	}
	uid, gid := os.Getuid(), os.Getgid()
	if s.FullKeys {
		uid, gid = 165535, 165535
	}
	if os.Getuid() == 0 {
		return errors.Join(
			os.WriteFile(proc+"uid_map", fmt.Appendf(nil, "0 %d 1\n1 100000 65535", uid), 0),
			os.WriteFile(proc+"gid_map", fmt.Appendf(nil, "0 %d 1\n1 100000 65535", gid), 0))
	}
	for prog, id := range map[string]int{"newuidmap": uid, "newgidmap": gid} {
		out, err := exec.Command(prog, strconv.Itoa(pid), "0", strconv.Itoa(id), "1", "1", "100000", "65535").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", prog, err, out)
		}
	}
	return nil
}

func run(t *testing.T, s setup) result {
	t.Helper()
	if s.Root == "" {
		s.Root = newRoot(t)
	}
	cmd, release := command(t, s)
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release()
	err := cmd.Wait()
	res := result{out: out.String(), stderr: errb.String(), status: cmd.ProcessState.ExitCode()}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		res.status = 128 + int(ws.Signal())
	}
	var ee *exec.ExitError
	if err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	var w wire.Error
	if dec := json.NewDecoder(strings.NewReader(res.stderr)); strings.HasPrefix(res.stderr, "{") && dec.Decode(&w) == nil {
		res.err = FromWire(&w)
	}
	return res
}

// mustRun is run for workloads that succeed.
func mustRun(t *testing.T, s setup) string {
	t.Helper()
	r := run(t, s)
	if r.status != 0 {
		t.Fatalf("status %d, error %v, stderr: %s, stdout: %s", r.status, r.err, r.stderr, r.out)
	}
	return r.out
}

// statusFields parses /proc/PID/status.
func statusFields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	return m
}

var errUsage = errors.New("probe: wrong arguments")

// probe is the workload: it makes raw system calls and prints their results.
func probe(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, errUsage)
		return 2
	}
	switch args[0] {
	case "exit":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return 2
		}
		return n
	case "pdeathsig":
		var sig int32
		if err := prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sig)), 0, 0, 0); err != nil {
			return 3
		}
		fmt.Println(sig)
		return 0
	case "keyring":
		id, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
		fmt.Println(id, err)
		return 0
	case "syscalls":
		return probeSyscalls(args[1:], os.Stdout)
	}
	fmt.Fprintln(os.Stderr, errUsage)
	return 2
}

// probeSyscalls makes each call given as nr,arg,arg... and prints its errno.
func probeSyscalls(calls []string, w io.Writer) int {
	for _, c := range calls {
		var a [7]uintptr
		for i, f := range strings.SplitN(c, ",", 7) {
			n, err := strconv.ParseUint(f, 0, 64)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 2
			}
			a[i] = uintptr(n)
		}
		_, _, e := syscall.RawSyscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
		fmt.Fprintln(w, int(e))
	}
	return 0
}
