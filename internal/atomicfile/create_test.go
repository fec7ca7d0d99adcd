package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	names := func() (n int) {
		es, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	begin := func(path, text string) *File {
		t.Helper()
		f, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	want := func(text string) {
		t.Helper()
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	f := begin(path, "half")
	if err := f.Close(); err != nil || names() != 0 {
		t.Errorf("given up: %v, %d files", err, names())
	}
	for _, text := range []string{"one", "two"} { // new, and in the place of another
		if err := begin(path, text).Commit(); err != nil || names() != 1 {
			t.Errorf("%v, %d files", err, names())
		}
		want(text)
	}
	if err := begin(path, "half").Close(); err != nil {
		t.Error(err)
	}
	want("two")
	link := filepath.Join(dir, "link")
	if err := os.Symlink("f", link); err != nil {
		t.Fatal(err)
	}
	if err := begin(link, "three").Commit(); err != nil {
		t.Error(err)
	}
	want("three")
	if to, err := os.Readlink(link); err != nil || to != "f" {
		t.Errorf("the link: %q %v", to, err)
	}
	if _, err := Create(dir); !errors.Is(err, syscall.EISDIR) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Create(filepath.Join(dir, "no", "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if err := begin("/dev/null", "gone").Commit(); err != nil {
		t.Errorf("a device: %v", err)
	}
}
