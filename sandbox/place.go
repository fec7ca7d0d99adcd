package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/internal/inroot"
	"golang.org/x/sys/unix"
)

// copied is what is to be copied.
type copied struct {
	name     string // the last of its path, as it was asked for
	dir      bool
	contents bool // of a directory: what is in it, and not itself
}

// goal is where it is to go: a path without links, of something that is there, or may
// be made, since its directory is.
type goal struct {
	path        string
	exists, dir bool
	slash       bool // it was asked for as a directory
}

// place says by Docker's rules in which directory files are made, and what the first of
// them is called; "." for the contents of one.
func place(src copied, dst goal) (dir, as string, err error) {
	parent, base := path.Dir(dst.path), path.Base(dst.path)
	switch {
	case dst.exists && dst.dir && src.contents:
		return dst.path, ".", nil
	case dst.exists && dst.dir:
		return dst.path, src.name, nil
	case dst.exists && src.dir:
		return "", "", ErrDirToFile
	case dst.exists && dst.slash:
		return "", "", ErrNotDirectory
	case !dst.exists && !src.dir && dst.slash:
		return "", "", ErrNoDirectory
	}
	return parent, base, nil
}

// contentsOf says whether a path, clean as it is without its end, means what is in a
// directory.
func contentsOf(p, clean string) bool { return clean == "/" || p == "." || strings.HasSuffix(p, "/.") }

// asksForDir says whether a path means a directory and nothing else.
func asksForDir(p string) bool {
	return p == "." || p == ".." || strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.") || strings.HasSuffix(p, "/..")
}

// localSource opens the directory of a file on the host. A link that is the last name is
// the file itself, unless it is to be followed or p ends in a slash.
func localSource(p string, follow bool) (parent int, name string, src copied, err error) {
	full, err := filepath.Abs(p)
	if err != nil {
		return -1, "", src, err
	}
	src.name, src.contents = filepath.Base(full), contentsOf(p, full)
	follow = follow || asksForDir(p)
	if follow {
		if full, err = filepath.EvalSymlinks(full); err != nil {
			return -1, "", src, err
		}
	}
	fi, err := os.Lstat(full)
	if err != nil {
		return -1, "", src, err
	}
	src.dir = fi.IsDir()
	if asksForDir(p) && !src.dir {
		return -1, "", src, &os.PathError{Op: "open", Path: p, Err: unix.ENOTDIR}
	}
	name = filepath.Base(full)
	if full == "/" {
		name = "."
	}
	parent, err = inroot.OpenDir(filepath.Dir(full))
	return parent, name, src, err
}

// localGoal finds where a path on the host leads. A link need not lead to something
// that is there.
func localGoal(p string) (goal, error) {
	full, err := filepath.Abs(p)
	g := goal{path: full, slash: asksForDir(p)}
	for links := 0; err == nil; links++ {
		var fi os.FileInfo
		if fi, err = os.Lstat(g.path); err != nil {
			break
		}
		if fi.Mode()&os.ModeSymlink == 0 {
			if !fi.IsDir() && !fi.Mode().IsRegular() {
				return g, fmt.Errorf("%w: %s", ErrNotFile, p)
			}
			g.exists, g.dir = true, fi.IsDir()
			return g, nil
		}
		if links >= inroot.MaxLinks {
			return g, &os.PathError{Op: "open", Path: p, Err: unix.ELOOP}
		}
		to, lerr := os.Readlink(g.path)
		if lerr != nil {
			return g, lerr
		}
		if !filepath.IsAbs(to) {
			// What ".." means depends on where its directory really is.
			dir, derr := filepath.EvalSymlinks(filepath.Dir(g.path))
			if derr != nil {
				return g, derr
			}
			to = filepath.Join(dir, to)
		}
		g.path = to
	}
	if !errors.Is(err, os.ErrNotExist) {
		return g, err
	}
	fi, err := os.Stat(filepath.Dir(g.path))
	if err == nil && !fi.IsDir() {
		err = &os.PathError{Op: "open", Path: filepath.Dir(g.path), Err: unix.ENOTDIR}
	}
	return g, err
}
