// Package seqfile keeps lines in a directory of files 00000001.json, 00000002.json,
// ... of which only the last grows: a file that has a successor is complete, and the
// oldest may go at any time. Who writes, and when the next file begins, is up to its
// users, the logs of sandboxes and the journal of events.
//
// A Reader needs no lock and holds nobody up. One that is so slow that a file it has
// not begun is removed goes on at the oldest there is.
package seqfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Name is that of a file.
func Name(dir string, seq int) string { return filepath.Join(dir, fmt.Sprintf("%08d.json", seq)) }

// List returns the numbers of the files in order; none if there is no directory.
func List(dir string) ([]int, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var seqs []int
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if seq, err := strconv.Atoi(name); ok && err == nil && seq > 0 {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	return seqs, nil
}
