// Command bench measures sbx beside other ways to give a network to a process
// without root: all of them on the same work, in interleaved rounds, in one run.
//
// It runs in namespaces of its own (see jail.go), whose network plays the host, so
// that no address and no sysctl of the machine changes and nothing outlives it. It
// is started as root, which makes the veth pairs, and runs every sandbox as an
// ordinary user. scripts/peers.sh fetches what sbx is measured beside.
//
//	main.go jail.go user.go    start, roles, the ordinary user
//	world.go                   the host's network
//	path*.go                   what is measured: one sandbox per path
//	scenario*.go               how
//	run.go                     rounds
//	stats.go result.go         figures, JSON
//	target*.go report.go plot.go   docs/performance.md
package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/rootless-sbx/sbx/bench/load"
)

func main() {
	role := roleMain
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "role-") {
		role = os.Args[1]
	}
	var err error
	switch role {
	case roleAgent:
		err = load.Run(os.Stdin, os.Stdout)
	case rolePid1:
		os.Exit(pid1())
	case roleInner:
		err = inner(os.Args[2:])
	default:
		err = outer(os.Args[1:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

const (
	roleMain  = ""
	rolePid1  = "role-pid1"
	roleInner = "role-inner"
	roleAgent = "role-agent"
)
