// Command sbx runs container images without root and without a daemon.
//
// It only parses flags, calls the sandbox package, prints, and maps errors to
// exit codes; whatever it can do, a program that imports the packages can do.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/rootless-sbx/sbx/sandbox"
)

// version is set by the build.
var version = "dev"

func main() {
	sandbox.MaybeInit()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	out := &terminal{f: os.Stderr}
	err := newRoot(out).execute(context.Background(), args, streams{in: os.Stdin, out: os.Stdout, err: out})
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if err != nil {
		printError(out, err)
		return exitCode(err)
	}
	return 0
}
