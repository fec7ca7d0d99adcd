package fsoverlay

import (
	"path"
	"slices"
	"strconv"
	"strings"
)

// Types of the mounts a user can ask for.
const (
	TypeBind   = "bind"
	TypeVolume = "volume"
	TypeTmpfs  = "tmpfs"
)

// MaxMounts is how many user mounts a sandbox may have.
const MaxMounts = 256

// Mount is one mount that the user asked for.
type Mount struct {
	Type string `json:"type"`
	// Source is the host path of a bind mount, or the name of a volume; empty for
	// an anonymous volume until Volumes.Resolve names it, and for tmpfs.
	Source string `json:"source,omitempty"`
	// Target is the absolute, clean path inside the sandbox.
	Target   string `json:"target"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	// Allow is what the workload may do beneath a bind mount or a volume; nothing means
	// what it may elsewhere. See Landlock.
	Allow Rights `json:"allow,omitempty"`
	// Attrs are further restrictions, of a tmpfs only: tmpfsAttrs, unless it has
	// options that say otherwise.
	Attrs Attr `json:"attrs,omitempty"`
	// Propagation is one of private, slave, shared or with an r in front; empty
	// means rprivate.
	Propagation string `json:"propagation,omitempty"`
	// NonRecursive leaves out what is mounted below the source.
	NonRecursive bool `json:"nonRecursive,omitempty"`
	// SubmountsWritable makes only the top mount read-only.
	SubmountsWritable bool `json:"submountsWritable,omitempty"`
	// CreateSource makes a missing source directory, as -v does.
	CreateSource bool `json:"createSource,omitempty"`

	// NoCopy leaves a new volume empty.
	NoCopy bool `json:"noCopy,omitempty"`
	// Subpath is a directory inside the volume to mount instead of all of it.
	Subpath string `json:"subpath,omitempty"`
	// Labels are given to a volume that this mount creates.
	Labels map[string]string `json:"labels,omitempty"`
	// DataDir is the volume's directory, filled in by Volumes.Resolve.
	DataDir string `json:"dataDir,omitempty"`
	// Anonymous says that the volume belongs to this sandbox alone.
	Anonymous bool `json:"anonymous,omitempty"`

	// Size of a tmpfs in bytes; 0 is the kernel's default, half of the memory.
	Size int64 `json:"size,omitempty"`
	// Mode of a tmpfs' root, with ModeSet; else that of the directory it covers,
	// or 1777 where there is none.
	Mode    uint32 `json:"mode,omitempty"`
	ModeSet bool   `json:"modeSet,omitempty"`
	// Options are further options of a tmpfs: uid=, gid=, nr_inodes=, huge=.
	Options []string `json:"options,omitempty"`
}

// tmpfsAttrs are those of --tmpfs and of type=tmpfs.
const tmpfsAttrs = NoSuid | NoDev | NoExec

// TmpfsOptions are the options of a tmpfs as --tmpfs takes them, without those that it has
// anyway.
func (m *Mount) TmpfsOptions() string {
	var list []string
	if m.ReadOnly {
		list = append(list, "ro")
	}
	for _, n := range attrNames {
		if (m.Attrs^tmpfsAttrs)&n.a == 0 {
			continue
		}
		if tmpfsAttrs&n.a != 0 {
			n.name = strings.TrimPrefix(n.name, "no")
		}
		list = append(list, n.name)
	}
	if m.Size != 0 {
		list = append(list, "size="+strconv.FormatInt(m.Size, 10))
	}
	if m.ModeSet {
		list = append(list, "mode="+strconv.FormatUint(uint64(m.Mode), 8))
	}
	return strings.Join(append(list, m.Options...), ",")
}

var propagations = []string{"private", "rprivate", "slave", "rslave", "shared", "rshared"}

// cleanTarget checks and normalises a path inside the sandbox. The empty message
// means that it is fine.
func cleanTarget(t string) (clean, msg string) {
	switch {
	case t == "":
		return "", "the path inside the sandbox is missing"
	case !strings.HasPrefix(t, "/"):
		return "", "the path inside the sandbox must be absolute: " + t
	case len(t) >= 4096:
		return "", "the path inside the sandbox is too long"
	case strings.ContainsRune(t, 0):
		return "", "the path inside the sandbox contains a NUL byte"
	}
	t = path.Clean(t)
	if t == "/" {
		return "", "the root directory cannot be mounted over"
	}
	return t, ""
}

// CheckMounts refuses two mounts on one target and more than MaxMounts.
func CheckMounts(ms []Mount) error {
	if len(ms) > MaxMounts {
		return failf(CodeTooMany, "mounts", "", "", "%d mounts, limit %d", len(ms), MaxMounts)
	}
	seen := map[string]bool{}
	for _, m := range ms {
		t, msg := cleanTarget(m.Target)
		if msg != "" {
			return failf(CodeTarget, "mount", m.Target, "", "%s", msg)
		}
		if seen[t] {
			return failf(CodeTarget, "mount", t, "leave one of them out", "duplicate mount point")
		}
		seen[t] = true
		if m.Propagation != "" && !slices.Contains(propagations, m.Propagation) {
			return failf(CodeInvalid, "mount", t, "", "unknown propagation %q", m.Propagation)
		}
		if msg := m.checkAllow(); msg != "" {
			return failf(CodeInvalid, "mount", t, "", "%s", msg)
		}
	}
	return nil
}

// byDepth orders mounts so that a parent comes before what is mounted in it,
// and otherwise as the user wrote them.
func byDepth(ms []Mount) []Mount {
	out := slices.Clone(ms)
	slices.SortStableFunc(out, func(a, b Mount) int {
		return strings.Count(path.Clean(a.Target), "/") - strings.Count(path.Clean(b.Target), "/")
	})
	return out
}
