package seccomp

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func machineOf(t testing.TB, f *Filter, err error) *bpf.VM {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(f.insns)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// TestAround: the outer filter takes nothing from the inner one, and looks at no argument
// of what that lets through.
func TestAround(t *testing.T) {
	const (
		few = `{"defaultAction":"SCMP_ACT_KILL_PROCESS","architectures":["SCMP_ARCH_X86"],"syscalls":[
			{"names":["read","bpf","socketpair","no such call"],"action":"SCMP_ACT_ALLOW"},
			{"names":["io_uring_setup","keyctl"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":7,"op":"SCMP_CMP_GE"}]},
			{"names":["reboot"],"action":"SCMP_ACT_TRACE"},
			{"names":["acct"],"action":"SCMP_ACT_TRAP"}]}`
		nothing = `{"defaultAction":"SCMP_ACT_ERRNO"}`
	)
	more := []specs.LinuxSyscall{
		{Names: []string{"mount", "clone3"}, Action: specs.ActAllow},
		{Names: []string{"keyctl"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 1, Op: specs.OpEqualTo}}},
	}
	for _, tc := range []struct {
		name, profile string
		caps          []string
		// Calls that are refused, and those that are not.
		refused, allowed []string
	}{
		{"default", "", nil, []string{"bpf", "io_uring_setup", "perf_event_open", "userfaultfd", "add_key", "open_by_handle_at", "kexec_load", "reboot", "acct"},
			[]string{"mount", "clone3", "clone", "socket", "ptrace"}},
		{"32 bit", Builtin32, nil, []string{"bpf"}, []string{"mount"}},
		{"more capabilities", "", []string{"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_NET_ADMIN"}, []string{"io_uring_setup", "kexec_file_load"}, []string{"bpf", "mount", "reboot", "perf_event_open"}},
		{"the user's", few, nil, []string{"acct", "userfaultfd"}, []string{"bpf", "io_uring_setup", "keyctl", "reboot", "openat", "mount"}},
		{"the user's, empty", nothing, nil, []string{"bpf", "keyctl"}, []string{"openat", "mount"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := Compile(tc.profile, tc.caps)
			inner := machineOf(t, f, err)
			f, err = Around(tc.profile, tc.caps, more)
			outer := machineOf(t, f, err)
			p, err := load(tc.profile, tc.caps)
			if err != nil {
				t.Fatal(err)
			}
			vals := argValues(p)
			rnd := rand.New(rand.NewPCG(1, 2))
			for _, a := range arches {
				for nr := a.first; nr < a.first+600; nr++ {
					for i := range 40 {
						var args [6]uint64
						for j := range args {
							if i > 0 {
								args[j] = vals[rnd.IntN(len(vals))]
							}
						}
						in, out := decide(t, inner, a.audit, nr, args), decide(t, outer, a.audit, nr, args)
						// The kernel compares them with their sign: to kill is the lowest.
						if int32(in&unix.SECCOMP_RET_ACTION_FULL) >= unix.SECCOMP_RET_USER_NOTIF && out != unix.SECCOMP_RET_ALLOW {
							t.Fatalf("%s: call %d with %#x has %#x inside and %#x around it", a.name, nr, args, in, out)
						}
					}
				}
			}
			a := &arches[0]
			for list, want := range map[*[]string]bool{&tc.refused: false, &tc.allowed: true} {
				for _, name := range *list {
					nr, ok := a.nr(name)
					if !ok {
						continue // another architecture's
					}
					for _, v := range []uint64{0, ^uint64(0)} {
						if got := decide(t, outer, a.audit, nr, [6]uint64{v, v, v, v, v, v}) == unix.SECCOMP_RET_ALLOW; got != want {
							t.Errorf("%s with arguments of %#x: allowed %v", name, v, got)
						}
					}
				}
			}
			keyctl, _ := a.nr("keyctl")
			if decide(t, outer, a.audit, keyctl, [6]uint64{1}) != unix.SECCOMP_RET_ALLOW {
				t.Error("keyctl(1) is refused")
			}
		})
	}
	for _, profile := range []string{Unconfined, "null", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_ERRNO"}]}`} {
		if f, err := Around(profile, nil, more); f != nil || !errors.Is(err, errOpen) {
			t.Errorf("%s: %v, %v", profile, f, err)
		}
	}
}
