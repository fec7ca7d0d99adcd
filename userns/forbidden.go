package userns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Probe tries what a sandbox needs of the kernel: a new user namespace whose
// capabilities count. It returns nil or an *Error of kind ErrForbidden with the
// setting that is in the way and the fix. It starts no program.
func Probe(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return probe(unix.CLONE_NEWNS)
}

// probe clones a process that executes nothing: the exec of a name that cannot
// exist fails last, so ENOENT means that everything before it went well.
func probe(flags uintptr) error {
	try := func(chroot string) syscall.Errno {
		_, err := syscall.ForkExec("/proc/self/no such file", []string{"sbx-probe"}, &syscall.ProcAttr{
			Env: []string{},
			Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | flags, Chroot: chroot},
		})
		return errnoOf(err)
	}
	switch errno := try(""); errno {
	case unix.ENOENT:
	default:
		return forbidden(errno, unix.CLONE_NEWUSER|flags)
	}
	// Where AppArmor restricts user namespaces they can be made, but chroot (and
	// mount, and all the rest) is refused inside.
	if errno := try("/"); errno != unix.ENOENT {
		return restricted(errno, "a new user namespace can be made, but its capabilities are refused")
	}
	return nil
}

// cloneError says why a child could not be cloned or executed.
func cloneError(s Spec, err error) error {
	errno := errnoOf(err)
	plain := &Error{Step: "start " + s.Args[0], Path: s.Path, Errno: errno}
	switch errno {
	case unix.EPERM, unix.ENOSPC, unix.EUSERS, unix.EINVAL, unix.ENOSYS:
		if s.Mapping == nil {
			return plain
		}
		var f *Error
		if errors.As(probe(s.Cloneflags), &f) {
			return f
		}
	case unix.EAGAIN:
		plain.Msg = "no more processes allowed"
		plain.Fix = "raise the limit: ulimit -u, the cgroup's pids.max, or kernel.threads-max"
	}
	return plain
}

var namespaceSysctls = []struct {
	flag uintptr
	name string
}{
	{unix.CLONE_NEWUSER, "max_user_namespaces"},
	{unix.CLONE_NEWNS, "max_mnt_namespaces"},
	{unix.CLONE_NEWPID, "max_pid_namespaces"},
	{unix.CLONE_NEWNET, "max_net_namespaces"},
	{unix.CLONE_NEWIPC, "max_ipc_namespaces"},
	{unix.CLONE_NEWUTS, "max_uts_namespaces"},
	{unix.CLONE_NEWCGROUP, "max_cgroup_namespaces"},
}

// forbidden finds the setting behind an errno of clone(2).
func forbidden(errno syscall.Errno, flags uintptr) *Error {
	e := &Error{Kind: ErrForbidden, Step: "create namespaces", Errno: errno}
	switch errno {
	case unix.ENOSPC, unix.EUSERS:
		for _, s := range namespaceSysctls {
			if flags&s.flag != 0 && sysctl("user/"+s.name) == "0" {
				e.Path = "/proc/sys/user/" + s.name
				e.Msg = "the sysctl user." + s.name + " is 0"
				e.Fix = "ask the administrator: sysctl -w user." + s.name + "=10000"
				return e
			}
		}
		e.Msg = "the limit of namespaces is reached, or they are nested more than 32 deep"
		e.Fix = "end other sandboxes, or ask the administrator to raise the sysctls user.max_*_namespaces"
	case unix.EPERM, unix.EACCES:
		switch {
		case sysctl("kernel/unprivileged_userns_clone") == "0":
			e.Path = "/proc/sys/kernel/unprivileged_userns_clone"
			e.Msg = "the sysctl kernel.unprivileged_userns_clone is 0"
			e.Fix = "ask the administrator: sysctl -w kernel.unprivileged_userns_clone=1"
		case sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
			return restricted(errno, "AppArmor refuses it")
		case chrooted():
			e.Msg = "this process runs in a chroot, from where the kernel allows no user namespace"
			e.Fix = "enter the tree with pivot_root (bwrap, unshare, systemd-nspawn) instead of chroot"
		case unmapped():
			e.Msg = "this process's uid or gid does not exist in its user namespace"
			e.Fix = "run as a user that the outer container maps"
		case filtered():
			e.Msg = "a seccomp filter, most likely the outer container's, forbids it"
			e.Fix = "start the outer container with --security-opt seccomp=unconfined, or a profile that allows clone and unshare"
		default:
			e.Msg = "the kernel or a security module forbids it"
			e.Fix = "see sbx doctor"
		}
	case unix.EINVAL, unix.ENOSYS:
		e.Msg = "this kernel is built without one of the namespaces, or a seccomp filter hides it"
		e.Fix = "a kernel with CONFIG_USER_NS is needed; in a container, one with seccomp=unconfined"
	}
	return e
}

// restricted is AppArmor's way of forbidding user namespaces (Ubuntu 23.10 and later).
func restricted(errno syscall.Errno, what string) *Error {
	e := &Error{Kind: ErrForbidden, Step: "use a user namespace", Errno: errno, Msg: what}
	if sysctl("kernel/apparmor_restrict_unprivileged_userns") != "1" {
		e.Fix = "see which security module confines this process: /proc/self/attr/current"
		return e
	}
	e.Path = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
	e.Msg += " (the sysctl kernel.apparmor_restrict_unprivileged_userns is 1)"
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		exe = "/usr/bin/sbx"
	}
	name := profileName(exe)
	e.Fix = "ask the administrator to store this as /etc/apparmor.d/" + name +
		" and run apparmor_parser -r /etc/apparmor.d/" + name + ":\n" + AppArmorProfile(exe)
	return e
}

// AppArmorProfile is the text of a profile that allows the program at path (its
// real path is looked up) to use user namespaces and is no restriction otherwise.
func AppArmorProfile(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	name := profileName(path)
	return fmt.Sprintf(`abi <abi/4.0>,
include <tunables/global>

profile %s "%s" flags=(unconfined) {
  userns,
  include if exists <local/%s>
}
`, name, aaEscape.Replace(path), name)
}

// aaEscape keeps AppArmor from reading a path as a pattern.
var aaEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`,
	`{`, `\{`, `}`, `\}`, `^`, `\^`, `@`, `\@`)

func profileName(path string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, filepath.Base(path))
	return strings.TrimLeft(name, ".-") // neither a hidden file nor an option
}

// confinement is the AppArmor label of this process, "" without AppArmor.
func confinement() string {
	for _, p := range []string{"/proc/self/attr/apparmor/current", "/proc/self/attr/current"} {
		if b, err := os.ReadFile(p); err == nil {
			return strings.TrimSpace(strings.TrimRight(string(b), "\x00"))
		}
	}
	return ""
}

// checkConfinement refuses the profile that Ubuntu puts on a process that made a
// user namespace without being allowed to: it would fail at its first mount.
func checkConfinement(label string) error {
	profile, _, _ := strings.Cut(label, " ")
	if profile != "unprivileged_userns" && !strings.HasPrefix(profile, "unprivileged_userns//") {
		return nil
	}
	return restricted(0, "AppArmor took the capabilities of the new user namespace away (profile unprivileged_userns)")
}

func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// chrooted compares our root with that of the mount namespace: in the mountinfo
// of a process outside any chroot one entry is mounted on "/".
func chrooted() bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == "/" {
			return false
		}
	}
	return true
}

func unmapped() bool {
	h, err := thisHost()
	if err != nil {
		return false
	}
	one := func(id int) []span { return []span{{uint64(id), uint64(id) + 1}} }
	return count(intersect(one(h.uid), h.uids)) == 0 || count(intersect(one(h.gid), h.gids)) == 0
}

func filtered() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(v))
			return err == nil && n == 2
		}
	}
	return false
}
