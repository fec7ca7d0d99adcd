package userns

import (
	"fmt"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent/idtools"
)

// span is a half-open interval of host ids. 64 bits, so that nothing overflows.
type span struct{ from, to uint64 }

// usable turns granted ranges into disjoint spans, in their order: within the ids
// that exist here, without the user's own id, which is mapped separately, and
// without what an earlier range has covered. It says what it left out,
// and how many ids were lost because they do not exist here.
func usable(ranges []idtools.SubIDRange, own uint32, offered []span) (out []span, absent uint64, notes []string) {
	for _, r := range ranges {
		switch {
		case r.Start < 0 || r.Length <= 0 || uint64(r.Start) >= noID:
			notes = append(notes, fmt.Sprintf("range %d:%d is not valid", r.Start, r.Length))
			continue
		case r.Start == 0 && own != 0:
			// Nobody means that: it would hand over root's own files.
			notes = append(notes, fmt.Sprintf("range %d:%d covers id 0 of the host", r.Start, r.Length))
			continue
		}
		s := span{uint64(r.Start), min(uint64(r.Start)+uint64(r.Length), noID)}
		left := subtract([]span{s}, span{uint64(own), uint64(own) + 1})
		for _, o := range out {
			left = subtract(left, o)
		}
		here := intersect(left, offered)
		if n := count(left) - count(here); n > 0 {
			absent += n
			notes = append(notes, fmt.Sprintf("%d ids of range %d:%d do not exist in this user namespace", n, r.Start, r.Length))
		}
		for _, h := range here {
			if len(out) >= maxExtents-2 { // two for the user's own id and for the extent it splits
				notes = append(notes, fmt.Sprintf("more than %d ranges", maxExtents-2))
				return out, absent, notes
			}
			out = append(out, h)
		}
	}
	return out, absent, notes
}

func subtract(l []span, cut span) (out []span) {
	for _, s := range l {
		if cut.to <= s.from || s.to <= cut.from {
			out = append(out, s)
			continue
		}
		if s.from < cut.from {
			out = append(out, span{s.from, cut.from})
		}
		if cut.to < s.to {
			out = append(out, span{cut.to, s.to})
		}
	}
	return out
}

func intersect(l, with []span) (out []span) {
	for _, s := range l {
		for _, w := range with {
			if from, to := max(s.from, w.from), min(s.to, w.to); from < to {
				out = append(out, span{from, to})
			}
		}
	}
	return out
}

func count(l []span) (n uint64) {
	for _, s := range l {
		n += s.to - s.from
	}
	return n
}

// layout gives the container the ids 0, 1, 2... from the spans in order, except
// self, which is the user's own id.
func layout(self, own uint32, spans []span) []IDMap {
	l := []IDMap{{ContainerID: self, HostID: own, Size: 1}}
	next := uint64(0)
	for _, s := range spans {
		for s.from < s.to {
			if next == uint64(self) {
				next++
			}
			n := s.to - s.from
			if next < uint64(self) {
				n = min(n, uint64(self)-next)
			}
			n = min(n, noID-next)
			if n == 0 {
				break
			}
			l = append(l, IDMap{ContainerID: uint32(next), HostID: uint32(s.from), Size: uint32(n)})
			next += n
			s.from += n
		}
	}
	sortMap(l)
	return l
}

// identity maps the ids below limit that exist here to themselves.
func identity(limit uint64, offered []span) (l []IDMap) {
	for _, s := range intersect([]span{{0, limit}}, offered) {
		if len(l) == maxExtents {
			break
		}
		l = append(l, IDMap{ContainerID: uint32(s.from), HostID: uint32(s.from), Size: uint32(s.to - s.from)})
	}
	sortMap(l)
	return l
}
