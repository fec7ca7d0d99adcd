package du

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSizes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, n int) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	big := write("a/big", 1<<20)
	write("b/small", 100)
	if err := os.Link(big, filepath.Join(dir, "b", "link")); err != nil {
		t.Fatal(err)
	}
	// Out of the tree, and around in it.
	for _, target := range []string{"/", "..", "loop"} {
		if err := os.Symlink(target, filepath.Join(dir, "b", "loop"+filepath.Base(target))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Sizes(t.Context(), []string{filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "none"), big})
	if err != nil {
		t.Fatal(err)
	}
	if got[0] < 1<<20 || got[0] > 1<<20+64<<10 {
		t.Errorf("a takes %d", got[0])
	}
	if got[1] > 64<<10 {
		t.Errorf("b takes %d: the second name counts, or a link was followed", got[1])
	}
	if got[2] != 0 || got[3] != 0 {
		t.Errorf("what is not there takes %d, and what was counted %d", got[2], got[3])
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if _, err := Sizes(ctx, []string{dir}); !errors.Is(err, enough) {
		t.Errorf("got %v, want the context's cause", err)
	}
}
