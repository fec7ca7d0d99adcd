// Command worldd does in the world of scripts/world.sh what its namespaces cannot
// do by themselves.
//
//	worldd delay IFACE IFACE DURATION   relay frames between two interfaces, late
//	worldd probe ...                    a server of package probe
package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/e2e/probe"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "worldd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "delay":
		d, err := time.ParseDuration(args[3])
		if err != nil {
			return err
		}
		return relay(args[1], args[2], d)
	case len(args) > 1 && args[0] == "probe":
		return probe.Run(args[1:])
	}
	return errors.New("usage: worldd delay IFACE IFACE DURATION, or worldd probe COMMAND")
}
