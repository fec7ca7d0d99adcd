package netd

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/landlock-lsm/go-landlock/landlock"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/sandbox/internal/confine"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload/seccomp"
)

// confinement is what a network's process keeps of its user's rights.
type confinement struct {
	// Writable directories, and those that can be read, with all that is below them.
	Writable, Readable []string
}

// stages in their order: each forbids what the one before it needs. DropPrivilege was the
// first: new privileges, and all capabilities.
func (c *confinement) stages() []confine.Stage {
	return []confine.Stage{
		{Name: "inspection", Shed: shedInspection},
		{Name: "files", Shed: c.shedFiles},
		{Name: "calls", Shed: shedCalls},
	}
}

// confine sheds all of it. What stays is said in the log.
func (c *confinement) confine(log *slog.Logger) {
	confine.Shed(c.stages(), func(stage string, err error) { log.Warn("not confined", "stage", stage, "err", err) })
}

// confinement of this network: its own files, those that say where names are resolved,
// and what the kernel says of the host's network.
func (s *server) confinement() (*confinement, error) {
	if err := os.MkdirAll(string(s.defs), 0o700); err != nil { // or it could not be made later
		return nil, err
	}
	resolv := s.cfg.ResolvConf
	if resolv == "" {
		resolv = "/etc/resolv.conf"
	}
	c := &confinement{
		Writable: []string{s.cfg.RuntimeDir, string(s.defs)},
		Readable: []string{"/etc", "/run", "/proc", "/usr/share/zoneinfo", filepath.Dir(resolv)},
	}
	for _, place := range confine.Resolvers(resolv) {
		if fi, err := os.Stat(place); err == nil && fi.IsDir() { // else it is a file of /run, all of which is there
			c.Readable = append(c.Readable, place)
		}
	}
	return c, nil
}

// shedInspection keeps the user's other processes from looking into this one.
func shedInspection() error {
	return os.NewSyscallError("prctl PR_SET_DUMPABLE", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

// shedFiles leaves the files that are named, by Landlock. Kernels without it (before
// 5.13) leave all of them.
func (c *confinement) shedFiles() error {
	var rules []landlock.Rule
	for _, d := range c.Writable {
		rules = append(rules, landlock.RWDirs(d).WithRefer())
	}
	for _, d := range c.Readable {
		rules = append(rules, landlock.RODirs(d).IgnoreIfMissing())
	}
	return landlock.V5.BestEffort().RestrictPaths(rules...)
}

// shedCalls leaves the system calls that a network needs, of these sockets and
// threads. Another one is refused with EPERM.
func shedCalls() error {
	rules := []specs.LinuxSyscall{{Names: calls, Action: specs.ActAllow}}
	for _, family := range []uint64{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		rules = append(rules, specs.LinuxSyscall{
			Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Value: family, Op: specs.OpEqualTo}},
		})
	}
	rules = append(rules, specs.LinuxSyscall{Names: []string{"clone"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{
		{Index: 0, Value: unix.CLONE_THREAD, ValueTwo: unix.CLONE_THREAD, Op: specs.OpMaskedEqual},
	}})
	// The C library of a program with cgo takes clone then, whose flags can be seen.
	nosys := uint(unix.ENOSYS)
	rules = append(rules, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &nosys})
	f, err := seccomp.CompileSpec(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules})
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	return f.LoadAll()
}

// calls are those that need no look at their arguments. A name that an architecture
// does not have says nothing.
var calls = strings.Fields(`
	mmap mmap2 munmap mprotect madvise mremap brk mincore membarrier
	futex futex_time64 futex_waitv set_robust_list rseq sched_yield sched_getaffinity
	gettid getpid getppid tgkill exit exit_group restart_syscall
	rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack
	nanosleep clock_nanosleep clock_nanosleep_time64 clock_gettime clock_gettime64 clock_getres gettimeofday time
	setitimer timer_create timer_settime timer_settime64 timer_delete
	getrandom uname sysinfo prctl capget arch_prctl riscv_hwprobe
	getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getgroups getgroups32
	getrlimit ugetrlimit setrlimit prlimit64 getrusage

	read readv pread64 preadv write writev pwrite64 pwritev
	open openat openat2 close close_range dup dup2 dup3 fcntl fcntl64 ioctl flock umask
	stat stat64 fstat fstat64 lstat lstat64 newfstatat fstatat64 statx fstatfs fstatfs64 statfs statfs64
	access faccessat faccessat2 readlink readlinkat getcwd getdents64 lseek _llseek
	fsync fdatasync ftruncate ftruncate64 fallocate memfd_create
	rename renameat renameat2 link linkat unlink unlinkat mkdir mkdirat rmdir mknod mknodat chmod fchmod fchmodat fchmodat2
	inotify_init1 inotify_add_watch inotify_rm_watch
	sendfile sendfile64 splice tee vmsplice copy_file_range pipe pipe2

	epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd2 timerfd_create timerfd_settime timerfd_settime64
	poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64

	socketpair bind connect listen accept accept4 getsockname getpeername setsockopt getsockopt shutdown
	sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg recvmmsg_time64 send recv socketcall
`)
