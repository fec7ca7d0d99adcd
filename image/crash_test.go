package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"github.com/rootless-sbx/sbx/internal/rmtree"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestPullTogether: processes that pull the same image at once fetch each blob
// once.
func TestPullTogether(t *testing.T) {
	f := newFaulty(t)
	i := buildImage(t, DefaultPlatform(), asGzip, sampleTars(t)...)
	push(t, f.addr+"/app", i)
	f.spoil(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(50 * time.Millisecond) // so that they meet
		}
		return false
	})
	root := filepath.Join(t.TempDir(), "images")
	var cmds []*exec.Cmd
	for range 5 {
		c := child(t, "pull", root, f.addr+"/app")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, c)
	}
	for _, c := range cmds {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	for d := range i.blobs() {
		if d == i.digest() {
			continue
		}
		if n := f.gets("/v2/app/blobs/" + d); n != 1 {
			t.Errorf("%s was fetched %d times", d, n)
		}
	}
	checkConsistent(t, root)
	if _, err := openStore(t, Config{Root: root}).Get(context.Background(), i.id); err != nil {
		t.Error(err)
	}
}

// churnInputs are an image to pull and one to load, which share layers.
func churnInputs(t *testing.T) (ref, archive string) {
	f := newFaulty(t)
	tars := sampleTars(t)
	implied := tarOf(t, file("etc/implied", "x"), file("var/x", "y"))
	push(t, f.addr+"/app:v1", buildImage(t, DefaultPlatform(), asGzip, append(tars, implied)...))
	archive = filepath.Join(t.TempDir(), "archive")
	b := dockerArchive(t, []string{"loaded:v1"}, buildImage(t, DefaultPlatform(), asPlain, tars[0], implied, tars[2]))
	if err := os.WriteFile(archive, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return f.addr + "/app:v1", archive
}

// TestTenProcesses: pull, load, use and remove, all at once.
func TestTenProcesses(t *testing.T) {
	ref, archive := churnInputs(t)
	root := filepath.Join(t.TempDir(), "images")
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			c := child(t, "churn", root, ref, "SBX_ARCHIVE="+archive, "SBX_ROUNDS=yes")
			if err := c.Run(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	checkConsistent(t, root)
}

// TestKilledAnywhere kills a process that works with the store, at random
// moments. Whatever it was doing, the store holds what its index says, and the
// next one goes on.
func TestKilledAnywhere(t *testing.T) {
	ref, archive := churnInputs(t)
	root := filepath.Join(t.TempDir(), "images")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dirty := 0
	for n := range 50 {
		c := child(t, "churn", root, ref, "SBX_ARCHIVE="+archive)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(5+rnd.IntN(150)) * time.Millisecond)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		var ee *exec.ExitError
		if err := c.Wait(); !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("round %d: it ended by itself: %v", n, err)
		}
		if len(names(t, filepath.Join(root, "tmp"))) > 0 {
			dirty++
		}
		checkConsistent(t, root)
		if t.Failed() {
			t.Fatalf("after round %d", n)
		}
	}
	if dirty < 5 {
		t.Errorf("only %d of 50 kills met it at work", dirty)
	}
	c := child(t, "churn", root, ref, "SBX_ARCHIVE="+archive, "SBX_ROUNDS=yes")
	if err := c.Run(); err != nil {
		t.Errorf("the next process: %v", err)
	}
	checkConsistent(t, root)
}

// TestSweepSparesTheLiving: what a running operation has in tmp stays, and the
// blobs it has pinned.
func TestSweepSparesTheLiving(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{})
	live, err := s.newSession("pull")
	if err != nil {
		t.Fatal(err)
	}
	d, err := live.writeBytes(ctx, mtOCIConfig, []byte("pinned"))
	if err != nil {
		t.Fatal(err)
	}
	dead, err := s.newSession("pull")
	if err != nil {
		t.Fatal(err)
	}
	e, err := dead.writeBytes(ctx, mtOCIConfig, []byte("of a dead process"))
	if err != nil {
		t.Fatal(err)
	}
	dead.f.Close() // as its death does
	other := openStore(t, Config{Root: s.root})
	if err := other.GC(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(live.dir); err != nil {
		t.Error("the living session was swept")
	}
	if _, err := os.Stat(dead.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the dead session stays")
	}
	if !s.hasBlob(d) || s.hasBlob(e) {
		t.Errorf("pinned blob there: %v, other blob there: %v", s.hasBlob(d), s.hasBlob(e))
	}
	if err := live.close(ctx); err != nil {
		t.Fatal(err)
	}
	checkConsistent(t, s.root)
}

// TestMappedLayers: unpacked in a user namespace, files belong to subordinate
// ids; the store can remove them again.
func TestMappedLayers(t *testing.T) {
	ctx := context.Background()
	s := openStore(t, Config{Unpack: mappedUnpacker(false), Remover: mappedRemover})
	i := loadOne(t, s, "docker.io/library/a:v1", tarOf(t,
		dir("home", 0o755), dir("home/u", 0o700).own(1000, 1001), file("home/u/f", "x").own(1000, 1001).mode(0o4750),
		symlink("home/u/l", "f").own(1000, 1001), special("home/u/p", '6', 0, 0).own(1000, 1001),
		file("root", "r"), file(".wh.gone", ""), file("last", "x").own(65535, 65535),
		file("cap", "x").pax(paxXattr+xattrCaps, "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")))
	l, err := s.Acquire(ctx, i, "mapped")
	if err != nil {
		t.Fatal(err)
	}
	uid, first := os.Getuid(), subID()
	for path, want := range map[string][2]int{"": {uid, os.Getgid()}, "root": {uid, os.Getgid()}, "home/u": {first + 999, first + 1000},
		"last": {first + 65534, first + 65534}} {
		if st := stat(t, filepath.Join(l.Layers[0], path)); int(st.Uid) != want[0] || int(st.Gid) != want[1] {
			t.Errorf("%q belongs to %d:%d, want %v", path, st.Uid, st.Gid, want)
		}
	}
	if st := stat(t, filepath.Join(l.Layers[0], "gone")); st.Mode&syscall.S_IFMT != syscall.S_IFCHR {
		t.Error("no whiteout")
	}
	if got := xattr(t, filepath.Join(l.Layers[0], "cap"), xattrCaps); len(got) < 20 {
		t.Errorf("file capabilities: %d bytes", len(got))
	}
	if uid == 0 { // an ordinary user cannot look into home/u
		for _, path := range []string{"home/u/f", "home/u/l", "home/u/p"} {
			if st := stat(t, filepath.Join(l.Layers[0], path)); int(st.Uid) != first+999 {
				t.Errorf("%q belongs to %d", path, st.Uid)
			}
		}
		if st := stat(t, filepath.Join(l.Layers[0], "home/u/f")); st.Mode != 0o104750 {
			t.Errorf("home/u/f has mode %o", st.Mode)
		}
	}
	l.Close()
	if _, err := s.Remove(ctx, "a:v1", false); err != nil {
		t.Fatal(err)
	}
	checkConsistent(t, s.root)
	// An id that no map has.
	i = loadOne(t, s, "docker.io/library/b:v1", tarOf(t, file("f", "x").own(70000, 0)))
	var e *Error
	if _, err := s.Acquire(ctx, i, "mapped"); !errors.Is(err, ErrIDs) || !errors.As(err, &e) || e.Fix == "" {
		t.Errorf("id outside of the map: %v", err)
	}
	// With one id every file is the user's, whatever the layer says.
	single := openStore(t, Config{Root: s.root, Unpack: mappedUnpacker(true), Remover: mappedRemover})
	if l, err = single.Acquire(ctx, i, "single"); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, filepath.Join(l.Layers[0], "f")); int(st.Uid) != os.Geteuid() || st.Mode&0o777 != 0o644 {
		t.Errorf("f belongs to %d with mode %o", st.Uid, st.Mode)
	}
	l.Close()
	if _, err := single.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	checkConsistent(t, s.root)
}

// TestSingleRemovesReadOnly: layers of the single-id map have directories that
// their owner may not write.
func TestSingleRemovesReadOnly(t *testing.T) {
	root := t.TempDir()
	b := tarOf(t, dir("a", 0o555), dir("a/b", 0), file("a/b/c", "x"), dir("a/b/d", 0o500), file("a/b/d/e", ""))
	dest := filepath.Join(root, "fs")
	if _, err := Unpack(context.Background(), UnpackJob{Blob: blobFile(t, b), DiffID: digestOf(b), Dest: dest, Single: true}); err != nil {
		t.Fatal(err)
	}
	if err := rmtree.Remove(dest); err != nil {
		t.Error(err)
	}
	if left := names(t, root); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := rmtree.Remove(dest); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// TestDiskFull: on a file system of 2 MiB, in a mount namespace of a user
// namespace, everything fails with ErrNoSpace and leaves nothing.
func TestDiskFull(t *testing.T) {
	i := buildImage(t, DefaultPlatform(), asPlain, sampleTars(t)...)
	archive := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(archive, dockerArchive(t, []string{"a:v1"}, i), 0o600); err != nil {
		t.Fatal(err)
	}
	small := filepath.Join(t.TempDir(), "small")
	if err := os.WriteFile(small, dockerArchive(t, []string{"b:v1"}, buildImage(t, DefaultPlatform(), asGzip, tarOf(t, file("grows", strings.Repeat("A line of text that compresses well.\n", 100000))))), 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFaulty(t)
	push(t, f.addr+"/app", i)
	mnt := t.TempDir()
	c := child(t, "full", mnt, f.addr+"/app", "SBX_ARCHIVE="+archive, "SBX_SMALL="+small)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	if err := c.Run(); err != nil {
		t.Error(err)
	}
}

// fullChild does the work of TestDiskFull.
func fullChild(ctx context.Context, mnt, ref string) error {
	if err := syscall.Mount("none", mnt, "tmpfs", 0, "size=2m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	s, err := Open(Config{Root: mnt + "/images"})
	if err != nil {
		return err
	}
	clean := func(what string, err error) error {
		var e *Error
		if !errors.Is(err, ErrNoSpace) || !errors.As(err, &e) || e.Fix == "" {
			return fmt.Errorf("%s: %w", what, err)
		}
		for _, d := range []string{"tmp", "layers/k"} {
			if left, _ := os.ReadDir(filepath.Join(s.root, d)); len(left) > 0 {
				return fmt.Errorf("%s left %v in %s", what, left, d)
			}
		}
		return nil
	}
	_, err = s.Load(ctx, os.Getenv("SBX_ARCHIVE"), LoadOptions{})
	if err := clean("load", err); err != nil {
		return err
	}
	b, err := os.ReadFile(os.Getenv("SBX_ARCHIVE"))
	if err != nil {
		return err
	}
	_, err = s.LoadFrom(ctx, bytes.NewReader(b), LoadOptions{})
	if err := clean("load from a stream", err); err != nil {
		return err
	}
	_, err = s.Pull(ctx, ref, PullOptions{})
	if err := clean("pull", err); err != nil {
		return err
	}
	if left, _ := os.ReadDir(filepath.Join(s.root, "blobs/sha256")); len(left) > 0 {
		return fmt.Errorf("blobs left: %v", left)
	}
	imgs, err := s.Load(ctx, os.Getenv("SBX_SMALL"), LoadOptions{})
	if err != nil {
		return fmt.Errorf("an image that fits: %w", err)
	}
	_, err = s.Acquire(ctx, imgs[0], "k")
	if err := clean("acquire", err); err != nil {
		return err
	}
	// Not a byte left: the index must stay what it was.
	fill, err := os.Create(mnt + "/fill")
	if err != nil {
		return err
	}
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	fill.Close()
	if err := s.Tag(ctx, "b:v1", "c:v1"); !errors.Is(err, ErrNoSpace) {
		return fmt.Errorf("tag: %w", err)
	}
	if _, err := s.Get(ctx, "b:v1"); err != nil {
		return err
	}
	if _, err := s.Get(ctx, "c:v1"); !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("c:v1: %w", err)
	}
	if err := os.Remove(mnt + "/fill"); err != nil {
		return err
	}
	// Read-only: what is there can be seen, and nothing else.
	if err := syscall.Mount("", mnt, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if s, err = Open(Config{Root: mnt + "/images"}); err != nil {
		return fmt.Errorf("open read-only: %w", err)
	}
	if l, err := s.List(ctx); err != nil || len(l) != 1 {
		return fmt.Errorf("list read-only: %v %w", l, err)
	}
	_, perr := s.Pull(ctx, ref, PullOptions{})
	_, lerr := s.Load(ctx, os.Getenv("SBX_SMALL"), LoadOptions{})
	_, rerr := s.Remove(ctx, "b:v1", true)
	_, aerr := s.Acquire(ctx, imgs[0], "k")
	for what, err := range map[string]error{"pull": perr, "load": lerr, "remove": rerr, "acquire": aerr, "tag": s.Tag(ctx, "b:v1", "d:v1")} {
		if !errors.Is(err, ErrReadOnly) {
			return fmt.Errorf("%s, read-only: %w", what, err)
		}
	}
	return nil
}
