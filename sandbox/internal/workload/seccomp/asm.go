package seccomp

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
)

// label names an instruction by its distance from the end of the program, the
// last one being 1.
type label int

// assembler builds a program from its end to its beginning: BPF only jumps
// forward, so that every target is known when its jump is made.
type assembler struct {
	reversed []bpf.Instruction
	rets     map[uint32]label
}

// maxSkip is how far a conditional jump may reach, less the room for the two
// long jumps that branch may put in between.
const maxSkip = 255 - 2

// push adds an instruction that is followed by next.
func (a *assembler) push(i bpf.Instruction, next label) label {
	if next != label(len(a.reversed)) {
		a.jump(next)
	}
	a.reversed = append(a.reversed, i)
	return label(len(a.reversed))
}

// jump adds an unconditional jump, which reaches any distance.
func (a *assembler) jump(target label) label {
	a.reversed = append(a.reversed, bpf.Jump{Skip: uint32(len(a.reversed) - int(target))})
	return label(len(a.reversed))
}

// near returns a label in reach that leads to target.
func (a *assembler) near(target label) label {
	if len(a.reversed)-int(target) <= maxSkip {
		return target
	}
	return a.jump(target)
}

// ret returns the label of a return, a new one if the last is out of reach.
func (a *assembler) ret(value uint32) label {
	if l, ok := a.rets[value]; ok && len(a.reversed)-int(l) <= maxSkip {
		return l
	}
	if a.rets == nil {
		a.rets = map[uint32]label{}
	}
	a.reversed = append(a.reversed, bpf.RetConstant{Val: value})
	a.rets[value] = label(len(a.reversed))
	return a.rets[value]
}

// branch compares the accumulator.
func (a *assembler) branch(test bpf.JumpTest, value uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes, no = a.near(yes), a.near(no)
	n := len(a.reversed)
	a.reversed = append(a.reversed, bpf.JumpIf{Cond: test, Val: value, SkipTrue: uint8(n - int(yes)), SkipFalse: uint8(n - int(no))})
	return label(len(a.reversed))
}

// search finds the span of the number in the accumulator. The spans are
// sorted and the first one begins at the lowest number.
func (a *assembler) search(s []span) label {
	if len(s) == 1 {
		return a.outcome(s[0])
	}
	mid := len(s) / 2
	high := a.search(s[mid:])
	low := a.search(s[:mid])
	return a.branch(bpf.JumpGreaterOrEqual, s[mid].start, high, low)
}

func (a *assembler) outcome(s span) label {
	next := a.ret(s.ret)
	for _, r := range slices.Backward(s.rules) {
		no := next
		yes := a.ret(r.action)
		for _, c := range slices.Backward(r.args) {
			yes = a.compare(c, yes, no)
		}
		next = yes
	}
	return next
}

// compare tests one argument.
func (a *assembler) compare(c cond, yes, no label) label {
	switch c.op {
	case specs.OpEqualTo:
		return a.equal(c, ^uint64(0), c.value, yes, no)
	case specs.OpNotEqual:
		return a.equal(c, ^uint64(0), c.value, no, yes)
	case specs.OpMaskedEqual:
		return a.equal(c, c.value, c.equal, yes, no)
	case specs.OpGreaterThan:
		return a.order(c, bpf.JumpGreaterThan, yes, no)
	case specs.OpGreaterEqual:
		return a.order(c, bpf.JumpGreaterOrEqual, yes, no)
	case specs.OpLessThan:
		return a.order(c, bpf.JumpGreaterOrEqual, no, yes)
	default: // OpLessEqual; conditions has checked it
		return a.order(c, bpf.JumpGreaterThan, no, yes)
	}
}

func (a *assembler) equal(c cond, mask, value uint64, yes, no label) label {
	l := a.equalHalf(offLow(c.index), uint32(mask), uint32(value), yes, no)
	if c.low {
		return l
	}
	return a.equalHalf(offHigh(c.index), uint32(mask>>32), uint32(value>>32), l, no)
}

func (a *assembler) equalHalf(off, mask, value uint32, yes, no label) label {
	switch {
	case mask == 0 && value == 0:
		return yes
	case value&^mask != 0:
		return no
	}
	l := a.branch(bpf.JumpEqual, value, yes, no)
	if mask != ^uint32(0) {
		l = a.push(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask}, l)
	}
	return a.push(bpf.LoadAbsolute{Off: off, Size: 4}, l)
}

// order tests the low half if the high ones are equal.
func (a *assembler) order(c cond, test bpf.JumpTest, yes, no label) label {
	l := a.branch(test, uint32(c.value), yes, no)
	l = a.push(bpf.LoadAbsolute{Off: offLow(c.index), Size: 4}, l)
	if c.low {
		return l
	}
	high := uint32(c.value >> 32)
	l = a.branch(bpf.JumpEqual, high, l, no)
	l = a.branch(bpf.JumpGreaterThan, high, yes, l)
	return a.push(bpf.LoadAbsolute{Off: offHigh(c.index), Size: 4}, l)
}

func (a *assembler) finish(flags uint) (*Filter, error) {
	if len(a.reversed) > maxInsns {
		return nil, fmt.Errorf("seccomp profile: it needs %d instructions, the kernel allows %d", len(a.reversed), maxInsns)
	}
	insns := slices.Clone(a.reversed)
	slices.Reverse(insns)
	raw, err := bpf.Assemble(insns)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: assemble: %w", err)
	}
	return &Filter{insns: insns, raw: raw, flags: flags}, nil
}
