package seccomp

import (
	"errors"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// errOpen is that of a filter around programs which are refused next to nothing.
var errOpen = errors.New("the workload's seccomp profile allows what it does not name")

// Around makes a filter for a process that starts programs with a profile and hands its
// own filter on to them. So it takes nothing from them: it allows each call that the
// profile lets through for some arguments, those of the default profile, and more. What
// it refuses the profile refuses too, with an errno of its own, as that of the newest
// filter counts.
//
// It looks at no argument of a call that the profile lets through, so that the kernel
// decides by a bitmap and the second filter costs nothing.
func Around(profile string, caps []string, more []specs.LinuxSyscall) (*Filter, error) {
	if profile == Unconfined {
		return nil, errOpen
	}
	inner, err := load(profile, caps)
	if err != nil {
		return nil, err
	}
	if inner == nil || !restrictive(inner.DefaultAction) {
		return nil, errOpen
	}
	own, err := load(Builtin, nil)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, s := range slices.Concat(inner.Syscalls, own.Syscalls) {
		if !restrictive(s.Action) {
			for _, n := range s.Names {
				names[n] = true
			}
		}
	}
	rules := slices.Clone(more)
	for n := range names {
		rules = append(rules, specs.LinuxSyscall{Names: []string{n}, Action: specs.ActAllow})
	}
	return compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: inner.Architectures, Syscalls: rules}, arches)
}

// restrictive says that a call with this action is not made.
func restrictive(a specs.LinuxSeccompAction) bool {
	switch a {
	case specs.ActErrno, specs.ActTrap, specs.ActKill, specs.ActKillThread, specs.ActKillProcess:
		return true
	}
	return false
}
