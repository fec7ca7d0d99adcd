package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maxProfile bounds the text of a profile; Docker's has 12 KiB.
	maxProfile = 1 << 20
	maxErrno   = 4095 // of the kernel
)

// Profiles that have a name.
const (
	Unconfined = "unconfined" // none
	Builtin    = "builtin"    // Docker's default one, with what limitFamilies does; "" is too
	// Builtin32 is Builtin where 32-bit programs on x86 make sockets, of every family.
	Builtin32 = "builtin-32bit"
)

// Compile makes the filter of a profile: Unconfined gives a nil filter, what has no
// name is the text of a JSON profile in Docker's format. caps is what the workload's bounding set will
// be, as CAP_NAME: profiles allow more to those who have them.
func Compile(profile string, caps []string) (*Filter, error) {
	if profile == Unconfined {
		return nil, nil
	}
	config, err := load(profile, caps)
	if err != nil {
		return nil, err
	}
	if config == nil { // an empty profile means none, as with Docker
		return nil, nil
	}
	return compile(config, arches)
}

// CompileSpec makes the filter of rules that a program has for itself. They apply to
// the native way of calling the kernel; any other is refused.
func CompileSpec(p *specs.LinuxSeccomp) (*Filter, error) { return compile(p, arches) }

// Deny makes a filter that refuses these calls with EPERM, whatever way the kernel is
// called on this machine, and nothing else.
func Deny(calls []string) (*Filter, error) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: calls, Action: specs.ActErrno}}}
	for _, a := range arches {
		p.Architectures = append(p.Architectures, a.name)
	}
	return compile(p, arches)
}

// load reads a profile and applies its conditions.
func load(profile string, caps []string) (*specs.LinuxSeccomp, error) {
	rs := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}}
	if profile == "" || profile == Builtin || profile == Builtin32 {
		p, err := seccomp.GetDefaultProfile(rs)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(caps, "CAP_NET_ADMIN") {
			limitFamilies(p)
		}
		if profile != Builtin32 && runtime.GOARCH != "386" {
			closeSocketcall(p)
		}
		return p, nil
	}
	if len(profile) > maxProfile {
		return nil, fmt.Errorf("seccomp profile: larger than %d KiB", maxProfile>>10)
	}
	// The library takes a null in the list for a rule.
	var shape struct {
		Syscalls []*struct{} `json:"syscalls"`
	}
	if err := json.Unmarshal([]byte(profile), &shape); err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", position(profile, err))
	}
	if i := slices.Index(shape.Syscalls, nil); i >= 0 {
		return nil, fmt.Errorf("seccomp profile: syscalls[%d] is null", i)
	}
	config, err := seccomp.LoadProfile(profile, rs)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	return config, nil
}

// families are what programs that do not manage networks make sockets of. The others
// are a good part of the kernel's holes of the last years, and some load a module when
// somebody asks for them.
var families = []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK, unix.AF_PACKET}

// limitFamilies leaves of the default profile's rules for sockets, which allow all
// families but two, these few.
func limitFamilies(p *specs.LinuxSeccomp) {
	names := []string{"socket", "socketpair"}
	drop(p, names...)
	for _, f := range families {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: names, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: f, Op: specs.OpEqualTo}},
		})
	}
}

// closeSocketcall refuses sockets that are made through socketcall, the older way of
// 32-bit programs on x86: the family is in memory then, where no filter sees it, so that
// every rule about families would be for nothing. With ENOSYS, so that a C library
// which knows the newer way takes that, as musl does; glibc and Go do not.
func closeSocketcall(p *specs.LinuxSeccomp) {
	drop(p, "socketcall") // its other calls are allowed with those that they are
	nosys := uint(unix.ENOSYS)
	for _, name := range []string{"socket", "socketpair"} {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &nosys,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: multiplexed[name].call, Op: specs.OpEqualTo}},
		})
	}
}

// drop takes calls out of all rules.
func drop(p *specs.LinuxSeccomp, names ...string) {
	for i := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(p.Syscalls[i].Names), func(n string) bool { return slices.Contains(names, n) })
	}
}

// position adds the line to an error in the JSON text.
func position(text string, err error) error {
	var se *json.SyntaxError
	if errors.As(err, &se) && se.Offset <= int64(len(text)) {
		return fmt.Errorf("line %d: %w", 1+strings.Count(text[:se.Offset], "\n"), err)
	}
	return err
}

// rule is one line of a profile for one call.
type rule struct {
	args   []cond
	action uint32
}

// cond compares one argument.
type cond struct {
	index uint
	op    specs.LinuxSeccompOperator
	// value is compared with the argument; for MASKED_EQ it is the mask, and
	// equal what must be left.
	value, equal uint64
	// low compares the low 32 bits only.
	low bool
}

var actions = map[specs.LinuxSeccompAction]uint32{
	specs.ActKill:        unix.SECCOMP_RET_KILL_THREAD,
	specs.ActKillThread:  unix.SECCOMP_RET_KILL_THREAD,
	specs.ActKillProcess: unix.SECCOMP_RET_KILL_PROCESS,
	specs.ActTrap:        unix.SECCOMP_RET_TRAP,
	specs.ActErrno:       unix.SECCOMP_RET_ERRNO,
	specs.ActTrace:       unix.SECCOMP_RET_TRACE,
	specs.ActAllow:       unix.SECCOMP_RET_ALLOW,
	specs.ActLog:         unix.SECCOMP_RET_LOG,
}

// action is the value a filter returns. Data is EPERM unless given, for
// actions that have any.
func action(a specs.LinuxSeccompAction, ret *uint) (uint32, error) {
	v, ok := actions[a]
	switch {
	case a == specs.ActNotify:
		return 0, fmt.Errorf("action %s needs a seccomp agent, which is not supported", a)
	case !ok:
		return 0, fmt.Errorf("unknown action %q", a)
	case a != specs.ActErrno && a != specs.ActTrace:
		return v, nil
	case ret == nil:
		return v | uint32(unix.EPERM), nil
	case *ret > maxErrno:
		return 0, fmt.Errorf("errnoRet %d is no errno", *ret)
	}
	return v | uint32(*ret), nil
}

// rules are a profile's, as they apply to one architecture.
type rules struct {
	byNr map[uint32][]rule
	// newest is the highest number the profile names.
	newest uint32
	named  bool
}

// rulesFor looks the names up.
func rulesFor(p *specs.LinuxSeccomp, a *arch) (*rules, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: defaultAction: %w", err)
	}
	rs := &rules{byNr: map[uint32][]rule{}}
	for i, call := range p.Syscalls {
		act, err := action(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("seccomp profile: rule %d (%s): %w", i, brief(call.Names), err)
		}
		for _, name := range call.Names {
			alts, err := conditions(name, call.Args, a)
			if err != nil {
				return nil, fmt.Errorf("seccomp profile: rule %d (%s): %w", i, name, err)
			}
			if nr, ok := a.nr(name); ok {
				rs.newest, rs.named = max(rs.newest, nr), true
				if act != def {
					for _, args := range alts {
						rs.byNr[nr] = append(rs.byNr[nr], rule{args, act})
					}
				}
			}
			m, ok := multiplexed[name]
			if !ok || len(call.Args) > 0 {
				continue
			}
			if nr, ok := a.nr(m.through); ok {
				rs.newest, rs.named = max(rs.newest, nr), true
				if act != def {
					rs.byNr[nr] = append(rs.byNr[nr], rule{[]cond{{index: 0, op: specs.OpEqualTo, value: m.call, low: true}}, act})
				}
			}
		}
	}
	return rs, nil
}

func brief(names []string) string {
	if len(names) > 3 {
		return strings.Join(names[:3], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}

// conditions returns the alternatives under which a rule applies, each a list
// of conditions that must all hold.
func conditions(name string, args []specs.LinuxSeccompArg, a *arch) ([][]cond, error) {
	if len(args) == 0 {
		return [][]cond{nil}, nil
	}
	var (
		conds []cond
		seen  [6]bool
		twice bool
	)
	for _, arg := range args {
		if arg.Index > 5 {
			return nil, fmt.Errorf("argument %d: a system call has arguments 0 to 5", arg.Index)
		}
		twice = twice || seen[arg.Index]
		seen[arg.Index] = true
		c := cond{index: arg.Index, op: arg.Op, value: arg.Value, low: a.narrow || narrowArgs[name]&(1<<arg.Index) != 0}
		switch arg.Op {
		case specs.OpMaskedEqual:
			c.equal = arg.ValueTwo
		case specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual:
		default:
			return nil, fmt.Errorf("argument %d: unknown operator %q", arg.Index, arg.Op)
		}
		if c.low {
			c.value, c.equal = uint64(uint32(c.value)), uint64(uint32(c.equal))
		}
		conds = append(conds, c)
	}
	if !twice {
		return [][]cond{conds}, nil
	}
	var alts [][]cond
	for _, c := range conds {
		alts = append(alts, []cond{c})
	}
	return alts, nil
}

// narrowArgs are arguments the kernel takes as 32-bit integers, as bits, for
// calls that profiles filter by argument.
var narrowArgs = map[string]uint{
	"socket":       0b111,
	"socketpair":   0b111,
	"socketcall":   0b1,
	"ipc":          0b1,
	"personality":  0b1,
	"ioctl":        0b11,
	"fcntl":        0b11,
	"fcntl64":      0b11,
	"prctl":        0b1,
	"keyctl":       0b1,
	"bpf":          0b1,
	"setns":        0b11,
	"kcmp":         0b111,
	"setsockopt":   0b111,
	"getsockopt":   0b111,
	"open":         0b10,
	"openat":       0b101,
	"futex":        0b10,
	"madvise":      0b100,
	"seccomp":      0b11,
	"arch_prctl":   0b1,
	"kill":         0b11,
	"tkill":        0b11,
	"tgkill":       0b111,
	"memfd_create": 0b10,
}

// multiplexed are calls that some architectures also, or only, have behind
// another one, with the number of the call as its first argument.
var multiplexed = map[string]struct {
	through string
	call    uint64
}{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3},
	"listen": {"socketcall", 4}, "accept": {"socketcall", 5}, "getsockname": {"socketcall", 6},
	"getpeername": {"socketcall", 7}, "socketpair": {"socketcall", 8}, "send": {"socketcall", 9},
	"recv": {"socketcall", 10}, "sendto": {"socketcall", 11}, "recvfrom": {"socketcall", 12},
	"shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14}, "getsockopt": {"socketcall", 15},
	"sendmsg": {"socketcall", 16}, "recvmsg": {"socketcall", 17}, "accept4": {"socketcall", 18},
	"recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},
	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4},
	"msgsnd": {"ipc", 11}, "msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14},
	"shmat": {"ipc", 21}, "shmdt": {"ipc", 22}, "shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}

// selectArches returns those of the machine's that the profile lists; the
// native one always counts.
func selectArches(p *specs.LinuxSeccomp, all []arch) ([]arch, error) {
	if len(all) == 0 {
		return nil, fmt.Errorf("no seccomp profile can be compiled for %s: use --security-opt seccomp=unconfined", runtime.GOARCH)
	}
	for _, name := range p.Architectures {
		if !known[name] {
			return nil, fmt.Errorf("seccomp profile: unknown architecture %q", name)
		}
	}
	out := all[:1:1]
	for _, a := range all[1:] {
		if slices.Contains(p.Architectures, a.name) {
			out = append(out, a)
		}
	}
	return out, nil
}
