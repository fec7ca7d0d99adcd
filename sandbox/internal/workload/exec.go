package workload

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
)

const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// Exec becomes the workload. It must be called on the main thread of the
// process with the goroutine locked to it, in the final root, with every
// capability in the user namespace. It returns only on error, and the process
// is then good for nothing but reporting it.
//
// All that can fail for a reason of the user's is checked before anything is
// changed. Ids, capabilities, signal mask and seccomp filter are changed for
// this thread only: execve ends the other threads.
func Exec(spec Spec) error {
	runtime.LockOSThread()
	if len(spec.Args) == 0 {
		return invalid("", "give a command, or use an image that has one", "no command specified")
	}
	uids, err := idMap("/proc/self/uid_map")
	if err != nil {
		return err
	}
	gids, err := idMap("/proc/self/gid_map")
	if err != nil {
		return err
	}
	id, err := resolveUser(spec.User, passwdFile, groupFile, spec.ExtraGroups, uids, gids)
	if err != nil {
		return err
	}
	bounding, err := capabilities(spec.CapAdd, spec.CapDrop)
	if err != nil {
		return err
	}
	if bounding, err = bounding.supported(spec.CapAdd); err != nil {
		return err
	}
	filter, err := compileSeccomp(spec.Seccomp, bounding)
	if err != nil {
		return err
	}
	env := spec.Env
	if _, ok := lookupEnv(env, "HOME"); !ok {
		env = append(env[:len(env):len(env)], "HOME="+id.home)
	}

	if err := setUpProcess(spec, id); err != nil {
		return err
	}
	// Before anything is made in the tree: what runs in it may have put links there.
	if err := obey(spec.Rules); err != nil {
		return err
	}
	cwd, err := enterCwd(spec.Cwd, spec.Rules != nil)
	if err != nil {
		return err
	}
	if err := becomeUser(id, bounding, filter != nil && !spec.NoNewPrivs); err != nil {
		return err
	}
	// Any change of ids or capabilities clears it, so not earlier.
	if err := prctl(unix.PR_SET_PDEATHSIG, uintptr(spec.Pdeathsig), 0, 0, 0); err != nil {
		return fail("", "set the parent death signal", spec.Pdeathsig.String(), err, "")
	}
	if err := checkCwd(cwd); err != nil {
		return err
	}
	file, err := lookPath(spec.Args[0], env)
	if err != nil {
		return err
	}
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		if err := closeOnExec(); err != nil {
			return err
		}
	}
	if spec.NoNewPrivs {
		if err := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fail("", "set no_new_privs", "", err, "")
		}
	}
	if err := resetSignals(); err != nil {
		return err
	}
	// The last thing: from here on only execve has to pass the filter, so
	// that a profile need not allow what only we do.
	if filter != nil {
		if err := filter.Load(); err != nil {
			return fail(CodeSeccomp, "", "", err, "")
		}
	}
	err = syscall.Exec(file, spec.Args, env)
	var eno syscall.Errno
	if !errors.As(err, &eno) {
		return fail(CodeNotExecutable, "exec", file, err, "")
	}
	if eno == unix.EINVAL && hasNUL(spec.Args, env) {
		return invalid(CodeNotExecutable, "", "an argument or environment variable contains a NUL byte")
	}
	return execError(file, eno)
}

func hasNUL(lists ...[]string) bool {
	for _, l := range lists {
		for _, s := range l {
			if strings.IndexByte(s, 0) >= 0 {
				return true
			}
		}
	}
	return false
}

// idMap reads one map of the user namespace; nil if the root has no /proc.
func idMap(file string) (idRanges, error) {
	m, err := user.ParseIDMapFile(file)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fail(CodeUser, "read the id map", file, err, "")
	}
	return m, nil
}

// setUpProcess sets what does not depend on who the workload is, and what
// needs privileges the workload will not have.
func setUpProcess(spec Spec, id *identity) error {
	umask := uint32(0o022)
	if spec.Umask != nil {
		umask = *spec.Umask
	}
	unix.Umask(int(umask & 0o777))
	for _, u := range spec.Rlimits {
		if err := setRlimit(u); err != nil {
			return err
		}
	}
	if spec.OOMScoreAdj != nil {
		const file = "/proc/self/oom_score_adj"
		if err := os.WriteFile(file, []byte(strconv.Itoa(*spec.OOMScoreAdj)), 0); err != nil {
			return fail("", "set the OOM score adjustment", file, err,
				"an ordinary user can only raise the value it has")
		}
	}
	if err := newKeyring(spec.Seccomp); err != nil {
		return err
	}
	if err := newSession(spec); err != nil {
		return err
	}
	return shareStdio(id.uid, spec.Terminal)
}

// newKeyring is a session keyring of its own, so that keys of the caller's session are
// out of reach. Without keyrings in the kernel, or in a sandbox around us that forbids the
// call, nobody reads any.
func newKeyring(profile string) error {
	_, _, e := unix.RawSyscall(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0)
	switch e {
	case 0, unix.ENOSYS, unix.EPERM, unix.EACCES:
		return nil
	case unix.EDQUOT:
		// What the user's programs have in keyrings, or 200 sandboxes. Docker's profile
		// lets nobody read them either; another one, or none, may.
		if slices.Contains([]string{"", seccomp.Builtin, seccomp.Builtin32}, profile) {
			return nil
		}
		return fail("", "join a new session keyring", "", e,
			"without one the workload could read the keys of your session: see /proc/key-users for what takes the quota, or leave out --security-opt seccomp")
	}
	return fail("", "join a new session keyring", "", e, "")
}

func newSession(spec Spec) error {
	if _, _, e := unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0); e != 0 {
		// Only a process group leader is refused; init may be the leader of
		// a session already.
		if sid, err := unix.Getsid(0); err != nil || sid != os.Getpid() {
			return fail("", "start a new session", "", e, "")
		}
	}
	if !spec.Terminal {
		return nil
	}
	if err := unix.IoctlSetInt(spec.ConsoleFD, unix.TIOCSCTTY, 0); err != nil {
		return fail("", "make the terminal the controlling one", fmt.Sprintf("fd %d", spec.ConsoleFD), err, "")
	}
	if spec.ConsoleFD == 0 {
		return nil
	}
	for fd := range 3 {
		if fd == spec.ConsoleFD {
			continue
		}
		if err := unix.Dup3(spec.ConsoleFD, fd, 0); err != nil {
			return fail("", "make the terminal the standard stream", strconv.Itoa(fd), err, "")
		}
	}
	return nil
}

// shareStdio lets the workload's user open its standard streams again, as
// programs do that log to /dev/stdout. The sandbox's terminal is given to it.
// A pipe is opened to all, which only those reach who may look into a process
// that holds it; runc gives it away, and a shell whose pipe we share could then
// not open its own /dev/stdout. Files and named pipes are the caller's and stay
// as they are.
func shareStdio(uid int, terminal bool) error {
	const pipefs = 0x50495045
	if uid == 0 {
		return nil
	}
	for fd := range 3 {
		var (
			st unix.Stat_t
			fs unix.Statfs_t
		)
		if err := unix.Fstat(fd, &st); err == unix.EBADF {
			continue
		} else if err != nil {
			return fail("", "stat standard stream", strconv.Itoa(fd), err, "")
		}
		var err error
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
			if err = unix.Fstatfs(fd, &fs); err == nil && fs.Type == pipefs {
				err = unix.Fchmod(fd, 0o666)
			}
		case unix.S_IFCHR:
			if _, termErr := unix.IoctlGetTermios(fd, unix.TCGETS); terminal && termErr == nil {
				err = unix.Fchown(fd, uid, -1)
			}
		}
		switch err {
		case nil, unix.EPERM, unix.EINVAL, unix.EROFS:
			// Not ours, e.g. a pipe from another user: the descriptor
			// itself works all the same.
		default:
			return fail("", "share standard stream", strconv.Itoa(fd), err, "")
		}
	}
	return nil
}

// enterCwd makes the working directory and enters it with all rights, as
// Docker does: a user need not be able to reach the image's WORKDIR. It
// reports the directory still to be entered by the user, if root may not.
func enterCwd(cwd string, rules bool) (retry string, err error) {
	if cwd == "" {
		cwd = "/"
	}
	const step = "enter the working directory"
	if !path.IsAbs(cwd) {
		return "", invalid(CodeCwd, "give an absolute path", "the working directory %q is invalid: it is not absolute", cwd)
	}
	err = os.Chdir(cwd)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(cwd, 0o755); err != nil {
			fix := ""
			switch {
			case errors.Is(err, unix.EROFS):
				fix = "the root is read-only: create it in the image, or mount something there"
			case rules && errors.Is(err, unix.EACCES):
				fix = "nothing is made in a directory above a mount with allow=: create it in the image, or choose another with -w"
			}
			return "", fail(CodeCwd, "create the working directory", cwd, err, fix)
		}
		err = os.Chdir(cwd)
	}
	switch {
	case err == nil:
		return "", nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		// A file system that does not trust root, e.g. FUSE or NFS.
		return cwd, nil
	}
	return "", fail(CodeCwd, step, cwd, err, "")
}

// checkCwd enters the directory as the user if root could not, and makes sure
// that it lies in the root: a descriptor leaked from outside, named as
// /proc/self/fd/N, would be a way out.
func checkCwd(retry string) error {
	const step = "enter the working directory"
	if retry != "" {
		if err := os.Chdir(retry); err != nil {
			return fail(CodeCwd, step, retry, err, "")
		}
	}
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	switch {
	case err == unix.ERANGE:
		return nil
	case err != nil:
		return fail(CodeCwd, step, "", err, "")
	case n == 0 || buf[0] != '/':
		return invalid(CodeCwd, "", "the working directory is outside the sandbox's root")
	}
	return nil
}

// becomeUser drops what the workload must not have. Whatever the thread still
// holds is what execve will compute anyway: the bounding set for root, nothing
// for any other user. Only CAP_SYS_ADMIN may stay until then, because loading
// a filter without no_new_privs needs it.
func becomeUser(id *identity, bounding capSet, keepAdmin bool) error {
	if err := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fail(CodeCapability, "clear the ambient capabilities", "", err, "")
	}
	if err := dropBounding(bounding); err != nil {
		return err
	}
	if err := setIDs(id); err != nil {
		return err
	}
	var keep capSet
	if id.uid == 0 {
		keep = bounding
	}
	if keepAdmin {
		keep |= 1 << unix.CAP_SYS_ADMIN
	}
	if err := setCaps(keep, keep); err != nil {
		return fail(CodeCapability, "set the capabilities", "", err, "")
	}
	return nil
}

// closeOnExec is for kernels before 5.11.
func closeOnExec() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fail("", "list open descriptors", "/proc/self/fd", err, "")
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}
