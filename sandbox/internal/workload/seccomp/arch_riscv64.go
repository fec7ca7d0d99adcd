package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arches has the native architecture first.
var arches = []arch{
	{name: specs.ArchRISCV64, audit: unix.AUDIT_ARCH_RISCV64, last: maxNr, calls: callsRiscv64},
}
