package userns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

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
