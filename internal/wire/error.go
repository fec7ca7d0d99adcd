package wire

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// Error is a failure as it travels between processes.
type Error struct {
	// Code names the kind of failure for programs, e.g. "port-in-use". Empty
	// where the errno says enough.
	Code string `json:"code,omitempty"`
	// Step is what was being done, e.g. "mount the root file system".
	Step string `json:"step,omitempty"`
	// Path is the file, device or address concerned.
	Path string `json:"path,omitempty"`
	// Errno is the system's answer, 0 if there was none.
	Errno syscall.Errno `json:"errno,omitempty"`
	// Msg is the text, without step, path and errno.
	Msg string `json:"msg,omitempty"`
	// Fix is what the user can do about it.
	Fix string `json:"fix,omitempty"`
	// Stack is set when the other side panicked.
	Stack string `json:"stack,omitempty"`
}

func (e *Error) Error() string {
	s := e.Step
	add := func(sep, t string) {
		if t == "" {
			return
		}
		if s != "" {
			s += sep
		}
		s += t
	}
	add(" ", e.Path)
	add(": ", e.Msg)
	if e.Errno != 0 && e.Msg != e.Errno.Error() {
		add(": ", e.Errno.Error())
	}
	if e.Stack != "" {
		s += "\n" + e.Stack
	}
	return s
}

// Unwrap makes errors.Is(err, syscall.EPERM) and errors.Is(err, fs.ErrNotExist)
// work across processes.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// ToError turns any error into one that can travel. An *Error in the chain
// keeps its fields; a *fs.PathError, *os.SyscallError or errno fills in path
// and errno.
func ToError(step string, err error) *Error {
	if err == nil {
		return nil
	}
	var we *Error
	if errors.As(err, &we) {
		out := *we
		// Keep what was wrapped around it.
		if around, ok := strings.CutSuffix(err.Error(), we.Error()); ok {
			if around = strings.TrimRight(around, ": "); around != "" {
				out.Step = strings.TrimSuffix(around+": "+out.Step, ": ")
			}
		}
		if out.Step == "" {
			out.Step = step
		} else if out.Step != step && step != "" {
			out.Step = step + ": " + out.Step
		}
		return &out
	}
	out := &Error{Step: step}
	var (
		pe  *fs.PathError
		le  *os.LinkError
		se  *os.SyscallError
		eno syscall.Errno
	)
	errors.As(err, &eno)
	switch {
	case errors.As(err, &pe) && err == error(pe):
		out.Path, out.Errno, out.Msg = pe.Path, eno, pe.Op
	case errors.As(err, &le) && err == error(le):
		out.Path, out.Errno, out.Msg = le.New, eno, le.Op
	case errors.As(err, &se) && err == error(se):
		out.Errno, out.Msg = eno, se.Syscall
	case err == error(eno):
		out.Errno = eno
	default:
		out.Msg, out.Errno = err.Error(), eno
		// The text already ends in the errno's own words.
		if eno != 0 {
			out.Msg = trimErrno(out.Msg, eno)
		}
	}
	return out
}

func trimErrno(s string, eno syscall.Errno) string {
	if t := ": " + eno.Error(); len(s) > len(t) && s[len(s)-len(t):] == t {
		return s[:len(s)-len(t)]
	}
	return s
}

// Errorf makes an Error with a code.
func Errorf(code, format string, args ...any) *Error {
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// clip shortens an error so that its message fits into a datagram whatever its
// bytes become in JSON (six for one at worst).
func (e *Error) clip() *Error {
	out := *e
	for _, f := range []struct {
		s   *string
		max int
	}{{&out.Code, 256}, {&out.Step, 1024}, {&out.Path, 4096}, {&out.Msg, 1024}, {&out.Fix, 512}, {&out.Stack, 2048}} {
		if len(*f.s) > f.max {
			*f.s = strings.ToValidUTF8((*f.s)[:f.max], "") + "..."
		}
	}
	return &out
}
