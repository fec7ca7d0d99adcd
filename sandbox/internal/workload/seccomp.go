package workload

import (
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
