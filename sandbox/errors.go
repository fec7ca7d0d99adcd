package sandbox

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// Errors of the workload's start, for errors.Is.
var (
	// ErrCommandNotFound: there is no such program in the sandbox; exit status 127.
	ErrCommandNotFound = workload.ErrNotFound
	// ErrCommandNotExecutable: it cannot be executed; exit status 126.
	ErrCommandNotExecutable = workload.ErrNotExecutable
)

// Errors of a sandbox's life, for errors.Is.
var (
	// ErrNameInUse is returned when another sandbox has the name.
	ErrNameInUse = errors.New("name in use")
	// ErrNoSandbox is returned for a name or id that no sandbox has.
	ErrNoSandbox = errors.New("no such sandbox")
	// ErrAmbiguous is returned for the beginning of several ids.
	ErrAmbiguous = errors.New("ambiguous id")
	// ErrMonitorDied is returned when the process that owns the sandbox was killed.
	// The sandbox has ended with it.
	ErrMonitorDied = errors.New("the sandbox's monitor was killed")
	// ErrNotStarted is returned for a sandbox that has not been started.
	ErrNotStarted = errors.New("the sandbox has not been started")
	// ErrStarted is returned by a second Start.
	ErrStarted = errors.New("the sandbox has been started already")
	// ErrEnded is returned by Signal when there is nobody to signal any more.
	ErrEnded = errors.New("the sandbox has ended")
	// ErrRemoved is returned by Start and Wait after Remove.
	ErrRemoved = errors.New("the sandbox has been removed")
	// ErrNotRunning is returned by what only a sandbox that runs can do.
	ErrNotRunning = errors.New("the sandbox is not running")
	// ErrRunning is returned by what only a sandbox that does not run can do.
	ErrRunning = errors.New("the sandbox is running")
	// ErrPaused is returned by what only a sandbox that is not paused can do, and
	// ErrNotPaused by Unpause for such a one.
	ErrPaused    = errors.New("the sandbox is paused")
	ErrNotPaused = errors.New("the sandbox is not paused")
	// ErrNoGroup is returned by what needs a cgroup, for a sandbox that has none.
	ErrNoGroup = errors.New("the sandbox has no cgroup")
	// ErrBusy is returned when another command works on the sandbox.
	ErrBusy = errors.New("another command works on the sandbox")
	// ErrNotAttachable is returned for a sandbox whose streams are another command's.
	ErrNotAttachable = errors.New("the sandbox cannot be attached to")
)

// StateError is one of the errors above with the sandbox that it is about, and what
// can be done.
type StateError struct {
	Kind error
	Name string
	Msg  string // more than Kind says
	Fix  string
}

func (e *StateError) Error() string {
	if e.Msg != "" && strings.Contains(e.Msg, e.Name) {
		return e.Msg
	}
	if e.Msg != "" {
		return fmt.Sprintf("%s: %s", e.Name, e.Msg)
	}
	return fmt.Sprintf("%s: %v", e.Name, e.Kind)
}

func (e *StateError) Unwrap() error { return e.Kind }

func nameInUse(name, id string) error {
	return &StateError{Kind: ErrNameInUse, Name: name, Msg: fmt.Sprintf("name in use: %q is sandbox %.12s", name, id),
		Fix: fmt.Sprintf("choose another name, or remove that one: sbx rm -f %.12s", id)}
}

// FixOf returns what the user can do about err, "" if nobody said.
func FixOf(err error) string {
	var (
		ie *image.Error
		we *wire.Error
		se *StateError
		ne *netdef.Error
		ce *CopyError
	)
	switch {
	case errors.As(err, &ie) && ie.Fix != "":
		return ie.Fix
	case errors.As(err, &se) && se.Fix != "":
		return se.Fix
	case errors.As(err, &ne) && ne.Fix != "":
		return ne.Fix
	case errors.As(err, &ce) && ce.Fix != "":
		return ce.Fix
	case errors.As(err, &we):
		return we.Fix
	}
	return ""
}
