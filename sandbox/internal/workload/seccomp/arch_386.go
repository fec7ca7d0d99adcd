package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arches has the native architecture first.
var arches = []arch{
	{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, last: maxNr, narrow: true, calls: calls386},
}
