package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"

	"github.com/rootless-sbx/sbx/sandbox"
)

// Exit codes of sbx itself, as of docker run; every other code is the workload's.
const (
	exitOwn           = 125 // sbx failed
	exitNotExecutable = 126 // the command cannot be invoked
	exitNotFound      = 127 // the command was not found
)

// usage is a mistake on the command line.
type usage struct{ msg, fix string }

func (e *usage) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usage{msg: fmt.Sprintf(format, args...)} }

// exitStatus is the end of a command that has already said everything.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// interrupted ends a start-up.
type interrupted syscall.Signal

func (s interrupted) Error() string { return "interrupted: " + syscall.Signal(s).String() }

// exitCode maps an error to the exit code of the process.
func exitCode(err error) int {
	var (
		sig interrupted
		f   failure
	)
	switch {
	case errors.As(err, &sig):
		return 128 + int(sig)
	case errors.Is(err, sandbox.ErrCommandNotFound):
		return exitNotFound
	case errors.Is(err, sandbox.ErrCommandNotExecutable):
		return exitNotExecutable
	case errors.As(err, &f):
		return 1
	}
	return exitOwn
}

// printError prints what failed and why on one line, and what to do on the next.
func printError(w io.Writer, err error) {
	fix := sandbox.FixOf(err)
	var u *usage
	if errors.As(err, &u) && u.fix != "" {
		fix = u.fix
	}
	var lines []string
	for _, l := range strings.Split(err.Error(), "\n") { // errors.Join
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	what := strings.Join(lines, "; ")
	if fix != "" { // some say it in the error too, for programs that print only that
		what = strings.Replace(what, " ("+fix+")", "", 1)
	}
	say(w, "sbx: %s", what)
	if fix != "" {
		label := "fix: "
		for line := range strings.Lines(strings.TrimSpace(fix)) {
			say(w, "%s%s", label, strings.TrimSuffix(line, "\n"))
			label = "     "
		}
	}
}
