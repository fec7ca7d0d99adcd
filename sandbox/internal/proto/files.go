package proto

import "time"

// MountRoot asks a worker to mount the root of a sandbox that does not run. The
// sandbox's lock comes with it.
type MountRoot struct {
	Start Start `json:"start"`
	// Volumes are the anonymous ones that there are, by their mount point.
	Volumes map[string]string `json:"volumes,omitempty"`
}

// Mounted says what there is now.
type Mounted struct {
	Volumes map[string]string `json:"volumes,omitempty"`
	Notes   []string          `json:"notes,omitempty"`
}

// Path names are bytes: JSON's strings are not.
type (
	// StatPath looks at a path in a sandbox, from its root.
	StatPath struct {
		Path []byte `json:"path"`
		// Follow the last name too, if it is a link. It need not lead anywhere then.
		Follow bool `json:"follow,omitempty"`
	}

	// PathStat is what is there.
	PathStat struct {
		// Path has no links in it any more, but the last name if that was not followed.
		Path   []byte    `json:"path"`
		Exists bool      `json:"exists"` // else it can be made: its directory is there
		Mode   uint32    `json:"mode,omitempty"`
		Size   int64     `json:"size,omitempty"`
		MTime  time.Time `json:"mtime,omitzero"`
		Link   []byte    `json:"link,omitempty"` // where it leads
	}

	// PackPath writes what is at a Path of a PathStat as the entry As.
	PackPath struct {
		Path []byte `json:"path"`
		As   []byte `json:"as"`
	}

	// UnpackPath unpacks into the directory Dir, of a PathStat.
	UnpackPath struct {
		Dir []byte `json:"dir"`
		// Owners are kept, else all belongs to root.
		Owners bool `json:"owners,omitempty"`
	}
)
