package main

import (
	"errors"
	"fmt"
	"os"
)

// mergeFiles puts the results of several runs together.
func mergeFiles(o options) error {
	if len(o.files) == 0 {
		return errors.New("--merge: which files?")
	}
	all := new(results)
	for _, f := range o.files {
		r, err := readResults(f)
		if err != nil {
			return err
		}
		if err := all.merge(r); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	if o.json != "" {
		if err := all.write(o.json); err != nil {
			return err
		}
	}
	if o.report != "" {
		if err := writeReport(o.report, all); err != nil {
			return err
		}
	}
	return printResults(os.Stdout, all)
}
