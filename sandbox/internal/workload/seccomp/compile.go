package seccomp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// maxInsns is the kernel's BPF_MAXINSNS.
const maxInsns = 4096

const (
	retBadArch = uint32(unix.SECCOMP_RET_KILL_PROCESS)
	retNoSys   = uint32(unix.SECCOMP_RET_ERRNO) | uint32(unix.ENOSYS)
)

// span is a range of call numbers, up to the next span's start, with one
// outcome.
type span struct {
	start uint32
	rules []rule // first match wins
	ret   uint32 // if none matches
}

// same compares what the spans do.
func (s span) same(o span) bool {
	return s.ret == o.ret && slices.EqualFunc(s.rules, o.rules, func(a, b rule) bool {
		return a.action == b.action && slices.Equal(a.args, b.args)
	})
}

func compile(p *specs.LinuxSeccomp, machine []arch) (*Filter, error) {
	flags, err := filterFlags(p)
	if err != nil {
		return nil, err
	}
	selected, err := selectArches(p, machine)
	if err != nil {
		return nil, err
	}
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: defaultAction: %w", err)
	}

	var order []uint32
	spans := map[uint32][]span{} // by audit value
	for i := range selected {
		a := &selected[i]
		s, err := spansOf(p, a, def)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(order, a.audit) {
			order = append(order, a.audit)
		}
		spans[a.audit] = append(spans[a.audit], s...)
	}
	for audit, s := range spans {
		spans[audit] = complete(s, tail(p, def), selected, machine, audit)
	}

	var a assembler
	next := a.ret(retBadArch)
	for _, audit := range slices.Backward(order) {
		body := a.search(spans[audit])
		body = a.push(bpf.LoadAbsolute{Off: offNr, Size: 4}, body)
		next = a.branch(bpf.JumpEqual, audit, body, next)
	}
	a.push(bpf.LoadAbsolute{Off: offArch, Size: 4}, next)
	return a.finish(flags)
}

// tail is the outcome of numbers beyond those the profile knows.
func tail(p *specs.LinuxSeccomp, def uint32) uint32 {
	switch p.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
		return def
	}
	return retNoSys
}

// spansOf lists the ranges of one architecture in order.
func spansOf(p *specs.LinuxSeccomp, a *arch, def uint32) ([]span, error) {
	rs, err := rulesFor(p, a)
	if err != nil {
		return nil, err
	}
	var out []span
	add := func(s span) {
		if n := len(out); n > 0 && out[n-1].same(s) {
			return
		}
		out = append(out, s)
	}
	nrs := make([]uint32, 0, len(rs.byNr))
	for nr := range rs.byNr {
		nrs = append(nrs, nr)
	}
	slices.Sort(nrs)
	free := uint64(a.first) // the first number not yet covered
	for _, nr := range nrs {
		if uint64(nr) > free {
			add(span{start: uint32(free), ret: def})
		}
		s := span{start: nr, ret: def, rules: rs.byNr[nr]}
		// A rule without arguments is the whole answer.
		if i := slices.IndexFunc(s.rules, func(r rule) bool { return len(r.args) == 0 }); i >= 0 {
			s.ret, s.rules = s.rules[i].action, nil
		}
		add(s)
		free = uint64(nr) + 1
	}
	if rs.named && free <= uint64(rs.newest) {
		add(span{start: uint32(free), ret: def})
		free = uint64(rs.newest) + 1
	}
	if free <= uint64(a.last) {
		add(span{start: uint32(free), ret: tail(p, def)})
	}
	return out, nil
}

// complete makes the spans of an audit value cover all numbers: those of x32
// when the profile does not list it, and those no architecture has.
func complete(s []span, ret uint32, selected, machine []arch, audit uint32) []span {
	last := uint32(0)
	for _, a := range machine {
		if a.audit != audit {
			continue
		}
		last = max(last, a.last)
		if !slices.ContainsFunc(selected, func(b arch) bool { return b.name == a.name }) {
			s = append(s, span{start: a.first, ret: retBadArch})
		}
	}
	if last != maxNr {
		s = append(s, span{start: last + 1, ret: ret})
	}
	slices.SortStableFunc(s, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	return s
}

func filterFlags(p *specs.LinuxSeccomp) (uint, error) {
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return 0, fmt.Errorf("seccomp profile: listenerPath needs a seccomp agent, which is not supported")
	}
	if p.Flags == nil {
		// runc's default: filters would otherwise turn off speculation on
		// kernels before 5.16, at a great cost.
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// Means nothing here: execve leaves a single thread.
		default:
			return 0, fmt.Errorf("seccomp profile: flag %q is not supported", f)
		}
	}
	return flags, nil
}
