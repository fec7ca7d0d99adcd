package sandbox

import (
	"io"

	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// ParseEnvFile reads a file of --env-file by Docker's rules: NAME=VALUE is taken
// literally, NAME takes the value that lookup has. name is for errors.
func ParseEnvFile(r io.Reader, name string, lookup func(string) (string, bool)) ([]string, error) {
	return workload.ParseEnvFile(r, name, lookup)
}
