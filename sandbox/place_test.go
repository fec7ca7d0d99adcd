package sandbox

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The table of docker cp's documentation.
func TestPlace(t *testing.T) {
	file := copied{name: "src"}
	dir := copied{name: "src", dir: true}
	contents := copied{name: "src", dir: true, contents: true}
	isDir := goal{path: "/a/dst", exists: true, dir: true}
	isFile := goal{path: "/a/dst", exists: true}
	none := goal{path: "/a/dst"}
	slash := func(g goal) goal { g.slash = true; return g }
	for _, c := range []struct {
		what    string
		src     copied
		dst     goal
		dir, as string
		err     error
	}{
		{"file to nothing", file, none, "/a", "dst", nil},
		{"file to nothing/", file, slash(none), "", "", ErrNoDirectory},
		{"file to file", file, isFile, "/a", "dst", nil},
		{"file to file/", file, slash(isFile), "", "", ErrNotDirectory},
		{"file to directory", file, isDir, "/a/dst", "src", nil},
		{"file to directory/", file, slash(isDir), "/a/dst", "src", nil},
		{"directory to nothing", dir, none, "/a", "dst", nil},
		{"directory to nothing/", dir, slash(none), "/a", "dst", nil},
		{"directory to file", dir, isFile, "", "", ErrDirToFile},
		{"directory to directory", dir, isDir, "/a/dst", "src", nil},
		{"contents to nothing", contents, none, "/a", "dst", nil},
		{"contents to file", contents, isFile, "", "", ErrDirToFile},
		{"contents to directory", contents, isDir, "/a/dst", ".", nil},
		{"file to the root", file, goal{path: "/", exists: true, dir: true}, "/", "src", nil},
	} {
		dir, as, err := place(c.src, c.dst)
		if dir != c.dir || as != c.as || !errors.Is(err, c.err) {
			t.Errorf("%s: %q %q %v, want %q %q %v", c.what, dir, as, err, c.dir, c.as, c.err)
		}
	}
}

func TestLocalPaths(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(top)
	for _, d := range []string{"dir/sub", "dot.", "work"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("dir/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"tofile": "dir/file", "todir": "dir", "broken": "dir/new", "loop": "loop", "nowhere": "no/new", "up": "todir/../x"} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir("work")
	for _, c := range []struct {
		path   string
		follow bool
		real   string // what is packed
		want   copied
		err    error
	}{
		{"../dir/file", false, "dir/file", copied{name: "file"}, nil},
		{"../dir", false, "dir", copied{"dir", true, false}, nil},
		{"../dir/", false, "dir", copied{"dir", true, false}, nil},
		{"../dir/.", false, "dir", copied{"dir", true, true}, nil},
		{"../dot.", false, "dot.", copied{"dot.", true, false}, nil},
		{".", false, "work", copied{"work", true, true}, nil},
		{"..", false, ".", copied{filepath.Base(top), true, false}, nil},
		{"../tofile", false, "tofile", copied{name: "tofile"}, nil},
		{"../tofile", true, "dir/file", copied{name: "tofile"}, nil},
		{"../todir", false, "todir", copied{name: "todir"}, nil},
		{"../todir/", false, "dir", copied{"todir", true, false}, nil},
		{"../todir/.", false, "dir", copied{"todir", true, true}, nil},
		{"../dir/file/", false, "", copied{}, unix.ENOTDIR},
		{"../none", false, "", copied{}, os.ErrNotExist},
		{"../broken", false, "broken", copied{name: "broken"}, nil},
		{"../broken", true, "", copied{}, os.ErrNotExist},
	} {
		parent, name, got, err := localSource(c.path, c.follow)
		if !errors.Is(err, c.err) || c.err == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.path, err, c.err)
		}
		if err != nil {
			continue
		}
		var a, b unix.Stat_t
		if err := errors.Join(unix.Fstatat(parent, name, &a, unix.AT_SYMLINK_NOFOLLOW), unix.Lstat(filepath.Join(top, c.real), &b)); err != nil || a.Ino != b.Ino || got != c.want {
			t.Errorf("%s: %+v, want %+v and %s, %v", c.path, got, c.want, c.real, err)
		}
		unix.Close(parent)
	}
	for _, c := range []struct {
		path string
		want goal
		err  error
	}{
		{"../dir", goal{"dir", true, true, false}, nil},
		{"../dir/", goal{"dir", true, true, true}, nil},
		{"../todir", goal{"dir", true, true, false}, nil},
		{"../tofile", goal{"dir/file", true, false, false}, nil},
		{"../broken", goal{"dir/new", false, false, false}, nil},
		{"../new", goal{"new", false, false, false}, nil},
		{"../new/", goal{"new", false, false, true}, nil},
		{"../up", goal{"x", false, false, false}, nil},
		{"../nowhere", goal{}, os.ErrNotExist},
		{"../none/new", goal{}, os.ErrNotExist},
		{"../dir/file/new", goal{}, unix.ENOTDIR},
		{"../loop", goal{}, unix.ELOOP},
		{"/dev/null", goal{}, ErrNotFile},
	} {
		got, err := localGoal(c.path)
		c.want.path = filepath.Join(top, c.want.path)
		if c.err != nil {
			if !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", c.path, err, c.err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%s: %+v %v, want %+v", c.path, got, err, c.want)
		}
	}
}
