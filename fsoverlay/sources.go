package fsoverlay

import (
	"errors"
	"io/fs"
	"os"
)

// PrepareSources makes the missing host directories of -v mounts, as Docker does,
// and checks that the others exist, so that the error comes before a sandbox is
// made. It runs as the user, outside the user namespace: what it makes is the
// user's own.
func PrepareSources(ms []Mount) error {
	const step = "bind mount"
	for _, m := range ms {
		if m.Type != TypeBind {
			continue
		}
		_, err := os.Stat(m.Source)
		switch {
		case err == nil:
		case errors.Is(err, fs.ErrNotExist) && m.CreateSource:
			if err := os.MkdirAll(m.Source, 0o755); err != nil {
				return fail(step+": make the host directory", m.Source, err)
			}
		case errors.Is(err, fs.ErrNotExist):
			return failf(CodeSource, step, m.Source, "create it first, or use -v, which does", "the host path does not exist")
		default:
			return fail(step, m.Source, err)
		}
	}
	return nil
}
