package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arches has the native architecture first.
var arches = []arch{
	{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, last: maxNr, calls: callsArm64},
	{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, last: maxNr, narrow: true, calls: callsArm},
}
