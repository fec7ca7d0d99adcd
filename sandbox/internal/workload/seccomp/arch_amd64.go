package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const x32Bit = 1 << 30

// arches has the native architecture first.
var arches = []arch{
	{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, last: x32Bit - 1, calls: callsAmd64},
	{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, last: maxNr, narrow: true, calls: calls386},
	{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, first: x32Bit, last: 2*x32Bit - 1, calls: callsX32},
}
