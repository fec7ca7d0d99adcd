package fsoverlay

import (
	"fmt"
	"strings"
)

// Kind is what an operation does.
type Kind string

const (
	// KindSlave stops the propagation of the whole tree to the host.
	KindSlave Kind = "slave"
	// KindRoot takes Source as the root: everything after it resolves Target there.
	KindRoot Kind = "root"
	// KindMount makes a new file system of Type with Options on Target.
	KindMount Kind = "mount"
	// KindBind mounts the host's Source on Target.
	KindBind Kind = "bind"
	// KindDevice binds the host's device Source, of number Device, on Target.
	KindDevice Kind = "device"
	// KindSymlink makes a link at Target that says Source.
	KindSymlink Kind = "symlink"
	// KindFile makes an empty file at Target.
	KindFile Kind = "file"
	// KindCopyUp fills the volume Source, if it is empty, from Target.
	KindCopyUp Kind = "copy-up"
	// KindReadonly makes Target, with everything below it, read-only.
	KindReadonly Kind = "read-only"
	// KindMask hides the contents of Target.
	KindMask Kind = "mask"
	// KindPivot makes the root "/" and lets the host's tree go.
	KindPivot Kind = "pivot"
)

// Op is one operation of a plan.
type Op struct {
	Kind   Kind   `json:"op"`
	Source string `json:"source,omitempty"`
	// Subpath, of a bind, is resolved inside Source.
	Subpath string   `json:"subpath,omitempty"`
	Target  string   `json:"target,omitempty"`
	Type    string   `json:"type,omitempty"`
	Options []string `json:"options,omitempty"`
	Attrs   Attr     `json:"attrs,omitempty"`
	// Device is major:minor.
	Device string `json:"device,omitempty"`
	// Propagation of the new mount; empty means private.
	Propagation string `json:"propagation,omitempty"`
	// TopOnly leaves the mounts below the source out (bind) or alone (read-only).
	TopOnly bool `json:"topOnly,omitempty"`
	// AttrsTopOnly applies Attrs to the top mount of a recursive bind only.
	AttrsTopOnly bool `json:"attrsTopOnly,omitempty"`
	// NoLinks refuses a target that is reached through a link.
	NoLinks bool `json:"noLinks,omitempty"`
	// User marks a target that the user chose: it may not lie on procfs or sysfs.
	User bool `json:"user,omitempty"`
	// KeepMode gives a tmpfs the mode of the directory it covers.
	KeepMode bool `json:"keepMode,omitempty"`
	// Outer marks a bind of the /proc or /sys of a surrounding container, of which
	// what is not the sandbox's gets covered.
	Outer bool `json:"outer,omitempty"`
	// IfExists skips the operation where Target does not exist.
	IfExists bool `json:"ifExists,omitempty"`
	// Optional turns a failure into a note that starts with this text.
	Optional string `json:"optional,omitempty"`
	// Else is tried where the operation fails, with Optional as the note.
	Else *Op `json:"else,omitempty"`
}

// Plan is the whole mount set-up of a sandbox, in order.
type Plan []Op

// String prints the plan, one operation a line.
func (p Plan) String() string {
	var b strings.Builder
	for _, op := range p {
		b.WriteString(op.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// String prints the operation as one line.
func (op Op) String() string {
	s := fmt.Sprintf("%-9s", op.Kind)
	if op.Type != "" {
		s += " " + op.Type
	}
	if op.Source != "" {
		s += " " + op.Source
		if op.Subpath != "" {
			s += " (" + op.Subpath + ")"
		}
	}
	if op.Target != "" {
		if op.Source != "" || op.Type != "" {
			s += " on"
		}
		s += " " + op.Target
	}
	var o []string
	if op.Attrs != 0 {
		o = append(o, op.Attrs.String())
	}
	o = append(o, op.Options...)
	if op.Propagation != "" {
		o = append(o, op.Propagation)
	}
	if op.TopOnly {
		o = append(o, "top only")
	}
	if op.Outer {
		o = append(o, "hide the outer container's")
	}
	if len(o) > 0 {
		s += " [" + strings.Join(o, ",") + "]"
	}
	if op.Else != nil {
		s += ", else " + strings.Join(strings.Fields(op.Else.String()), " ")
	}
	return s
}
