package boxdir

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rootless-sbx/sbx/internal/atomicfile"
)

// The names are in the directories. To read them all is what a start costs among
// hundreds of sandboxes, so most are in containers/.names too, a map of id to name:
// what that says of an id is true, since Rename removes it first, and of an id that it
// does not have the directory is read.
const (
	namesName = ".names"
	maxNames  = 16 << 20
	// maxUnknown is how many names are read again each time before they are added.
	maxUnknown = 32
)

// names returns those that are taken, with their ids; under the root's lock.
func names(root string) (map[string]string, error) {
	ids, err := List(root)
	if err != nil {
		return nil, err
	}
	known := map[string]string{}
	if b, err := atomicfile.Read(filepath.Join(root, namesName), maxNames); err == nil {
		if json.Unmarshal(b, &known) != nil {
			known = map[string]string{} // of a crash
		}
	}
	taken, now := map[string]string{}, map[string]string{}
	unknown := 0
	for _, id := range ids {
		name, ok := known[id]
		if !ok {
			// What has no name that can be read takes none: a storage probe, or no
			// directory of ours.
			b, err := atomicfile.Read(filepath.Join(root, id, nameName), maxFile)
			if err != nil {
				continue
			}
			name = string(b)
			unknown++
		}
		taken[name], now[id] = id, name
	}
	if unknown < maxUnknown && len(known) <= 2*len(now)+maxUnknown {
		return taken, nil
	}
	b, err := json.Marshal(now)
	if err != nil {
		return nil, err
	}
	return taken, atomicfile.Write(filepath.Join(root, namesName), b)
}

// forgetNames is for who changes one; under the root's lock.
func forgetNames(root string) error {
	if err := os.Remove(filepath.Join(root, namesName)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
