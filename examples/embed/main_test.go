package main

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox"
)

func TestMain(m *testing.M) {
	sandbox.MaybeInit()
	if os.Getenv("EMBED_TEST_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// The example as a program, with an image argument and without.
func TestEmbed(t *testing.T) {
	dir, err := os.MkdirTemp("", "sbx-embed-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	// The image "demo" holds this program, which must be static to run there.
	exe, err := elf.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	static, wants := exe.Section(".interp") == nil, []string{"200 OK", "exit status 0"}
	if !static {
		wants = []string{"ELF interpreter"}
	}
	for _, args := range [][]string{nil, {"demo"}, {"demo", ":80"}} {
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), "EMBED_TEST_MAIN=1", "XDG_DATA_HOME="+dir, "XDG_RUNTIME_DIR="+dir, "SBX_NETD_LINGER=100ms")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); (err == nil) != static {
			t.Fatalf("%v: %v: %s", args, err, out.String())
		}
		for _, want := range wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%v: no %q in %s", args, want, out.String())
			}
		}
	}
	cmd := exec.Command("/proc/self/exe", "no.such.registry.invalid/image")
	cmd.Env = append(os.Environ(), "EMBED_TEST_MAIN=1", "XDG_DATA_HOME="+dir, "XDG_RUNTIME_DIR="+dir)
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "no.such.registry.invalid") {
		t.Errorf("%v: %s", err, out)
	}
	for _, pattern := range []string{"sbx/containers/[0-9a-f]*", "sbx/volumes/[0-9a-f]*"} {
		if left, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}
