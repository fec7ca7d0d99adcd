package userns

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// The kinds of failure, for errors.Is.
var (
	// ErrForbidden: the system does not allow this user new user namespaces, or
	// takes away what they are good for.
	ErrForbidden = errors.New("user namespaces are not allowed")
	// ErrNoSubIDs: the user has no usable subordinate ids.
	ErrNoSubIDs = errors.New("no subordinate ids")
	// ErrNoHelper: newuidmap or newgidmap is missing or cannot work.
	ErrNoHelper = errors.New("newuidmap and newgidmap are not usable")
	// ErrMap: the id maps could not be written.
	ErrMap = errors.New("ids cannot be mapped")
	// ErrMode: no such Mode.
	ErrMode = errors.New("unknown user namespace mode")
	// ErrNetNS: the network namespace cannot be found or entered.
	ErrNetNS = errors.New("no such network namespace")
	// ErrNotChild: Join was called in a process that Start did not start.
	ErrNotChild = errors.New("not started by sbx")
)

var codes = map[error]string{
	ErrForbidden: "userns-forbidden",
	ErrNoSubIDs:  "no-subids",
	ErrNoHelper:  "no-newuidmap",
	ErrMap:       "map-failed",
	ErrMode:      "bad-mode",
	ErrNetNS:     "netns",
	ErrNotChild:  "not-child",
}

// Error is a failure of this package that a user can do something about.
type Error struct {
	// Kind is one of the Err variables, or nil.
	Kind error
	// Step is what was being done, Path the file or sysctl concerned.
	Step, Path string
	Errno      syscall.Errno
	// Msg says why, Fix what to do.
	Msg, Fix string
}

func (e *Error) Error() string { return e.wire().Error() }

// Unwrap gives errors.Is the kind and the errno.
func (e *Error) Unwrap() []error {
	var l []error
	if e.Kind != nil {
		l = append(l, e.Kind)
	}
	if e.Errno != 0 {
		l = append(l, e.Errno)
	}
	return l
}

// As turns the error into one that crosses processes with its fix (wire.ToError).
func (e *Error) As(target any) bool {
	if t, ok := target.(**wire.Error); ok {
		*t = e.wire()
		return true
	}
	return false
}

func (e *Error) wire() *wire.Error {
	w := &wire.Error{Code: codes[e.Kind], Step: e.Step, Path: e.Path, Errno: e.Errno, Msg: e.Msg, Fix: e.Fix}
	if w.Msg == "" && e.Kind != nil {
		w.Msg = e.Kind.Error()
	}
	return w
}

// ExitError is the end of a child that reported nothing.
type ExitError struct {
	Name   string
	PID    int
	Status syscall.WaitStatus
}

func (e *ExitError) Error() string {
	switch {
	case e.Status.Signaled():
		return fmt.Sprintf("%s (pid %d) was killed by signal %d (%s)", e.Name, e.PID, int(e.Status.Signal()), e.Status.Signal())
	default:
		return fmt.Sprintf("%s (pid %d) ended with status %d and without a message", e.Name, e.PID, e.Status.ExitStatus())
	}
}

// fromWire gives an error of a child back its kind.
func fromWire(w *wire.Error) error {
	for kind, code := range codes {
		if w.Code == code {
			return &Error{Kind: kind, Step: w.Step, Path: w.Path, Errno: w.Errno, Msg: w.Msg, Fix: w.Fix}
		}
	}
	return w
}
