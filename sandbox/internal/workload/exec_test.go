package workload

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	units "github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

var testEnv = []string{"PATH=/usr/bin:/bin:/", "A=1"}

const defaultMask = "00000000a80425fb" // the set `docker run` shows in CapBnd

func TestExecStatus(t *testing.T) {
	const zero = "0000000000000000"
	tests := []struct {
		name string
		spec Spec
		want map[string]string
	}{
		{"root", Spec{}, map[string]string{
			"CapInh": zero, "CapPrm": defaultMask, "CapEff": defaultMask, "CapBnd": defaultMask, "CapAmb": zero,
			"NoNewPrivs": "0", "Seccomp": "2", "Seccomp_filters": "1", "Uid": "0 0 0 0", "Gid": "0 0 0 0", "Groups": "0 10",
			"SigIgn": zero, "SigBlk": zero, "Umask": "0022",
		}},
		{"user by name", Spec{User: "alice"}, map[string]string{
			"CapInh": zero, "CapPrm": zero, "CapEff": zero, "CapBnd": defaultMask, "CapAmb": zero,
			"NoNewPrivs": "0", "Seccomp": "2", "Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "10 50 1001",
		}},
		{"user without no_new_privs or seccomp", Spec{User: "1000", Seccomp: "unconfined"}, map[string]string{
			"CapPrm": zero, "CapEff": zero, "CapBnd": defaultMask, "Seccomp": "0", "NoNewPrivs": "0",
		}},
		{"numbers", Spec{User: "4:5", ExtraGroups: []string{"staff", "77"}}, map[string]string{
			"Uid": "4 4 4 4", "Gid": "5 5 5 5", "Groups": "5 50 77",
		}},
		{"user and group", Spec{User: "alice:staff", NoNewPrivs: true}, map[string]string{
			"Uid": "1000 1000 1000 1000", "Gid": "50 50 50 50", "Groups": "50", "NoNewPrivs": "1", "Seccomp": "2", "CapPrm": zero,
		}},
		{"drop all", Spec{CapDrop: []string{"all"}}, map[string]string{
			"CapPrm": zero, "CapEff": zero, "CapBnd": zero, "Seccomp": "2",
		}},
		{"drop all, add two", Spec{CapDrop: []string{"ALL"}, CapAdd: []string{"net_admin", "CAP_CHOWN"}, NoNewPrivs: true}, map[string]string{
			"CapPrm": "0000000000001001", "CapEff": "0000000000001001", "CapBnd": "0000000000001001", "CapInh": zero,
		}},
		{"add all", Spec{CapAdd: []string{"ALL"}, CapDrop: []string{"chown"}}, map[string]string{
			"CapPrm": "000001fffffffffe", "CapBnd": "000001fffffffffe",
		}},
		{"umask", Spec{Umask: new(uint32)}, map[string]string{"Umask": "0000"}},
	}
	root := newRoot(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.Args, tt.spec.Env = []string{"cat", "/proc/self/status"}, testEnv
			got := statusFields(mustRun(t, setup{Root: root, Spec: tt.spec, IgnoreSignals: []int{1, 10, 13, 36}}))
			for k, v := range tt.want {
				if got[k] != v {
					t.Errorf("%s = %q, want %q", k, got[k], v)
				}
			}
		})
	}
}

func TestExecSurroundings(t *testing.T) {
	root := newRoot(t)
	adj := 500
	script := `echo "$HOME|$(pwd)|$(ulimit -Sn)|$(ulimit -Hn)|$(ulimit -c)|$(cat /proc/self/oom_score_adj)|$$|$(cut -d' ' -f6 /proc/$$/stat)"; ls /proc/$$/fd`
	out := mustRun(t, setup{Root: root, LeakFD: true, Spec: Spec{
		Args: []string{"sh", "-c", script}, Env: testEnv, User: "alice", Cwd: "/work/deep",
		Rlimits:     []units.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}, {Name: "core", Soft: 0, Hard: 0}},
		OOMScoreAdj: &adj,
	}})
	// Descriptors: only the standard streams (stdin is /dev/null).
	if want := "/home/alice|/work/deep|100|200|0|500|1|1\n0\n1\n2\n"; out != want {
		t.Errorf("got\n%swant\n%s", out, want)
	}
	// Given HOME wins, limits not named are inherited as they were.
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &lim); err != nil {
		t.Fatal(err)
	}
	out = mustRun(t, setup{Root: root, Spec: Spec{Args: []string{"/bin/sh", "-c", "echo $HOME $(ulimit -p)"}, Env: append(testEnv, "HOME=/x")}})
	if want := "/x " + limitString(lim.Cur) + "\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	// No passwd file at all.
	if err := os.Remove(root + "/etc/passwd"); err != nil {
		t.Fatal(err)
	}
	out = mustRun(t, setup{Root: root, Spec: Spec{Args: []string{"sh", "-c", "echo $HOME $(id -u)"}, Env: testEnv, User: "12"}})
	if out != "/ 12\n" {
		t.Errorf("without passwd: %q", out)
	}
}

// A user can open its standard streams again if they are pipes; files of the
// caller keep owner and mode.
func TestExecStdio(t *testing.T) {
	root := newRoot(t)
	spec := Spec{Args: []string{"sh", "-c", "echo out >/dev/stdout; echo err >/proc/self/fd/2"}, Env: testEnv, User: "alice"}
	if r := run(t, setup{Root: root, Spec: spec}); r.out != "out\n" || r.stderr != "err\n" {
		t.Errorf("pipes: %q, %q", r.out, r.stderr)
	}

	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	before, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	spec.Args = []string{"/bin/echo", "out"}
	cmd, release := command(t, setup{Root: root, Spec: spec})
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	after, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if after.Size() != 4 || after.Mode() != before.Mode() || after.Sys().(*syscall.Stat_t).Uid != before.Sys().(*syscall.Stat_t).Uid {
		t.Errorf("file: %v, was %v", after, before)
	}
}

func TestExecPdeathsig(t *testing.T) {
	root := newRoot(t)
	for sig, want := range map[syscall.Signal]string{0: "0\n", unix.SIGKILL: "9\n"} {
		for _, user := range []string{"", "alice"} {
			out := mustRun(t, setup{Root: root, Spec: Spec{Args: []string{"/probe", "pdeathsig"}, User: user, Pdeathsig: sig}})
			if out != want {
				t.Errorf("user %q, signal %d: got %q", user, sig, out)
			}
		}
	}
}

func TestExecKeyring(t *testing.T) {
	outer, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	out := mustRun(t, setup{Spec: Spec{Args: []string{"/probe", "keyring"}, Seccomp: "unconfined"}})
	if err == nil && out == fmt.Sprintln(outer, nil) {
		t.Errorf("the workload has the caller's session keyring: %s", out)
	}
	if !strings.HasSuffix(out, "<nil>\n") {
		t.Errorf("no session keyring: %s", out)
	}
	// With no room for one the caller's stays, so only where the filter lets nobody read it.
	for profile, fails := range map[string]bool{"": false, "builtin-32bit": false, "unconfined": true, `{"defaultAction":"SCMP_ACT_ALLOW"}`: true} {
		r := run(t, setup{FullKeys: true, Spec: Spec{Args: []string{"/probe", "exit", "7"}, Seccomp: profile}})
		if fails != errors.Is(r.err, unix.EDQUOT) || !fails && r.status != 7 {
			t.Errorf("profile %q, no quota: status %d, %v", profile, r.status, r.err)
		}
	}
}

func TestExecErrors(t *testing.T) {
	root := newRoot(t)
	write(t, root, "noexec", 0o644, "#!/bin/sh\n")
	write(t, root, "empty", 0o755, "")
	write(t, root, "text", 0o755, "echo hello\n")
	write(t, root, "nointerp", 0o755, "#!/opt/ruby -w\n")
	write(t, root, "dos", 0o755, "#!/bin/sh\r\necho\r\n")
	write(t, root, "private", 0o700, "#!/bin/sh\n")
	arm := make([]byte, 64)
	copy(arm, "\x7fELF\x02\x01\x01")
	arm[16], arm[18], arm[20], arm[52], arm[54] = 2, 0xb7, 1, 64, 56
	write(t, root, "arm", 0o755, string(arm))
	musl, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "musl", 0o755, strings.Replace(string(musl), "/lib64/ld-linux", "/lib64/ld-xxxxx", 1))

	tests := []struct {
		name   string
		s      setup
		status int
		is     error
		text   []string
	}{
		{"not in PATH", setup{Spec: Spec{Args: []string{"foo"}}}, 127, ErrNotFound, []string{`exec: "foo": executable file not found in $PATH`}},
		{"no such file", setup{Spec: Spec{Args: []string{"/foo/bar"}}}, 127, ErrNotFound, []string{`exec: "/foo/bar": stat /foo/bar: no such file or directory`}},
		{"empty name", setup{Spec: Spec{Args: []string{""}}}, 127, ErrNotFound, []string{`exec: ""`}},
		{"no command", setup{}, 125, nil, []string{"no command specified"}},
		{"directory", setup{Spec: Spec{Args: []string{"/etc"}}}, 126, ErrNotExecutable, []string{"is a directory"}},
		{"no x bit", setup{Spec: Spec{Args: []string{"/noexec"}}}, 126, ErrNotExecutable, []string{`exec: "/noexec": permission denied`}},
		{"no x bit in PATH", setup{Spec: Spec{Args: []string{"noexec"}}}, 126, ErrNotExecutable, []string{"permission denied"}},
		{"not for this user", setup{Spec: Spec{Args: []string{"/private"}, User: "alice"}}, 126, ErrNotExecutable, []string{"permission denied"}},
		{"empty file", setup{Spec: Spec{Args: []string{"/empty"}}}, 126, ErrNotExecutable, []string{"exec format error", "is empty"}},
		{"no shebang", setup{Spec: Spec{Args: []string{"/text"}}}, 126, ErrNotExecutable, []string{"exec format error", "#!/bin/sh"}},
		{"no interpreter", setup{Spec: Spec{Args: []string{"/nointerp"}}}, 127, ErrNotFound, []string{`"/opt/ruby"`, "#! line"}},
		{"dos line ends", setup{Spec: Spec{Args: []string{"/dos"}}}, 127, ErrNotFound, []string{"dos2unix"}},
		{"other machine", setup{Spec: Spec{Args: []string{"/arm"}}}, 126, ErrNotExecutable, []string{"exec format error", "AARCH64", "--platform"}},
		{"no loader", setup{Spec: Spec{Args: []string{"/musl"}}}, 127, ErrNotFound, []string{"/lib64/ld-xxxxx", "loader"}},
		{"NUL", setup{Spec: Spec{Args: []string{"/bin/true", "a\x00b"}}}, 126, ErrNotExecutable, []string{"NUL"}},
		{"unknown user", setup{Spec: Spec{Args: []string{"true"}, User: "bob"}}, 125, nil, []string{"unable to find user bob: no matching entries in passwd file"}},
		{"unknown group", setup{Spec: Spec{Args: []string{"true"}, User: "0:bobs"}}, 125, nil, []string{"unable to find group bobs"}},
		{"unknown extra group", setup{Spec: Spec{Args: []string{"true"}, ExtraGroups: []string{"bobs"}}}, 125, nil, []string{"bobs"}},
		{"unmapped user", setup{Spec: Spec{Args: []string{"true"}, User: "far"}}, 125, nil, []string{`user "far" is id 200000`, "not mapped", "0, 1-65535"}},
		{"unmapped group", setup{Spec: Spec{Args: []string{"true"}, ExtraGroups: []string{"huge"}}}, 125, nil, []string{`group "huge" is id 300000`}},
		{"single id", setup{Single: true, Spec: Spec{Args: []string{"true"}, User: "alice"}}, 125, nil, []string{`user "alice" is id 1000`, "single id", "newuidmap"}},
		{"unknown capability", setup{Spec: Spec{Args: []string{"true"}, CapAdd: []string{"FLY"}}}, 125, nil, []string{`unknown capability "FLY"`, "NET_ADMIN"}},
		{"relative cwd", setup{Spec: Spec{Args: []string{"true"}, Cwd: "a"}}, 125, nil, []string{"not absolute"}},
		{"cwd is a file", setup{Spec: Spec{Args: []string{"true"}, Cwd: "/etc/passwd"}}, 125, nil, []string{"/etc/passwd", "not a directory"}},
		{"cwd on a read-only root", setup{ReadOnly: true, Spec: Spec{Args: []string{"true"}, Cwd: "/new"}}, 125, nil, []string{"/new", "read-only"}},
		{"cwd outside", setup{LeakFD: true, Spec: Spec{Args: []string{"true"}, Cwd: "/proc/self/fd/42"}}, 125, nil, []string{"outside"}},
		{"hard limit", setup{Spec: Spec{Args: []string{"true"}, Rlimits: []units.Ulimit{{Name: "nofile", Soft: 1 << 30, Hard: 1 << 30}}}}, 125, nil, []string{"nofile=", "operation not permitted", "ask for at most"}},
		{"bad profile", setup{Spec: Spec{Args: []string{"true"}, Seccomp: "{"}}, 125, nil, []string{"seccomp profile"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.s.Root = root
			tt.s.Spec.Env = testEnv
			r := run(t, tt.s)
			if r.status != tt.status || r.err == nil {
				t.Fatalf("status %d, error %v, want %d; stderr %s", r.status, r.err, tt.status, r.stderr)
			}
			if tt.is != nil && !errors.Is(r.err, tt.is) {
				t.Errorf("%v is not %v", r.err, tt.is)
			}
			for _, s := range tt.text {
				if text := explain(r.err); !strings.Contains(text, s) {
					t.Errorf("%s: no %q", text, s)
				}
			}
		})
	}
}

// explain is the error with its remedy, as the user sees both.
func explain(err error) string {
	var w *wire.Error
	if errors.As(err, &w) {
		return w.Error() + " (" + w.Fix + ")"
	}
	return err.Error()
}

func TestExecSingleID(t *testing.T) {
	root := newRoot(t)
	for _, user := range []string{"", "root", "0:0"} {
		out := mustRun(t, setup{Root: root, Single: true, Spec: Spec{Args: []string{"cat", "/proc/self/status"}, Env: testEnv, User: user}})
		if f := statusFields(out); f["Uid"] != "0 0 0 0" || f["CapEff"] != defaultMask || f["Seccomp"] != "2" {
			t.Errorf("user %q: %s", user, out)
		}
	}
}

func TestReadUserFile(t *testing.T) {
	fifo := t.TempDir() + "/passwd"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readUserFile(fifo); err == nil {
		t.Error("a FIFO was read")
	}
	if _, err := readUserFile("/dev/zero"); err == nil {
		t.Error("a device was read")
	}
	if b, err := readUserFile("/nonexistent"); b != nil || err != nil {
		t.Errorf("missing file: %q, %v", b, err)
	}
}
