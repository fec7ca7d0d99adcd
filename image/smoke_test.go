package image

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestDemoIsReproducibleAndCheap(t *testing.T) {
	ctx := context.Background()
	bin := filepath.Join(t.TempDir(), "sbx")
	if err := os.WriteFile(bin, []byte("#!not really"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, Config{})
	a, err := s.Demo(ctx, bin)
	if err != nil {
		t.Fatal(err)
	}
	b, err := openStore(t, Config{}).Demo(ctx, bin)
	if err != nil {
		t.Fatal(err)
	}
	if a.ID != b.ID || a.Manifest != b.Manifest {
		t.Errorf("the same binary gave %s and %s", a.ID, b.ID)
	}
	l, err := s.Acquire(ctx, a, "single")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	fi, err := os.Stat(filepath.Join(l.Layers[0], "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode()&os.ModeSticky == 0 || fi.Mode().Perm() != 0o777 {
		t.Errorf("tmp has mode %v", fi.Mode())
	}
	if got, _ := os.ReadFile(filepath.Join(l.Layers[0], "bin/sbx")); string(got) != "#!not really" {
		t.Errorf("bin/sbx is %q", got)
	}
	if c, err := s.Demo(ctx, bin); err != nil || c.rec.Added != a.rec.Added {
		t.Errorf("an unchanged binary made the image again: %v", err)
	}
	if err := os.WriteFile(bin, []byte("changed, and longer"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := s.Demo(ctx, bin)
	if err != nil || c.ID == a.ID {
		t.Errorf("a changed binary gave the same image %s: %v", a.ID, err)
	}
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "images")
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
