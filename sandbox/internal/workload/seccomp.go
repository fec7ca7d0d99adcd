package workload

import (
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
)

// compileSeccomp returns nil for a workload without a filter.
func compileSeccomp(profile string, caps capSet) (*seccomp.Filter, error) {
	f, err := seccomp.Compile(profile, caps.names())
	if err != nil {
		return nil, fail(CodeSeccomp, "", "", err, "correct the profile, or use --security-opt seccomp=unconfined")
	}
	return f, nil
}

// FilterAround is one for a process that starts such programs, which allows more calls
// too: see seccomp.Around.
func (s *Spec) FilterAround(more []specs.LinuxSyscall) (*seccomp.Filter, error) {
	caps, err := capabilities(s.CapAdd, s.CapDrop)
	if err != nil {
		return nil, err
	}
	return seccomp.Around(s.Seccomp, caps.names(), more)
}
