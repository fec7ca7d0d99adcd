package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A map that the user was not granted: newuidmap says so, and so does the error.
func TestHelperRefuses(t *testing.T) {
	checkLeaks(t)
	m := &Mapping{Mode: ModeAuto, Helper: true, NewUIDMap: "/usr/bin/newuidmap", NewGIDMap: "/usr/bin/newgidmap",
		UIDs: []IDMap{{0, uint32(os.Getuid()), 1}, {1, 3000000000, 10}},
		GIDs: []IDMap{{0, uint32(os.Getgid()), 1}}}
	c, err := tryStart(t, "wait", Spec{Mapping: m})
	var e *Error
	if c != nil || !errors.Is(err, ErrMap) || !errors.As(err, &e) || !strings.Contains(e.Msg, "uid range [1-11) -> [3000000000-3000000010) not allowed") || e.Fix == "" {
		t.Errorf("got %v", err)
	}
}

func TestHelperMissing(t *testing.T) {
	checkLeaks(t)
	m := &Mapping{Helper: true, NewUIDMap: "/no/newuidmap", NewGIDMap: "/no/newgidmap", UIDs: []IDMap{{0, 1, 1}}, GIDs: []IDMap{{0, 1, 1}}}
	if _, err := tryStart(t, "wait", Spec{Mapping: m}); !errors.Is(err, ErrMap) || !strings.Contains(err.Error(), "/no/newuidmap") {
		t.Errorf("got %v", err)
	}
}

// A helper that hangs ends with the caller's context, and the child with it.
func TestHelperHangs(t *testing.T) {
	checkLeaks(t)
	hang := filepath.Join(t.TempDir(), "hang")
	if err := os.WriteFile(hang, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	m := &Mapping{Helper: true, NewUIDMap: hang, NewGIDMap: hang, UIDs: []IDMap{{0, 1, 1}}, GIDs: []IDMap{{0, 1, 1}}}
	_, err := Start(ctx, Spec{Path: "/proc/self/exe", Args: []string{"test-wait"}, Mapping: m})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrMap) {
		t.Errorf("got %v", err)
	}
}

// Without privilege the kernel takes no foreign id.
func TestDirectRefused(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may map any id")
	}
	checkLeaks(t)
	m := &Mapping{Mode: ModeSingle, UIDs: []IDMap{{0, 0, 1}}, GIDs: []IDMap{{0, 0, 1}}}
	_, err := tryStart(t, "wait", Spec{Mapping: m})
	if !errors.Is(err, ErrMap) || !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "uid_map") {
		t.Errorf("got %v", err)
	}
}

// The kernel hides a program that its user may not read: /proc/PID is root's.
func TestUnreadableProgram(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read any program")
	}
	checkLeaks(t)
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, b, 0o111); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Spec{Path: path, Args: []string{"test-wait"}, Mapping: mapping(t, ModeSingle)})
	var e *Error
	if !errors.Is(err, ErrMap) || !errors.As(err, &e) || !strings.Contains(e.Fix, "readable") {
		t.Errorf("got %v", err)
	}
}

// Without newuidmap a sandbox still starts, with one id.
func TestWithoutHelper(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root needs no helper")
	}
	m, err := ResolveMapping(MappingConfig{NewUIDMap: "/no/such/newuidmap"})
	if err != nil || m.Mode != ModeSingle || !strings.Contains(m.Reason, "newuidmap is not installed") || !strings.Contains(m.Fix, "apt install uidmap") {
		t.Fatalf("%+v, %v", m, err)
	}
	var f facts
	expect(t, start(t, "facts", Spec{Mapping: m}), "facts", &f)
	if f.UID != 0 || f.UIDMap != fmt.Sprintf("0 %d 1", os.Getuid()) {
		t.Errorf("%+v", f)
	}
}

// A child can be born in a cgroup: no moment in which it is outside its limits. In
// one that nobody has delegated it is not born at all.
func TestStartInCgroup(t *testing.T) {
	base := "/sys/fs/cgroup"
	if _, err := os.Stat(base + "/cgroup.procs"); err != nil {
		base += "/unified"
	}
	if os.Getuid() != 0 {
		checkLeaks(t)
		d, err := os.Open(base)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		c, err := Start(t.Context(), Spec{Path: "/proc/self/exe", Args: []string{"x"}, Mapping: mapping(t, ModeAuto), Cgroup: d})
		if !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			t.Errorf("%v, %v", c, err)
		}
		return
	}
	name := fmt.Sprintf("sbx-userns-test-%d", os.Getpid())
	dir := filepath.Join(base, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := start(t, "wait", Spec{Mapping: mapping(t, ModeAuto), Cgroup: d})
	var pid int
	expect(t, c, "ready", &pid)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID))
	if err != nil || !strings.Contains(string(b), "0::/"+name+"\n") {
		t.Errorf("%q, %v", b, err)
	}
	c.Kill()
	c.Wait()
}

func TestStartRejects(t *testing.T) {
	checkLeaks(t)
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for name, s := range map[string]Spec{
		"no args":          {Path: "/bin/true"},
		"no path":          {Args: []string{"x"}},
		"many descriptors": {Path: "/bin/true", Args: []string{"x"}, Files: make([]*os.File, 65)},
		"closed file":      {Path: "/bin/true", Args: []string{"x"}, Files: []*os.File{f}},
		"empty map":        {Path: "/bin/true", Args: []string{"x"}, Mapping: &Mapping{}},
	} {
		if c, err := Start(t.Context(), s); err == nil {
			c.Kill()
			c.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// A process that Start did not start must not take descriptor 3 for its own.
func TestJoinByHand(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"test-byhand"}, &os.ProcAttr{Files: []*os.File{nil, w, nil, r}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 256)
	n, _ := r.Read(b)
	if !strings.Contains(string(b[:n]), "no control connection") {
		t.Errorf("it said %q", b[:n])
	}
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
}
