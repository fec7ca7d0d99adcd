// Command worldd does in the world of scripts/world.sh what its namespaces cannot
// do by themselves.
//
//	worldd wire IFACE IFACE IMPAIRMENT   carry frames between two interfaces, badly
//	worldd probe ...                     a server of package probe
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/rootless-sbx/sbx/e2e/probe"
	"github.com/rootless-sbx/sbx/internal/impair"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "worldd:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "wire":
		cfg, err := impair.Parse(args[3])
		if err != nil {
			return err
		}
		return wire(args[1], args[2], cfg)
	case len(args) > 1 && args[0] == "probe":
		return probe.Run(args[1:])
	}
	return errors.New("usage: worldd wire IFACE IFACE IMPAIRMENT, or worldd probe COMMAND")
}
