package workload

import (
	"os"
	"syscall"

	units "github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/internal/wire"
)

// Spec says how the user's program is to be run. It is plain data, so that it
// can travel from the caller through the monitor to init. The zero value of
// every field is a sensible default, only Args is required.
type Spec struct {
	// Args is the command line; Args[0] is looked up in the PATH of Env,
	// inside the root, unless it contains a slash.
	Args wire.Strings `json:"args"`
	// Env is the complete environment. HOME is added from the passwd file if
	// it is missing.
	Env wire.Strings `json:"env,omitempty"`
	// Cwd is created if it is missing. Empty means "/".
	Cwd string `json:"cwd,omitempty"`

	// User is "user", "uid", "user:group" and so on, resolved against the
	// passwd and group files of the root. Empty means root.
	User string `json:"user,omitempty"`
	// ExtraGroups are supplementary groups by name or number besides those
	// the group file gives the user.
	ExtraGroups []string `json:"extraGroups,omitempty"`

	// CapAdd and CapDrop change Docker's default set; see ParseCapabilities.
	CapAdd  []string `json:"capAdd,omitempty"`
	CapDrop []string `json:"capDrop,omitempty"`
	// NoNewPrivs forbids gaining privileges by set-uid programs and file
	// capabilities. Off by default, as with Docker.
	NoNewPrivs bool `json:"noNewPrivs,omitempty"`
	// Seccomp is "" for Docker's default profile, another one's name (see package
	// seccomp), or the text of a profile in Docker's JSON format.
	Seccomp string `json:"seccomp,omitempty"`

	// Rlimits are set as given; others are inherited from the caller.
	Rlimits []units.Ulimit `json:"rlimits,omitempty"`
	// Umask is 0022 if nil.
	Umask *uint32 `json:"umask,omitempty"`
	// OOMScoreAdj is left alone if nil.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`

	// Terminal makes ConsoleFD the controlling terminal of the new session
	// and its standard input, output and error.
	Terminal bool `json:"terminal,omitempty"`
	// ConsoleFD is the descriptor of the terminal: 0 means that it is
	// standard input already, and 1 and 2 are left alone.
	ConsoleFD int `json:"consoleFD,omitempty"`

	// Rules are Landlock's, which come beside the rest; nil: none.
	Rules *os.File `json:"-"`

	// Pdeathsig is sent to the program when the thread that started init
	// ends. 0 clears what init had.
	Pdeathsig syscall.Signal `json:"pdeathsig,omitempty"`
}
