package boxdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestOwners(t *testing.T) {
	root := t.TempDir()
	ctx := t.Context()
	d, err := Create(ctx, root, "aa", func(taken map[string]string) (string, error) { return "one", nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(ctx, root, "aa", nil); err == nil {
		t.Error("made twice")
	}
	if c, err := Claim(ctx, root, "aa"); c != nil || err != nil {
		t.Errorf("claimed from its owner: %v, %v", c, err)
	}
	if ids, err := Owned(ctx, root, []string{"aa", "gone"}); err != nil || len(ids) != 1 || !ids["aa"] {
		t.Errorf("owned: %v, %v", ids, err)
	}
	// A copy of the lock keeps it.
	fd, err := unix.Dup(int(d.Lock.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	d.Release()
	if c, err := Claim(ctx, root, "aa"); c != nil || err != nil {
		t.Errorf("claimed from its second owner: %v, %v", c, err)
	}
	unix.Close(fd)
	if ids, err := Owned(ctx, root, []string{"aa"}); err != nil || len(ids) != 0 {
		t.Errorf("owned: %v, %v", ids, err)
	}
	c, err := Claim(ctx, root, "aa")
	if c == nil || err != nil {
		t.Fatalf("not claimed: %v", err)
	}
	defer c.Release()
	for range 2 {
		if err := Remove(ctx, c.Path); err != nil {
			t.Error(err)
		}
	}
	if c, err := Claim(ctx, root, "aa"); c != nil || err != nil {
		t.Errorf("claimed what is not there: %v, %v", c, err)
	}
	if names, err := os.ReadDir(root); err != nil || len(names) != 1 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestRename(t *testing.T) {
	root := t.TempDir()
	ctx := t.Context()
	refuse := errors.New("taken")
	choose := func(name string) func(map[string]string) (string, error) {
		return func(taken map[string]string) (string, error) {
			if taken[name] != "" {
				return "", refuse
			}
			return name, nil
		}
	}
	for _, id := range []string{"aa", "bb"} {
		d, err := Create(ctx, root, id, choose("name-"+id))
		if err != nil {
			t.Fatal(err)
		}
		d.Release()
	}
	if err := Rename(ctx, root, "aa", choose("name-bb")); err != refuse {
		t.Errorf("to a name in use: %v", err)
	}
	if err := Rename(ctx, root, "aa", choose("other")); err != nil {
		t.Error(err)
	}
	if n, err := Name(root, "aa"); n != "other" || err != nil {
		t.Errorf("the name is %q, %v", n, err)
	}
	if err := Rename(ctx, root, "bb", choose("name-aa")); err != nil {
		t.Errorf("to a name that was left: %v", err)
	}
	if err := Rename(ctx, root, "gone", choose("free")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
}

// Of many, most names are known without a look at their directories, and all are right.
func TestManyNames(t *testing.T) {
	root := t.TempDir()
	ctx := t.Context()
	const n = 3 * maxUnknown
	for i := range n {
		d, err := Create(ctx, root, fmt.Sprintf("id%d", i), func(taken map[string]string) (string, error) {
			if len(taken) != i {
				t.Fatalf("%d names before number %d", len(taken), i)
			}
			return fmt.Sprintf("name%d", i), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		d.Release()
	}
	if _, err := os.Stat(filepath.Join(root, namesName)); err != nil {
		t.Fatal(err)
	}
	same := func(name string) func(map[string]string) (string, error) {
		return func(map[string]string) (string, error) { return name, nil }
	}
	if err := Rename(ctx, root, "id3", same("other")); err != nil {
		t.Fatal(err)
	}
	d, err := Claim(ctx, root, "id4")
	if err != nil || d == nil {
		t.Fatal(d, err)
	}
	if err := errors.Join(Remove(ctx, d.Path), d.Release()); err != nil {
		t.Fatal(err)
	}
	for _, broken := range []bool{false, true} {
		if broken {
			if err := os.WriteFile(filepath.Join(root, namesName), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := names(root)
		if err != nil || len(got) != n-1 || got["other"] != "id3" || got["name3"] != "" || got["name4"] != "" || got["name5"] != "id5" {
			t.Errorf("%d names, %v", len(got), err)
		}
	}
}

// A Rename beside a Remove leaves nothing.
func TestRenameRemove(t *testing.T) {
	root := t.TempDir()
	for i := range 200 {
		d, err := Create(t.Context(), root, "aa", func(map[string]string) (string, error) { return "one", nil })
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 4 {
				// It may be gone.
				_ = Rename(context.Background(), root, "aa", func(map[string]string) (string, error) { return fmt.Sprint("n", i), nil })
			}
		}()
		if err := Remove(t.Context(), d.Path); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		<-done
		d.Release()
		if ids, err := List(root); err != nil || len(ids) != 0 {
			t.Fatalf("round %d: %v are left, %v", i, ids, err)
		}
	}
}

// Only the process that was recorded is killed, never one that has its number.
func TestKillRecorded(t *testing.T) {
	dir := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	if err := Kill(t.Context(), dir); err != nil {
		t.Errorf("nothing recorded: %v", err)
	}
	cmd := start()
	if err := Record(dir, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, pidName)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for field, from := range map[string]string{"start": `"start":"`, "pidns": `"pidns":"`, "boot": `"boot":"`, "cut": "}"} {
		bad := strings.Replace(string(good), from, from+"9", 1)
		if field == "cut" {
			bad = string(good[:len(good)/2])
		}
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Kill(t.Context(), dir); err != nil {
			t.Errorf("%s: %v", field, err)
		}
		if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
			t.Fatalf("%s: another process was killed", field)
		}
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	t0 := time.Now()
	if err := Kill(t.Context(), dir); err != nil || time.Since(t0) > 5*time.Second {
		t.Errorf("%v after %v", err, time.Since(t0))
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the process: %v", err)
	}
	if err := Kill(t.Context(), dir); err != nil {
		t.Errorf("gone: %v", err)
	}
}
