package confine

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	known := len(Resolvers(filepath.Join(dir, "none")))
	for _, d := range []string{"etc", "store", "package"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "package/resolv.conf"), []byte("nameserver 192.0.2.1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"etc/chain": "../store/resolv.conf", "store/resolv.conf": filepath.Join(dir, "package/resolv.conf"),
		"etc/run": "/run/resolv.conf", "etc/loop": "loop", "etc/nothing": "/nowhere/resolv.conf", "etc/var.d": "/run",
		"etc/through": "var.d/resolv.conf",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string][]string{
		"package/resolv.conf": nil,
		"etc/missing":         nil,
		"etc/chain":           {dir + "/store", dir + "/package"},
		"etc/run":             {"/run/resolv.conf"},
		"etc/through":         {dir + "/etc/var.d/resolv.conf"}, // as by /var/run
		"etc/nothing":         {"/nowhere"},
		"etc/loop":            slices.Repeat([]string{dir + "/etc"}, maxLinks),
	} {
		if got := Resolvers(filepath.Join(dir, file))[known:]; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", file, got, want)
		}
	}
}
