package seccomp

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run mksyscalls.go

// arch is one way of numbering system calls.
type arch struct {
	name  specs.Arch
	audit uint32 // seccomp_data.arch
	// first and last bound the numbers: x32 shares its audit value with
	// x86_64 and has the numbers from 1<<30 on.
	first, last uint32
	// narrow says that registers have 32 bits; x32 has wide ones.
	narrow bool
	calls  []call // by name
}

type call struct {
	name string
	nr   uint32
}

func (a *arch) nr(name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(a.calls, name, func(c call, name string) int { return strings.Compare(c.name, name) })
	if !ok {
		return 0, false
	}
	return a.calls[i].nr, true
}

const maxNr = 1<<32 - 1

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// offLow and offHigh find the halves of an argument, which is in the machine's
// byte order.
func offLow(arg uint) uint32  { return offArgs + 8*uint32(arg) + 4 - highAt }
func offHigh(arg uint) uint32 { return offArgs + 8*uint32(arg) + highAt }

// highAt is where the high half begins: 4 on little-endian machines, else 0.
var highAt = 4 * uint32(binary.NativeEndian.Uint16([]byte{1, 0})&1)

// known are the names a profile may list; those this machine does not run
// have no effect.
var known = map[specs.Arch]bool{
	specs.ArchX86: true, specs.ArchX86_64: true, specs.ArchX32: true,
	specs.ArchARM: true, specs.ArchAARCH64: true,
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true,
	specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true,
	specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchPPC64LE: true,
	specs.ArchS390: true, specs.ArchS390X: true,
	specs.ArchPARISC: true, specs.ArchPARISC64: true, specs.ArchRISCV64: true,
	specs.ArchLOONGARCH64: true, specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
	"SCMP_ARCH_NATIVE": true,
}
