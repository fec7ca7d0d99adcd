package probe

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// processAttempts reach for processes; args[0] is a pid.
var processAttempts = map[string]attempt{
	"kill":      onPID(func(pid int) error { return unix.Kill(pid, unix.SIGKILL) }),
	"kill_all":  plain(func() error { return unix.Kill(-1, unix.SIGKILL) }),
	"pidfd":     onPID(func(pid int) error { return closing(unix.PidfdOpen(pid, 0)) }),
	"attach":    onPID(attach),
	"vm_read":   onPID(readMemory),
	"proc_mem":  onPID(func(pid int) error { return openOnly("/proc/"+strconv.Itoa(pid)+"/mem", unix.O_RDWR) }),
	"proc_root": onPID(func(pid int) error { _, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/root"); return err }),
	"proc_fd":   onPID(func(pid int) error { _, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd"); return err }),
	"proc_ns":   onPID(func(pid int) error { return openOnly("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.O_RDONLY) }),
	"proc_cwd":  onPID(func(pid int) error { _, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/cwd"); return err }),
	"proc_maps": onPID(func(pid int) error { return readSome("/proc/" + strconv.Itoa(pid) + "/maps") }),
	"proc_env":  onPID(func(pid int) error { return readSome("/proc/" + strconv.Itoa(pid) + "/environ") }),
	"fd_get":    onPID(getDescriptor),
	"prlimit": onPID(func(pid int) error {
		return unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	}),
	"affinity": onPID(func(pid int) error {
		var set unix.CPUSet
		set.Set(0)
		return unix.SchedSetaffinity(pid, &set)
	}),
	"oom_adj": onPID(func(pid int) error {
		return os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("1000"), 0)
	}),
	"nice_user": plain(func() error { return unix.Setpriority(unix.PRIO_USER, os.Getuid(), 19) }),
	"nice_up":   plain(func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) }),
	"oom_never": plain(func() error { return os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0) }),
}

func onPID(f func(pid int) error) attempt {
	return func(args []string) error {
		pid, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return f(pid)
	}
}

func attach(pid int) error {
	runtime.LockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return err
	}
	return nil // our end detaches it
}

// getDescriptor takes a descriptor of a process.
func getDescriptor(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	return closing(unix.PidfdGetfd(pidfd, 0, 0))
}

// readMemory asks for a byte at an address where nothing is. EFAULT would mean that
// it was allowed to look.
func readMemory(pid int) error {
	buf := make([]byte, 1)
	_, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &buf[0], Len: 1}}, []unix.RemoteIovec{{Base: 0, Len: 1}}, 0)
	if err == unix.EFAULT {
		return nil
	}
	return err
}

// runProbe runs this program below a command, and returns what it printed.
func runProbe(command []string, args ...string) (string, error) {
	line := append(append([]string{}, command...), "/proc/self/exe")
	if len(command) > 0 { // another program's /proc/self/exe is another
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		line[len(command)] = self
	}
	cmd := exec.Command(line[0], append(line[1:], args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return strings.TrimSpace(out.String()), nil
	}
	return strings.TrimSpace(out.String()), err
}

// namedErrno is the result that another attempt printed.
func namedErrno(s string) error {
	if s == "ok" {
		return nil
	}
	for e := syscall.Errno(1); e < 200; e++ {
		if unix.ErrnoName(e) == s {
			return e
		}
	}
	if strings.Contains(s, "Operation not permitted") { // of unshare(1)
		return unix.EPERM
	}
	return errors.New(s)
}

func uintptrOf(b []byte) uintptr { return uintptr(unsafe.Pointer(&b[0])) }
