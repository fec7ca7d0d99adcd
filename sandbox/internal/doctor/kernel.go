package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"github.com/rootless-sbx/sbx/userns"
)

func checkKernel(_ context.Context, e Env) Check {
	c := Check{Name: "kernel", Status: OK}
	release, ok := e.sysctl("kernel/osrelease")
	if !ok {
		c.Status, c.Detail, c.Fix = Degraded, "the release of the kernel cannot be read", "mount /proc"
		return c
	}
	major, minor, ok := parseRelease(release)
	c.Detail, c.Data = "Linux "+release, map[string]any{"release": release, "major": major, "minor": minor}
	older := func(x, y int) bool { return major < x || major == x && minor < y }
	switch {
	case !ok:
		c.Status, c.Detail, c.Fix = Degraded, fmt.Sprintf("kernel release %q is not understood", release), "Linux 5.11 or later is recommended"
	case older(5, 4):
		c.Status, c.Detail, c.Fix = Missing, c.Detail+" is too old: it cannot wait for a process by descriptor", "Linux 5.4 or later is needed, 5.11 or later recommended"
	case older(5, 11):
		c.Status, c.Detail, c.Fix = Degraded, c.Detail+" has no overlay file system for ordinary users: fuse-overlayfs or a copy is used", "Linux 5.11 or later"
	}
	return c
}

// parseRelease takes the first two numbers of e.g. "6.1.0-18-amd64".
func parseRelease(s string) (major, minor int, ok bool) {
	a, rest, _ := strings.Cut(s, ".")
	b := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		b = rest[:i]
	}
	major, err1 := strconv.Atoi(a)
	minor, err2 := strconv.Atoi(b)
	return major, minor, err1 == nil && err2 == nil && major >= 0
}

func checkUserNS(ctx context.Context, e Env) Check {
	c := Check{Name: "user-namespaces", Status: OK, Detail: "this user may create user namespaces"}
	err := e.Probe(ctx)
	if err == nil {
		return c
	}
	c.Status, c.Detail = Missing, err.Error()
	var ue *userns.Error
	if errors.As(err, &ue) {
		c.Fix = ue.Fix
	}
	return c
}

func checkMaxUserNS(_ context.Context, e Env) Check {
	c := Check{Name: "max-user-namespaces", Status: OK}
	const name = "user.max_user_namespaces"
	v, ok := e.sysctl("user/max_user_namespaces")
	n := numbers(v)
	switch {
	case !ok || len(n) != 1:
		c.Status, c.Detail, c.Fix = Degraded, "the sysctl "+name+" cannot be read", "a kernel with CONFIG_USER_NS is needed"
		return c
	case n[0] == 0:
		c.Status, c.Detail, c.Fix = Missing, name+" is 0: no user namespaces", "ask the administrator: sysctl -w "+name+"=10000"
	case n[0] < 64:
		// A sandbox takes one, programs inside it some more.
		c.Status, c.Detail, c.Fix = Degraded, fmt.Sprintf("%s is %d: that is few", name, n[0]), "ask the administrator: sysctl -w "+name+"=10000"
	default:
		c.Detail = fmt.Sprintf("%s is %d", name, n[0])
	}
	c.Data = map[string]any{"max": n[0]}
	return c
}

func checkAppArmor(_ context.Context, e Env) Check {
	c := Check{Name: "apparmor", Status: OK}
	if v, ok := e.sysctl("kernel/unprivileged_userns_clone"); ok && v == "0" {
		c.Status, c.Detail = Missing, "kernel.unprivileged_userns_clone is 0: only root may create user namespaces"
		c.Fix = "ask the administrator: sysctl -w kernel.unprivileged_userns_clone=1"
		return c
	}
	v, ok := e.sysctl("kernel/apparmor_restrict_unprivileged_userns")
	switch {
	case !ok:
		c.Detail = "no restriction of user namespaces by AppArmor"
		return c
	case v != "1":
		c.Detail = "kernel.apparmor_restrict_unprivileged_userns is " + v
		return c
	}
	label, _ := e.read("/proc/self/attr/apparmor/current", maxFile) // "" without a profile
	if label = strings.TrimRight(label, "\x00"); label != "" && label != "unconfined" {
		c.Detail = "AppArmor restricts user namespaces, and this program runs under the profile " + label
		c.Data = map[string]any{"restricted": true, "profile": label}
		return c
	}
	// Whether it hurts is for the user-namespaces check to say: an ordinary user
	// without a profile is stopped, root is not.
	c.Status = Degraded
	c.Detail = "kernel.apparmor_restrict_unprivileged_userns is 1 and this program has no profile"
	c.Fix = "ask the administrator to store this as a file in /etc/apparmor.d and load it with apparmor_parser -r FILE:\n" +
		userns.AppArmorProfile(e.Executable)
	c.Data = map[string]any{"restricted": true}
	return c
}

func checkSeccomp(_ context.Context, e Env) Check {
	c := Check{Name: "seccomp", Status: OK}
	v, ok := e.sysctl("kernel/seccomp/actions_avail")
	if !ok {
		c.Status, c.Detail, c.Fix = Missing, "the kernel has no seccomp filters", "a kernel with CONFIG_SECCOMP_FILTER, or --security-opt seccomp=unconfined"
		return c
	}
	actions := strings.Fields(v)
	c.Detail, c.Data = "filters are supported", map[string]any{"actions": actions}
	return c
}

func checkLandlock(_ context.Context, e Env) Check {
	c := Check{Name: "landlock", Status: OK}
	abi, err := e.Landlock()
	switch {
	case err == nil:
		c.Detail, c.Data = fmt.Sprintf("ABI version %d", abi), map[string]any{"abi": abi}
	case errors.Is(err, syscall.EOPNOTSUPP):
		c.Status, c.Detail, c.Fix = Degraded, "Landlock is switched off: sbx's own processes go without this second wall, and allow= of mounts is refused", "ask the administrator to add landlock to the lsm= boot parameter"
	default:
		c.Status, c.Detail, c.Fix = Degraded, "Landlock is not available ("+err.Error()+"): sbx's own processes go without this second wall, and allow= of mounts is refused", "a kernel with CONFIG_SECURITY_LANDLOCK (5.13 or later)"
	}
	return c
}
