package userns

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
)

// Mode is a way to map ids.
type Mode string

const (
	// ModeAuto maps container 0 to the user and the rest to subordinate ids, or
	// falls back to ModeSingle where that is impossible.
	ModeAuto Mode = "auto"
	// ModeSingle maps container 0 to the user and nothing else.
	ModeSingle Mode = "single"
	// ModeKeepID maps the user's own ids to themselves and the rest to
	// subordinate ids.
	ModeKeepID Mode = "keep-id"
)

// maxExtents is UID_GID_MAP_MAX_EXTENTS of the kernel.
const maxExtents = 340

// noID is (uid_t)-1, which is never an id.
const noID = 1<<32 - 1

// IDMap is one extent of a map: Size ids from ContainerID on are the ids from
// HostID on. "Host" is the user namespace of the process that resolved it.
type IDMap struct {
	ContainerID uint32 `json:"container_id"`
	HostID      uint32 `json:"host_id"`
	Size        uint32 `json:"size"`
}

// Mapping is a resolved pair of maps.
type Mapping struct {
	// Mode is what was chosen: ModeAuto, ModeSingle or ModeKeepID.
	Mode Mode    `json:"mode"`
	UIDs []IDMap `json:"uids"`
	GIDs []IDMap `json:"gids"`
	// Helper says that newuidmap and newgidmap write the maps; their paths follow.
	Helper    bool   `json:"helper,omitempty"`
	NewUIDMap string `json:"newuidmap,omitempty"`
	NewGIDMap string `json:"newgidmap,omitempty"`
	// Reason says why this is less than was wished for; Fix how to change that.
	Reason string `json:"reason,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

// Key is a short name, equal for equal maps: files unpacked under one map can be
// used under every other map with the same key.
func (m *Mapping) Key() string {
	h := sha256.New()
	for _, l := range [][]IDMap{m.UIDs, m.GIDs} {
		for _, e := range coalesce(l) {
			fmt.Fprintf(h, "%d %d %d\n", e.ContainerID, e.HostID, e.Size)
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// Fits says that files unpacked under m look the same in a user namespace with the ids
// of have: it maps all that m does, or all that images use (0 to 65534), and in the
// same way.
func (m *Mapping) Fits(have *Mapping) bool {
	return m.Key() == have.Key() || within(have.UIDs, m.UIDs) && within(have.GIDs, m.GIDs)
}

func within(l, whole []IDMap) bool {
	next := uint32(0)
	for _, e := range coalesce(l) {
		for _, id := range []uint32{e.ContainerID, e.ContainerID + e.Size - 1} {
			if host, ok := toHost(whole, id); !ok || host != e.HostID+(id-e.ContainerID) {
				return false
			}
		}
		if e.ContainerID == next {
			next += e.Size
		}
	}
	return next >= fullRange-1
}

// HostUID returns the host's uid for a uid of the container, and whether it is mapped.
func (m *Mapping) HostUID(container uint32) (uint32, bool) { return toHost(m.UIDs, container) }

// HostGID returns the host's gid for a gid of the container, and whether it is mapped.
func (m *Mapping) HostGID(container uint32) (uint32, bool) { return toHost(m.GIDs, container) }

// ContainerUID returns the container's uid for a uid of the host, and whether it is mapped.
func (m *Mapping) ContainerUID(host uint32) (uint32, bool) { return fromHost(m.UIDs, host) }

// ContainerGID returns the container's gid for a gid of the host, and whether it is mapped.
func (m *Mapping) ContainerGID(host uint32) (uint32, bool) { return fromHost(m.GIDs, host) }

func fromHost(l []IDMap, id uint32) (uint32, bool) {
	for _, e := range l {
		if id >= e.HostID && id-e.HostID < e.Size {
			return e.ContainerID + (id - e.HostID), true
		}
	}
	return 0, false
}

func toHost(l []IDMap, id uint32) (uint32, bool) {
	for _, e := range l {
		if id >= e.ContainerID && id-e.ContainerID < e.Size {
			return e.HostID + (id - e.ContainerID), true
		}
	}
	return 0, false
}

// Validate checks what the kernel would refuse with a bare EINVAL.
func (m *Mapping) Validate() error {
	for _, l := range []struct {
		name string
		m    []IDMap
	}{{"uid", m.UIDs}, {"gid", m.GIDs}} {
		if err := validate(l.m); err != nil {
			return &Error{Kind: ErrMap, Step: "check the " + l.name + " map", Msg: err.Error()}
		}
	}
	return nil
}

func validate(l []IDMap) error {
	if len(l) == 0 {
		return fmt.Errorf("it is empty")
	}
	if len(l) > maxExtents {
		return fmt.Errorf("%d extents, the kernel's limit is %d", len(l), maxExtents)
	}
	for i, e := range l {
		if e.Size == 0 || uint64(e.ContainerID)+uint64(e.Size) > noID || uint64(e.HostID)+uint64(e.Size) > noID {
			return fmt.Errorf("extent %s is out of range", e)
		}
		for _, o := range l[:i] {
			if overlap(e.ContainerID, e.Size, o.ContainerID, o.Size) || overlap(e.HostID, e.Size, o.HostID, o.Size) {
				return fmt.Errorf("extents %s and %s overlap", o, e)
			}
		}
	}
	return nil
}

func overlap(a, an, b, bn uint32) bool {
	return uint64(a) < uint64(b)+uint64(bn) && uint64(b) < uint64(a)+uint64(an)
}

// String is the line that the kernel reads.
func (e IDMap) String() string { return fmt.Sprintf("%d %d %d", e.ContainerID, e.HostID, e.Size) }

func mapText(l []IDMap) string {
	var b strings.Builder
	for _, e := range l {
		b.WriteString(e.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// total is the number of ids in a map.
func total(l []IDMap) (n uint64) {
	for _, e := range l {
		n += uint64(e.Size)
	}
	return n
}

// coalesce sorts by container id and joins extents that continue each other.
func coalesce(l []IDMap) []IDMap {
	l = slices.Clone(l)
	sortMap(l)
	var out []IDMap
	for _, e := range l {
		if n := len(out); n > 0 {
			p := &out[n-1]
			if p.ContainerID+p.Size == e.ContainerID && p.HostID+p.Size == e.HostID {
				p.Size += e.Size
				continue
			}
		}
		out = append(out, e)
	}
	return out
}

func sortMap(l []IDMap) {
	slices.SortFunc(l, func(a, b IDMap) int {
		if a.ContainerID < b.ContainerID {
			return -1
		}
		return 1
	})
}
