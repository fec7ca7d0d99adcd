// Package racelog keeps what the race detector finds in processes that nobody reads the
// standard error of: sbx starts its own with an empty environment, so that GORACE, which
// says where reports go, would not reach them. Only programs built with -race are concerned.
package racelog

import (
	"fmt"
	"os"
	"path/filepath"
)

// Environ adds GORACE to the environment of a process that is about to be started.
func Environ(env []string) []string {
	if v, ok := os.LookupEnv("GORACE"); ok && Enabled {
		return append(env[:len(env):len(env)], "GORACE="+v)
	}
	return env
}

// Into is the GORACE of programs that write their reports into dir and end with them, and do
// not wait a second at each end for more.
func Into(dir string) string {
	return fmt.Sprintf("GORACE=log_path=%s halt_on_error=1 exitcode=66 atexit_sleep_ms=0", filepath.Join(dir, "race"))
}

// Take returns the reports in dir, and removes them.
func Take(dir string) (reports []string, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "race.*"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return reports, err
		}
		reports = append(reports, string(text))
		if err := os.Remove(name); err != nil {
			return reports, err
		}
	}
	return reports, nil
}
