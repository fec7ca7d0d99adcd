package workload

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// Codes of the wire.Error inside every error of Exec that a caller may want to
// tell apart after it crossed a process boundary.
const (
	CodeNotFound      = "command-not-found"
	CodeNotExecutable = "command-not-executable"
	CodeUser          = "user"
	CodeSeccomp       = "seccomp"
	CodeCapability    = "capability"
	CodeUlimit        = "ulimit"
	CodeSysctl        = "sysctl"
	CodeCwd           = "cwd"
)

var (
	// ErrNotFound: there is no such program in the sandbox (exit status 127).
	ErrNotFound = errors.New("command not found")
	// ErrNotExecutable: it is there, but cannot be executed (exit status 126).
	ErrNotExecutable = errors.New("command cannot be executed")
)

// Error is a failure to start the workload. It matches ErrNotFound and
// ErrNotExecutable with errors.Is, its errno, and the *wire.Error with
// errors.As.
type Error struct {
	Wire *wire.Error
}

func (e *Error) Error() string { return e.Wire.Error() }
func (e *Error) Unwrap() error { return e.Wire }

func (e *Error) Is(target error) bool {
	switch target {
	case ErrNotFound:
		return e.Wire.Code == CodeNotFound
	case ErrNotExecutable:
		return e.Wire.Code == CodeNotExecutable
	}
	return false
}

// FromWire gives an error that came from another process its type back. Any
// other error is returned as it is.
func FromWire(err error) error {
	var (
		typed *Error
		w     *wire.Error
	)
	if errors.As(err, &typed) || !errors.As(err, &w) {
		return err
	}
	return &Error{Wire: w}
}

// ExitStatus is the exit status Docker gives for an error of Exec: 127 if the
// command was not found, 126 if it cannot be executed, 125 for anything else.
func ExitStatus(err error) int {
	err = FromWire(err)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrNotFound):
		return 127
	case errors.Is(err, ErrNotExecutable):
		return 126
	}
	return 125
}

// fail makes the error of a step of Exec.
func fail(code, step, path string, err error, fix string) *Error {
	w := &wire.Error{Code: code, Step: step, Path: path, Fix: fix}
	var eno syscall.Errno
	switch {
	case err == nil:
	case errors.As(err, &eno) && err == error(eno):
		w.Errno = eno
	default:
		in := wire.ToError("", err)
		w.Errno, w.Msg = in.Errno, in.Msg
		if w.Path == "" {
			w.Path = in.Path
		}
	}
	return &Error{Wire: w}
}

// invalid makes the error of a value the user gave.
func invalid(code, fix, format string, args ...any) *Error {
	return &Error{Wire: &wire.Error{Code: code, Msg: fmt.Sprintf(format, args...), Fix: fix}}
}
