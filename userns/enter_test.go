package userns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openNS opens a namespace of a process.
func openNS(t *testing.T, pid int, kind string) *os.File {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A child that enters a user namespace finds what the one found that it was made for.
func TestEnterUserNamespace(t *testing.T) {
	checkLeaks(t)
	for _, mode := range []Mode{ModeAuto, ModeSingle, ModeKeepID} {
		t.Run(string(mode), func(t *testing.T) {
			m := mapping(t, mode)
			first := start(t, "wait", Spec{Mapping: m, Cloneflags: unix.CLONE_NEWNET})
			expect(t, first, "ready", new(int))
			own := start(t, "facts", Spec{Mapping: m, Cloneflags: unix.CLONE_NEWNS})
			var want, got facts
			expect(t, own, "facts", &want)
			extra, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer extra.Close()
			c := start(t, "facts", Spec{Mapping: m, UserNS: openNS(t, first.PID, "user"), Cloneflags: unix.CLONE_NEWNS, Setsid: true, Env: []string{"A=b"}, Files: []*os.File{extra}})
			expect(t, c, "facts", &got)
			if fmt.Sprint(got.UID, got.GID, got.Groups, got.UIDMap, got.GIDMap, got.SetGroups, got.CapEff, got.CapAmb) !=
				fmt.Sprint(want.UID, want.GID, want.Groups, want.UIDMap, want.GIDMap, want.SetGroups, want.CapEff, want.CapAmb) {
				t.Errorf("entered %+v, made %+v", got, want)
			}
			if len(got.NotCloexec) != 0 || len(got.Files) != len(want.Files)+1 || fmt.Sprint(got.Env) != "[A=b]" {
				t.Errorf("descriptors %v, not close-on-exec %v, environment %v", got.Files, got.NotCloexec, got.Env)
			}
			if ws, err := c.Wait(); err != nil || ws.ExitStatus() != 0 {
				t.Errorf("status %v, %v", ws, err)
			}
		})
	}
}

// What cannot be entered or executed is told with its step, and nothing is left.
func TestEnterFails(t *testing.T) {
	checkLeaks(t)
	m := mapping(t, ModeSingle)
	first := start(t, "wait", Spec{Mapping: m, Cloneflags: unix.CLONE_NEWNET})
	expect(t, first, "ready", new(int))
	user := openNS(t, first.PID, "user")
	for name, tc := range map[string]struct {
		spec Spec
		want string
		kind error
	}{
		"another kind of namespace": {Spec{UserNS: openNS(t, first.PID, "net"), Path: "/proc/self/exe"}, "start test", unix.EINVAL},
		"our own":                   {Spec{UserNS: openNS(t, os.Getpid(), "user"), Path: "/proc/self/exe"}, "start test", unix.EINVAL},
		"no program":                {Spec{UserNS: user, Path: "/does/not/exist"}, "/does/not/exist", unix.ENOENT},
		"other ids":                 {Spec{UserNS: user, Path: "/proc/self/exe", Mapping: &Mapping{UIDs: []IDMap{{0, 1, 1}}, GIDs: []IDMap{{0, 1, 1}}}}, "uid 0 1 1", ErrMap},
	} {
		tc.spec.Args = []string{"test-silent"}
		c, err := Start(t.Context(), tc.spec)
		if c != nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// neighbours says whether a process born in another one's network namespace is there.
func neighbours() (bool, error) {
	ctx, cancel := testContext()
	defer cancel()
	spec := Spec{Path: "/proc/self/exe", Args: []string{"test-wait"}, Cloneflags: unix.CLONE_NEWNET}
	var links [3]string
	for i := range 2 {
		c, err := Start(ctx, spec)
		if err != nil {
			return false, err
		}
		defer c.Wait()
		defer c.Close()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", c.PID))
		if err != nil {
			return false, err
		}
		defer ns.Close()
		if links[i], err = os.Readlink(fmt.Sprintf("/proc/%d/ns/net", c.PID)); err != nil {
			return false, err
		}
		spec.Cloneflags, spec.NetNS = 0, ns
	}
	var err error
	links[2], err = os.Readlink("/proc/self/ns/net")
	return links[0] == links[1] && links[1] != links[2], err
}

// A child can be born in a network namespace, by one that may enter it.
func TestBornInNetNamespace(t *testing.T) {
	checkLeaks(t)
	c := start(t, "neighbours", Spec{Mapping: mapping(t, ModeSingle), Cloneflags: unix.CLONE_NEWNET})
	var same bool
	expect(t, c, "same", &same)
	if !same {
		t.Error("the grandchild is in another network namespace")
	}
	if ws, err := c.Wait(); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("status %v, %v", ws, err)
	}
}

func TestFits(t *testing.T) {
	whole := []IDMap{{0, 1000, 1}, {1, 100000, 65536}}
	for _, tc := range []struct {
		have []IDMap
		want bool
	}{
		{whole, true},
		{[]IDMap{{0, 1000, 1}, {1, 100000, 65535}}, true},
		{[]IDMap{{0, 1000, 1}, {1, 100000, 65534}}, true},
		{[]IDMap{{0, 1000, 1}, {1, 100000, 65533}}, false},
		{[]IDMap{{0, 1000, 1}}, false},
		{[]IDMap{{0, 1000, 1}, {1, 100001, 65535}}, false},
		{[]IDMap{{0, 1000, 1}, {1, 100000, 65537}}, false},
		{[]IDMap{{0, 1000, 1}, {1, 100000, 30000}, {30001, 200000, 40000}}, false},
		{nil, false},
	} {
		m, have := &Mapping{UIDs: whole, GIDs: whole}, &Mapping{UIDs: tc.have, GIDs: tc.have}
		if got := m.Fits(have); got != tc.want {
			t.Errorf("%s: %v", have, got)
		}
	}
}
