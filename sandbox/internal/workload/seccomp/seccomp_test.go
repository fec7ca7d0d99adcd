package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// reference decides calls by reading the profile, one rule after the other, and
// shares nothing with the compiler but the tables of names.
type reference struct {
	p       *specs.LinuxSeccomp
	machine []arch
	byArch  map[specs.Arch]*refArch
}

type refArch struct {
	newest int64
	rules  map[uint32][]refRule
}

type refRule struct {
	name string
	via  *uint64 // the first argument that means name, for multiplexed calls
	*specs.LinuxSyscall
}

func newReference(p *specs.LinuxSeccomp, machine []arch) *reference {
	r := &reference{p, machine, map[specs.Arch]*refArch{}}
	for _, a := range machine {
		ra := &refArch{-1, map[uint32][]refRule{}}
		r.byArch[a.name] = ra
		nrs := map[string]uint32{}
		for _, c := range a.calls {
			nrs[c.name] = c.nr
		}
		for i := range p.Syscalls {
			s := &p.Syscalls[i]
			for _, name := range s.Names {
				if nr, ok := nrs[name]; ok {
					ra.newest = max(ra.newest, int64(nr))
					ra.rules[nr] = append(ra.rules[nr], refRule{name, nil, s})
				}
				if m, ok := multiplexed[name]; ok && len(s.Args) == 0 {
					if nr, ok := nrs[m.through]; ok {
						ra.newest = max(ra.newest, int64(nr))
						ra.rules[nr] = append(ra.rules[nr], refRule{name, &m.call, s})
					}
				}
			}
		}
	}
	return r
}

func refReturn(a specs.LinuxSeccompAction, data *uint) uint32 {
	d := uint32(1)
	if data != nil {
		d = uint32(*data)
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | d
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | d
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS
	}
	return unix.SECCOMP_RET_KILL_THREAD
}

func (r *reference) decide(audit, nr uint32, args [6]uint64) uint32 {
	p := r.p
	def := refReturn(p.DefaultAction, p.DefaultErrnoRet)
	beyond := uint32(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
	if p.DefaultAction == specs.ActAllow || p.DefaultAction == specs.ActLog || p.DefaultAction == specs.ActTrace {
		beyond = def
	}
	var a *arch
	known := false
	for i := range r.machine {
		m := &r.machine[i]
		listed := i == 0 || slices.Contains(p.Architectures, m.name)
		if m.audit != audit {
			continue
		}
		if nr >= m.first && nr <= m.last {
			a = m
			if !listed {
				return unix.SECCOMP_RET_KILL_PROCESS
			}
		}
		known = known || listed
	}
	switch {
	case !known:
		return unix.SECCOMP_RET_KILL_PROCESS
	case a == nil:
		return beyond
	}
	ra := r.byArch[a.name]
	conditional := int64(-1)
	for _, s := range ra.rules[nr] {
		act := refReturn(s.Action, s.ErrnoRet)
		switch {
		case act == def:
		case s.via == nil && len(s.Args) == 0:
			return act
		case conditional >= 0:
		case s.via != nil && uint32(args[0]) == uint32(*s.via), s.via == nil && matches(s.name, a, s.Args, args):
			conditional = int64(act)
		}
	}
	switch {
	case conditional >= 0:
		return uint32(conditional)
	case int64(nr) > ra.newest:
		return beyond
	}
	return def
}

func matches(name string, a *arch, rules []specs.LinuxSeccompArg, args [6]uint64) bool {
	count := map[uint]int{}
	hits := 0
	for _, r := range rules {
		count[r.Index]++
		v, one, two := args[r.Index], r.Value, r.ValueTwo
		if a.narrow || narrowArgs[name]>>r.Index&1 == 1 {
			v, one, two = v&0xffffffff, one&0xffffffff, two&0xffffffff
		}
		if r.Op == specs.OpEqualTo && v == one || r.Op == specs.OpNotEqual && v != one ||
			r.Op == specs.OpGreaterThan && v > one || r.Op == specs.OpGreaterEqual && v >= one ||
			r.Op == specs.OpLessThan && v < one || r.Op == specs.OpLessEqual && v <= one ||
			r.Op == specs.OpMaskedEqual && v&one == two {
			hits++
		}
	}
	for _, n := range count {
		if n > 1 {
			return hits > 0
		}
	}
	return hits == len(rules)
}

// decide runs the compiled program. The VM reads big-endian words, the kernel
// native ones, so that the words are laid out each in big-endian.
func decide(t testing.TB, vm *bpf.VM, audit, nr uint32, args [6]uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[offNr:], nr)
	binary.BigEndian.PutUint32(data[offArch:], audit)
	for i, v := range args {
		binary.BigEndian.PutUint32(data[offLow(uint(i)):], uint32(v))
		binary.BigEndian.PutUint32(data[offHigh(uint(i)):], uint32(v>>32))
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// argValues are the values that may make a difference: those of the profile,
// their neighbours, and the same with something in the high half.
func argValues(p *specs.LinuxSeccomp) []uint64 {
	vals := []uint64{0, 1, 40, 1 << 31, 1 << 32, ^uint64(0)}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				vals = append(vals, v, v-1, v+1, v|1<<32, v&0xffffffff, ^v)
			}
		}
	}
	slices.Sort(vals)
	return slices.Compact(vals)
}

// compare checks the program against the reference for every number.
func compareAll(t testing.TB, p *specs.LinuxSeccomp, machine []arch, f *Filter, highest uint32) {
	t.Helper()
	vm, err := bpf.NewVM(f.insns)
	if err != nil {
		t.Fatal(err)
	}
	vals := argValues(p)
	withArgs := map[string]bool{"socketcall": true, "ipc": true}
	for _, s := range p.Syscalls {
		if len(s.Args) > 0 {
			for _, n := range s.Names {
				withArgs[n] = true
			}
		}
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	ref := newReference(p, machine)
	check := func(audit, nr uint32, args [6]uint64) {
		if got, want := decide(t, vm, audit, nr, args), ref.decide(audit, nr, args); got != want {
			t.Fatalf("arch %#x nr %#x args %#x: program says %#x, profile %#x", audit, nr, args, got, want)
		}
	}
	for _, a := range machine {
		named := map[uint32]bool{}
		for _, c := range a.calls {
			named[c.nr] = named[c.nr] || withArgs[c.name]
		}
		var nrs []uint32
		for nr := a.first; nr < a.first+highest; nr++ {
			nrs = append(nrs, nr)
		}
		for nr := range named { // e.g. ARM's private ones
			nrs = append(nrs, nr, nr+1)
		}
		nrs = append(nrs, a.last, 1<<30-1, 1<<30, 1<<31-1, 1<<31, maxNr)
		for _, nr := range nrs {
			check(a.audit, nr, [6]uint64{})
			if !named[nr] {
				continue
			}
			for _, v := range vals {
				for i := range 6 {
					var args [6]uint64
					args[i] = v
					check(a.audit, nr, args)
				}
			}
			for range 50 {
				var args [6]uint64
				for i := range args {
					args[i] = vals[rnd.IntN(len(vals))]
				}
				check(a.audit, nr, args)
			}
		}
	}
	check(0xdeadbeef, 0, [6]uint64{})
}

func TestDefaultProfileAgainstReference(t *testing.T) {
	all := []string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_CHROOT", "CAP_SYS_TIME"}
	for _, caps := range [][]string{nil, {"CAP_SYS_CHROOT"}, all} {
		p, err := load("", caps)
		if err != nil {
			t.Fatal(err)
		}
		f, err := compile(p, arches)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d capabilities: %d instructions", len(caps), f.Len())
		if f.Len() > 1000 {
			t.Errorf("%d instructions are too many", f.Len())
		}
		compareAll(t, p, arches, f, 600)
	}
}

// The words of the profile's tests are the kernel's; here are a few decisions
// that must hold whatever the profile and the reference think.
func TestDefaultProfileDecisions(t *testing.T) {
	filter := func(caps ...string) *bpf.VM {
		f, err := Compile("", caps)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := bpf.NewVM(f.insns)
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	const (
		allow = unix.SECCOMP_RET_ALLOW
		eperm = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
		nosys = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	)
	plain, admin := filter(), filter("CAP_SYS_ADMIN")
	a := &arches[0]
	nr := func(name string) uint32 {
		n, ok := a.nr(name)
		if !ok {
			t.Fatalf("no number for %s", name)
		}
		return n
	}
	for _, tt := range []struct {
		call         string
		args         [6]uint64
		plain, admin uint32
	}{
		{"read", [6]uint64{}, allow, allow},
		{"execve", [6]uint64{}, allow, allow},
		{"mount", [6]uint64{}, eperm, allow},
		{"kexec_load", [6]uint64{}, eperm, eperm},
		{"io_uring_setup", [6]uint64{}, eperm, eperm},
		{"clone", [6]uint64{uint64(unix.SIGCHLD)}, allow, allow},
		{"clone", [6]uint64{unix.CLONE_NEWUSER | 17}, eperm, allow},
		{"clone", [6]uint64{unix.CLONE_NEWNET | 17}, eperm, allow},
		{"clone3", [6]uint64{}, nosys, allow},
		{"socket", [6]uint64{unix.AF_INET, 1}, allow, allow},
		{"socket", [6]uint64{unix.AF_VSOCK, 1}, eperm, eperm},
		{"socket", [6]uint64{unix.AF_VSOCK | 1<<32, 1}, eperm, eperm},
		{"socket", [6]uint64{unix.AF_ALG, 5}, eperm, eperm},
		{"socket", [6]uint64{unix.AF_UNIX, 1}, allow, allow},
		{"socket", [6]uint64{unix.AF_INET6, 2}, allow, allow},
		{"socket", [6]uint64{unix.AF_NETLINK, 3}, allow, allow},
		{"socket", [6]uint64{unix.AF_PACKET, 3}, allow, allow},
		{"socket", [6]uint64{unix.AF_TIPC, 1}, eperm, eperm},
		{"socket", [6]uint64{unix.AF_XDP, 3}, eperm, eperm},
		{"socket", [6]uint64{1000, 3}, eperm, eperm},
		{"socketpair", [6]uint64{unix.AF_UNIX, 1}, allow, allow},
		{"socketpair", [6]uint64{unix.AF_TIPC, 1}, eperm, eperm},
		{"personality", [6]uint64{0}, allow, allow},
		{"personality", [6]uint64{0xffffffff}, allow, allow},
		{"personality", [6]uint64{0x40000}, eperm, eperm},
	} {
		if got := decide(t, plain, a.audit, nr(tt.call), tt.args); got != tt.plain {
			t.Errorf("%s%v: %#x, want %#x", tt.call, tt.args, got, tt.plain)
		}
		if got := decide(t, admin, a.audit, nr(tt.call), tt.args); got != tt.admin {
			t.Errorf("%s%v with CAP_SYS_ADMIN: %#x, want %#x", tt.call, tt.args, got, tt.admin)
		}
	}
	if got := decide(t, filter("CAP_NET_ADMIN"), a.audit, nr("socket"), [6]uint64{unix.AF_CAN, 3}); got != allow {
		t.Errorf("a manager of networks: %#x", got)
	}
	for _, n := range []uint32{600, 5000, maxNr} {
		if got := decide(t, plain, a.audit, n, [6]uint64{}); got != nosys {
			t.Errorf("call %d of the future: %#x", n, got)
		}
	}
	if got := decide(t, plain, 0x12345678, 0, [6]uint64{}); got != unix.SECCOMP_RET_KILL_PROCESS {
		t.Errorf("unknown architecture: %#x", got)
	}
}

// Every name of the default profile is a call of some architecture we know, or
// of one we do not support.
func TestDefaultProfileNames(t *testing.T) {
	foreign := []string{"s390_", "swapcontext", "riscv_", "arm_", "sync_file_range2", "breakpoint", "cacheflush", "set_tls", "send", "recv"}
	for _, s := range profiles.DefaultProfile().Syscalls {
		for _, n := range s.Names {
			if slices.ContainsFunc(arches, func(a arch) bool { _, ok := a.nr(n); return ok }) ||
				slices.ContainsFunc(foreign, func(p string) bool { return strings.HasPrefix(n, p) }) {
				continue
			}
			t.Errorf("no architecture has %s", n)
		}
	}
}

func TestTablesAreSorted(t *testing.T) {
	for _, a := range arches {
		if !slices.IsSortedFunc(a.calls, func(x, y call) int { return strings.Compare(x.name, y.name) }) {
			t.Errorf("%s is not sorted", a.name)
		}
		for _, c := range a.calls {
			if c.nr < a.first || c.nr > a.last {
				t.Errorf("%s: %s is %d", a.name, c.name, c.nr)
			}
		}
	}
}

func TestUserProfiles(t *testing.T) {
	const denyList = `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
		{"name":"mkdir","action":"SCMP_ACT_ERRNO","errnoRet":2},
		{"names":["kill","nosuchcall"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
		{"names":["lseek"],"action":"SCMP_ACT_TRAP","args":[{"index":1,"value":5000000000,"op":"SCMP_CMP_GE"},{"index":2,"value":0,"op":"SCMP_CMP_NE"}]},
		{"names":["lseek"],"action":"SCMP_ACT_LOG","args":[{"index":1,"value":3,"op":"SCMP_CMP_LE"},{"index":1,"value":5000000005,"op":"SCMP_CMP_GT"}]},
		{"names":["write"],"action":"SCMP_ACT_TRACE","errnoRet":77,"args":[{"index":2,"value":1099511627776,"valueTwo":1099511627776,"op":"SCMP_CMP_MASKED_EQ"}]},
		{"names":["listen"],"action":"SCMP_ACT_KILL"},
		{"names":["listen"],"action":"SCMP_ACT_ERRNO"},
		{"names":["bind"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_NET_BIND_SERVICE"]}}]}`
	const allowList = `{"defaultAction":"SCMP_ACT_KILL_PROCESS","defaultErrnoRet":1,"syscalls":[{"names":["read","write","socketpair"],"action":"SCMP_ACT_ALLOW"}]}`
	for _, text := range []string{denyList, allowList, `{"defaultAction":"SCMP_ACT_ERRNO"}`} {
		p, err := load(text, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := compile(p, arches)
		if err != nil {
			t.Fatal(err)
		}
		compareAll(t, p, arches, f, 500)
	}
	if f, err := Compile(Unconfined, nil); f != nil || err != nil {
		t.Errorf("unconfined: %v, %v", f, err)
	}
}

func TestProfileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"{\n\n\"a\":]":                        "line 3",
		`[]`:                                  "cannot unmarshal",
		`{"syscalls":[null]}`:                 "syscalls[0] is null",
		`{"defaultAction":"ALLOW"}`:           `unknown action "ALLOW"`,
		`{"defaultAction":"SCMP_ACT_NOTIFY"}`: "agent",
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":99999}`:                                                                           "no errno",
		`{"defaultAction":"SCMP_ACT_ALLOW","flags":["X"]}`:                                                                                     `"X"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`:                                                                               "listenerPath",
		`{"defaultAction":"SCMP_ACT_ALLOW","architectures":["VAX"]}`:                                                                           `"VAX"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"NO"}]}`:                                                     "rule 0 (read)",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`: "argument 6",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"op":"EQ"}]}]}`:          `operator "EQ"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"]}]}`:                                                           "both",
	} {
		if _, err := Compile(text, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	// Too many conditions for one program.
	p := specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for i := range 2000 {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: uint64(i), Op: specs.OpEqualTo}}})
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Compile(string(text), nil); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("large profile: %v", err)
	}
	// Long, but it fits: jumps over more than 255 instructions.
	p.Syscalls = p.Syscalls[:700]
	f, err := compile(&p, arches[:1])
	if err != nil {
		t.Fatal(err)
	}
	compareAll(t, &p, arches[:1], f, 20)
}

// randomProfile makes rules over few calls, so that they meet.
func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	acts := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual}
	vals := []uint64{0, 1, 2, 40, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 5 << 40, ^uint64(0)}
	names := []string{"read", "write", "close", "stat", "ioctl", "socket", "socketcall", "ipc", "semop", "bind", "listen", "clone", "seccomp", "statx", "clone3"}
	p := &specs.LinuxSeccomp{DefaultAction: acts[r.IntN(len(acts))]}
	if r.IntN(2) == 0 {
		p.Architectures = []specs.Arch{specs.ArchX86}
	}
	if r.IntN(2) == 0 {
		p.Architectures = append(p.Architectures, specs.ArchX32)
	}
	for range r.IntN(30) {
		s := specs.LinuxSyscall{Action: acts[r.IntN(len(acts))]}
		for range 1 + r.IntN(3) {
			s.Names = append(s.Names, names[r.IntN(len(names))])
		}
		if r.IntN(2) == 0 {
			e := uint(r.IntN(100))
			s.ErrnoRet = &e
		}
		if r.IntN(3) > 0 {
			for range 1 + r.IntN(3) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Op: ops[r.IntN(len(ops))],
					Value: vals[r.IntN(len(vals))], ValueTwo: vals[r.IntN(len(vals))]})
			}
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func TestRandomProfilesAgainstReference(t *testing.T) {
	n := 60
	if testing.Short() {
		n = 10
	}
	for seed := range n {
		p := randomProfile(rand.New(rand.NewPCG(uint64(seed), 7)))
		f, err := compile(p, arches)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) { compareAll(t, p, arches, f, 60) })
	}
}

func FuzzProfile(f *testing.F) {
	f.Add(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":7,"op":"SCMP_CMP_GT"}]}]}`, uint32(0), uint64(3), uint64(8))
	f.Add(`{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X32"]}],"syscalls":[null,{"name":"socket","includes":{"minKernel":"4.8"}}]}`, uint32(1<<30), uint64(1), uint64(1<<32))
	f.Fuzz(func(t *testing.T, text string, nr uint32, a, b uint64) {
		p, err := load(text, []string{"CAP_CHOWN"})
		if err != nil || p == nil {
			return
		}
		filter, err := compile(p, arches)
		if err != nil {
			return
		}
		vm, err := bpf.NewVM(filter.insns)
		if err != nil {
			t.Fatal(err)
		}
		ref := newReference(p, arches)
		for _, m := range arches {
			args := [6]uint64{a, b, a, b, b, a}
			if got, want := decide(t, vm, m.audit, nr, args), ref.decide(m.audit, nr, args); got != want {
				t.Fatalf("arch %s nr %d: program %#x, profile %#x", m.name, nr, got, want)
			}
		}
	})
}
