package workload

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	errnoOK    = 0
	errnoPerm  = int(unix.EPERM)
	errnoNoSys = int(unix.ENOSYS)
)

type seccompCase struct {
	name string
	call string // number and arguments
	want int
}

func checkCalls(t *testing.T, s setup, cases []seccompCase) {
	t.Helper()
	s.Spec.Args = []string{"/probe", "syscalls"}
	for _, c := range cases {
		s.Spec.Args = append(s.Spec.Args, c.call)
	}
	got := strings.Fields(mustRun(t, s))
	if len(got) != len(cases) {
		t.Fatalf("%d results for %d calls", len(got), len(cases))
	}
	for i, c := range cases {
		if got[i] != fmt.Sprint(c.want) {
			t.Errorf("%s (%s): errno %s, want %d", c.name, c.call, got[i], c.want)
		}
	}
}

func nr(n uint64, args ...uint64) string {
	s := fmt.Sprint(n)
	for _, a := range args {
		s += fmt.Sprintf(",%#x", a)
	}
	return s
}

// The decisions of the kernel itself, for calls of a real workload.
func TestSeccompForReal(t *testing.T) {
	root := newRoot(t)
	efault, einval, ebadf := int(unix.EFAULT), int(unix.EINVAL), int(unix.EBADF)
	plain := []seccompCase{
		{"getpid", nr(unix.SYS_GETPID), errnoOK},
		{"unshare user", nr(unix.SYS_UNSHARE, unix.CLONE_NEWUSER), errnoPerm},
		// With the flags' check passed, the kernel would refuse the pair.
		{"clone user", nr(unix.SYS_CLONE, unix.CLONE_NEWUSER|unix.CLONE_FS), errnoPerm},
		{"clone bad flags", nr(unix.SYS_CLONE, unix.CLONE_THREAD), einval},
		{"clone3", nr(unix.SYS_CLONE3, 0, 0), errnoNoSys},
		{"personality", nr(unix.SYS_PERSONALITY, 0xffffffff), errnoOK},
		{"personality no randomize", nr(unix.SYS_PERSONALITY, 0x40000), errnoPerm},
		{"AF_INET", nr(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM), errnoOK},
		{"AF_UNIX, dirty high half", nr(unix.SYS_SOCKET, unix.AF_UNIX|7<<32, unix.SOCK_STREAM), errnoOK},
		{"AF_VSOCK", nr(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM), errnoPerm},
		{"AF_VSOCK, dirty high half", nr(unix.SYS_SOCKET, unix.AF_VSOCK|1<<32, unix.SOCK_STREAM), errnoPerm},
		{"AF_ALG", nr(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET), errnoPerm},
		{"mount", nr(unix.SYS_MOUNT), errnoPerm},
		{"keyctl", nr(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID), errnoPerm},
		{"bpf", nr(unix.SYS_BPF), errnoPerm},
		{"io_uring", nr(unix.SYS_IO_URING_SETUP, 1), errnoPerm},
		{"of the future", nr(1000), errnoNoSys},
		{"no such call", nr(0xffffffff), errnoNoSys},
		{"open_by_handle_at", nr(unix.SYS_OPEN_BY_HANDLE_AT), errnoPerm},
		{"chroot", nr(unix.SYS_CHROOT, 0), efault},
	}
	for _, user := range []string{"", "alice"} {
		for _, nnp := range []bool{false, true} {
			t.Run(fmt.Sprintf("user=%s,nnp=%v", user, nnp), func(t *testing.T) {
				checkCalls(t, setup{Root: root, Spec: Spec{User: user, NoNewPrivs: nnp}}, plain)
			})
		}
	}
	t.Run("dropped", func(t *testing.T) {
		checkCalls(t, setup{Root: root, Spec: Spec{CapDrop: []string{"SYS_CHROOT"}}}, []seccompCase{{"chroot", nr(unix.SYS_CHROOT, 0), errnoPerm}})
	})
	t.Run("admin", func(t *testing.T) {
		checkCalls(t, setup{Root: root, Spec: Spec{CapAdd: []string{"SYS_ADMIN", "DAC_READ_SEARCH"}}}, []seccompCase{
			{"clone3", nr(unix.SYS_CLONE3, 0, 0), einval},
			{"unshare", nr(unix.SYS_UNSHARE, unix.CLONE_NEWUTS), errnoOK},
			{"mount", nr(unix.SYS_MOUNT, 1, 1), efault},
			{"open_by_handle_at", nr(unix.SYS_OPEN_BY_HANDLE_AT, 0xffff), efault},
			{"AF_VSOCK", nr(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM), errnoPerm},
		})
	})
	t.Run("unconfined", func(t *testing.T) {
		checkCalls(t, setup{Root: root, Spec: Spec{Seccomp: "unconfined"}}, []seccompCase{
			{"clone3", nr(unix.SYS_CLONE3, 0, 0), einval},
			{"personality", nr(unix.SYS_PERSONALITY, 0x40000), errnoOK},
		})
	})
	t.Run("own profile", func(t *testing.T) {
		// It forbids what Exec itself uses before.
		profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
			{"names":["getcwd","capset","setuid","setresuid","prctl","close_range","faccessat2","chdir"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
			{"names":["dup"],"action":"SCMP_ACT_ERRNO","errnoRet":9,"args":[{"index":0,"value":4294967300,"op":"SCMP_CMP_GE"}]}]}`
		checkCalls(t, setup{Root: root, Spec: Spec{Seccomp: profile, User: "alice"}}, []seccompCase{
			{"getcwd", nr(unix.SYS_GETCWD), int(unix.EIO)},
			{"chdir", nr(unix.SYS_CHDIR), int(unix.EIO)},
			{"dup", nr(unix.SYS_DUP, 0), errnoOK},
			{"dup high", nr(unix.SYS_DUP, 1<<32+4), ebadf},
		})
	})
}

// A set-uid program still works for an ordinary user, unless forbidden.
func TestNoNewPrivs(t *testing.T) {
	root := newRoot(t)
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, "suid", 0o755|os.ModeSetuid, string(cat))
	for nnp, uid := range map[bool]string{false: "1000 0 0 0", true: "1000 1000 1000 1000"} {
		out := mustRun(t, setup{Root: root, Spec: Spec{Args: []string{"/suid", "/proc/self/status"}, User: "alice", NoNewPrivs: nnp}})
		if got := statusFields(out)["Uid"]; got != uid {
			t.Errorf("no_new_privs %v: uid %s, want %s", nnp, got, uid)
		}
	}
}
