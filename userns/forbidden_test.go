package userns

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

// TestForbidden makes a user namespace in which further ones are not allowed.
func TestForbidden(t *testing.T) {
	c := start(t, "limited", Spec{Mapping: mapping(t, ModeAuto), Cloneflags: unix.CLONE_NEWNS})
	var r limitedResult
	expect(t, c, "limited", &r)
	if r.Before != "" {
		t.Errorf("before the limit: %s", r.Before)
	}
	for name, e := range map[string]*wire.Error{"Probe": r.Probe, "Start": r.Start, "net": r.Net} {
		if e == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		sysctl := "user.max_user_namespaces"
		if name == "net" {
			sysctl = "user.max_net_namespaces"
		}
		if e.Code != "userns-forbidden" || e.Errno != unix.ENOSPC || !strings.Contains(e.Msg, sysctl) || !strings.Contains(e.Fix, sysctl) {
			t.Errorf("%s: %#v", name, e)
		}
	}
}

type limitedResult struct {
	Before            string
	Probe, Start, Net *wire.Error
}

func limited(conn *wire.Conn) error {
	var r limitedResult
	ctx, cancel := testContext()
	defer cancel()
	if err := Probe(ctx); err != nil {
		r.Before = err.Error()
	}
	m, err := ResolveMapping(MappingConfig{Mode: ModeSingle})
	if err != nil {
		return err
	}
	try := func(flags uintptr) *wire.Error {
		c, err := Start(ctx, Spec{Path: "/proc/self/exe", Args: []string{"test-wait"}, Mapping: m, Cloneflags: flags})
		if err == nil {
			c.Kill()
			c.Wait()
			return nil
		}
		if !errors.Is(err, ErrForbidden) {
			err = fmt.Errorf("wrong kind: %w", err)
		}
		return wire.ToError("", err)
	}
	if err := os.WriteFile("/proc/sys/user/max_net_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	r.Net = try(unix.CLONE_NEWNET)
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return err
	}
	r.Probe = wire.ToError("", Probe(ctx))
	r.Start = try(0)
	return conn.Send("limited", r)
}

func TestProbe(t *testing.T) {
	checkLeaks(t)
	if err := Probe(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCheckConfinement(t *testing.T) {
	for label, bad := range map[string]bool{
		"": false, "unconfined": false, "sbx (unconfined)": false,
		"unprivileged_userns (enforce)": true, "unprivileged_userns//x (enforce)": true, "unprivileged_userns2 (enforce)": false,
	} {
		if err := checkConfinement(label); (err != nil) != bad || bad && !errors.Is(err, ErrForbidden) {
			t.Errorf("%q: %v", label, err)
		}
	}
}

func TestAppArmorProfile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a b{c}*", nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/a b{c}*", dir+"/sbx"); err != nil {
		t.Fatal(err)
	}
	got := AppArmorProfile(dir + "/sbx")
	if !strings.Contains(got, `profile a-b-c-- "`+dir+`/a b\{c\}\*" flags=(unconfined) {`) || !strings.Contains(got, "\n  userns,\n") {
		t.Errorf("profile:\n%s", got)
	}
}

// obstacles are ways to take user namespaces from a process, each really done,
// and what the error must name.
var obstacles = map[string]string{"chroot": "chroot", "seccomp": "seccomp filter"}

func TestForbiddenByObstacle(t *testing.T) {
	for name, want := range obstacles {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(dir+"/proc", 0o755); err != nil {
				t.Fatal(err)
			}
			c := start(t, "obstacle", Spec{Mapping: mapping(t, ModeSingle), Cloneflags: unix.CLONE_NEWNS, Env: []string{"OBSTACLE=" + name, "DIR=" + dir}})
			var e *wire.Error
			expect(t, c, "obstacle", &e)
			if e == nil || e.Code != "userns-forbidden" || e.Errno != unix.EPERM || !strings.Contains(e.Msg, want) || e.Fix == "" {
				t.Errorf("got %#v", e)
			}
		})
	}
}

func obstacle(conn *wire.Conn) error {
	switch os.Getenv("OBSTACLE") {
	case "chroot":
		dir := os.Getenv("DIR")
		if err := unix.Mount("/proc", dir+"/proc", "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind /proc: %w", err)
		}
		if err := unix.Chroot(dir); err != nil {
			return err
		}
	case "seccomp":
		if err := forbidClone(); err != nil {
			return err
		}
	}
	ctx, cancel := testContext()
	defer cancel()
	return conn.Send("obstacle", wire.ToError("", Probe(ctx)))
}

// forbidClone does to clone(CLONE_NEWUSER) what Docker's default profile does.
func forbidClone() error {
	const lowArg0 = 16 // offset in struct seccomp_data on little-endian machines
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_CLONE, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: lowArg0},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_NEWUSER, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

// A process whose own ids do not exist in its namespace may not make another.
func TestForbiddenUnmapped(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{"test-unmapped"}, &os.ProcAttr{
		Files: []*os.File{nil, w, nil}, Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil || !strings.Contains(string(out), "does not exist in its user namespace") {
		t.Errorf("%q, %v", out, err)
	}
	if _, err := p.Wait(); err != nil {
		t.Error(err)
	}
}
