package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func signals([]string) error {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGCONT)
	fmt.Println("ready")
	for s := range ch {
		fmt.Println("signal", unix.SignalName(s.(syscall.Signal)))
		if s == unix.SIGTERM {
			return exitCode(42)
		}
	}
	return nil
}

func status(keys []string) error {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		k, v, _ := strings.Cut(sc.Text(), ":")
		if slices.Contains(keys, k) {
			fmt.Println(k, strings.Join(strings.Fields(v), " "))
		}
	}
	return sc.Err()
}

// fds prints the descriptors above 2 that the process was started with. Those have
// lived through an exec; all that Go's runtime and this function open would not.
func fds([]string) error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		fd, err := strconv.Atoi(n)
		if err != nil {
			return err
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || fd <= 2 || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil {
			return err
		}
		fmt.Println(fd, target)
	}
	return nil
}

func ids([]string) error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	slices.Sort(groups)
	fmt.Println(os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), groups)
	return nil
}

func rlimit([]string) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	fmt.Println(l.Cur, l.Max)
	return nil
}

// calls makes system calls that a sandbox should or should not allow. Each must be
// harmless where it is allowed.
func calls(names []string) error {
	table := map[string]func() error{
		"mount":      func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") },
		"unshare":    func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
		"sethost":    func() error { return unix.Sethostname([]byte("changed")) },
		"chown":      func() error { return os.Chown("/tmp", 1, 1) },
		"ptrace":     func() error { return errnoOf(unix.Syscall(unix.SYS_PTRACE, 999, 0, 0)) },
		"bpf":        func() error { return errnoOf(unix.Syscall(unix.SYS_BPF, 999, 0, 0)) },
		"keyctl":     func() error { _, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, -3, 0, 0, 0); return err },
		"reboot":     func() error { return unix.Reboot(0) },
		"settime":    func() error { return unix.Settimeofday(&unix.Timeval{Sec: -1}) },
		"init_mod":   func() error { return unix.InitModule(nil, "") },
		"kexec":      func() error { return errnoOf(unix.Syscall(unix.SYS_KEXEC_LOAD, 0, 0, 0)) },
		"open_by_fh": func() error { return errnoOf(unix.Syscall(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), 0, 0)) },
		"rawsock":    func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) },
		"vsock":      func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0) },
		"mknod":      func() error { return unix.Mknod("/tmp/probe-null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		"clone3":     func() error { return errnoOf(unix.Syscall(unix.SYS_CLONE3, 0, 0, 0)) },
		"sysrq":      func() error { return writeFile("/proc/sysrq-trigger") },
		"kcore":      kcore,
		"sysctl":     func() error { return writeFile("/proc/sys/kernel/core_pattern") },
		"sysfs":      func() error { return writeFile("/sys/kernel/uevent_helper") },
		"low_port":   func() error { return bindTCP(80) },
	}
	for _, n := range names {
		call := table[n]
		if call == nil {
			return fmt.Errorf("%w: calls %s", ErrUsage, n)
		}
		fmt.Println(n, callResult(call()))
	}
	return nil
}

// kcore reads from the kernel's memory, over which nothing or /dev/null may lie.
func kcore() error {
	f, err := os.Open("/proc/kcore")
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 1))
	return err
}

func callResult(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

func errnoOf(_, _ uintptr, errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func socket(family, typ, proto int) error {
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func bindTCP(port int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: port}), unix.Close(fd))
}

func writeFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func stdin([]string) error {
	sum, err := Sum(os.Stdin)
	fmt.Println(sum)
	return err
}

func flood(args []string) error {
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	errs := make(chan error, 1)
	go func() {
		_, err := io.Copy(os.Stderr, Stream(n, 2))
		errs <- err
	}()
	_, err = io.Copy(os.Stdout, Stream(n, 1))
	return errors.Join(err, <-errs)
}
