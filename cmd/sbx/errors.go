package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
)

// Exit codes of sbx itself, as of docker run; every other code is the workload's.
const (
	exitOwn           = 125 // sbx failed
	exitNotExecutable = 126 // the command cannot be invoked
	exitNotFound      = 127 // the command was not found
)

// usage is a mistake on the command line.
type usage struct{ msg string }

func (e *usage) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usage{fmt.Sprintf(format, args...)} }

// exitCode maps an error to the exit code of the process.
func exitCode(err error) int {
	var sig interrupted
	switch {
	case errors.As(err, &sig):
		return 128 + int(sig)
	case errors.Is(err, sandbox.ErrCommandNotFound):
		return exitNotFound
	case errors.Is(err, sandbox.ErrCommandNotExecutable):
		return exitNotExecutable
	}
	return exitOwn
}

// printError prints what failed and why on one line, and what to do on the next.
func printError(w io.Writer, err error) {
	fmt.Fprintf(w, "sbx: %s\n", strings.TrimRight(err.Error(), "\n"))
	if fix := sandbox.FixOf(err); fix != "" {
		fmt.Fprintf(w, "fix: %s\n", strings.ReplaceAll(strings.TrimSpace(fix), "\n", "\n     "))
	}
}
