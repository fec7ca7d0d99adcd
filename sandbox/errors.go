package sandbox

import (
	"errors"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// Errors of the workload's start, for errors.Is.
var (
	// ErrCommandNotFound: there is no such program in the sandbox; exit status 127.
	ErrCommandNotFound = workload.ErrNotFound
	// ErrCommandNotExecutable: it cannot be executed; exit status 126.
	ErrCommandNotExecutable = workload.ErrNotExecutable
)

// FixOf returns what the user can do about err, "" if nobody said.
func FixOf(err error) string {
	var (
		ie *image.Error
		we *wire.Error
	)
	switch {
	case errors.As(err, &ie) && ie.Fix != "":
		return ie.Fix
	case errors.As(err, &we):
		return we.Fix
	}
	return ""
}
