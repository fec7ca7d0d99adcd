package probe

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// callAttempts are system calls that ask the kernel for too much.
var callAttempts = map[string]attempt{
	"sethost":   plain(func() error { return unix.Sethostname([]byte("changed")) }),
	"setdomain": plain(func() error { return unix.Setdomainname([]byte("changed")) }),
	"chown":     plain(func() error { return os.Chown("/tmp", 1, 1) }),
	"ptrace":    call(unix.SYS_PTRACE, 999),
	"bpf":       call(unix.SYS_BPF, 999),
	"bpf_prog":  plain(bpfProgram),
	"perf":      plain(perfEvent),
	"uffd":      call(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|uffdUserModeOnly),
	"io_uring":  plain(ioURing),
	"keyctl":    plain(func() error { _, err := unix.KeyctlInt(unix.KEYCTL_GET_KEYRING_ID, -3, 0, 0, 0); return err }),
	"add_key": plain(func() error {
		_, err := unix.AddKey("user", "sbx-probe", []byte("x"), unix.KEY_SPEC_SESSION_KEYRING)
		return err
	}),
	"req_key": plain(func() error {
		_, err := unix.RequestKey("user", "sbx-canary", "", unix.KEY_SPEC_SESSION_KEYRING)
		return err
	}),
	"reboot":     plain(func() error { return unix.Reboot(0) }),
	"settime":    plain(func() error { return unix.Settimeofday(&unix.Timeval{Sec: -1}) }),
	"clock_set":  plain(func() error { return unix.ClockSettime(unix.CLOCK_REALTIME, &unix.Timespec{Sec: -1}) }),
	"adjtime":    plain(func() error { _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: 1}); return err }),
	"init_mod":   plain(func() error { return unix.InitModule(nil, "") }),
	"finit_mod":  plain(func() error { return unix.FinitModule(-1, "", 0) }),
	"delete_mod": plain(func() error { return unix.DeleteModule("sbx-no-such-module", 0) }),
	"kexec":      call(unix.SYS_KEXEC_LOAD),
	"kexec_file": call(unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0)),
	"open_by_fh": call(unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0)),
	"swapon":     plain(func() error { return errnoOf(unix.Syscall(unix.SYS_SWAPON, bytePtr("/tmp"), 0, 0)) }),
	"acct":       plain(func() error { return unix.Acct("/tmp/acct") }),
	"syslog":     plain(func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, make([]byte, 64)); return err }),
	"iopl":       plain(func() error { return rawIO(3) }),
	"fanotify":   plain(fanotify),
	"quotactl":   call(unix.SYS_QUOTACTL, quotaSync),
	"personality": func([]string) error {
		return errnoOf(unix.Syscall(unix.SYS_PERSONALITY, noRandomize, 0, 0))
	},
	"clone3":        call(unix.SYS_CLONE3),
	"x32":           call(unix.SYS_GETPID | x32Bit),
	"unshare":       plain(func() error { return unix.Unshare(unix.CLONE_NEWUSER) }),
	"unshare_net":   plain(func() error { return unix.Unshare(unix.CLONE_NEWNET) }),
	"clone_user":    plain(cloneUser),
	"setns_self":    plain(func() error { return setns("/proc/self/ns/user", "/proc/self/ns/mnt", "/proc/self/ns/net") }),
	"setns_one":     plain(func() error { return setns("/proc/1/ns/user", "/proc/1/ns/mnt", "/proc/1/ns/pid", "/proc/1/ns/net") }),
	"realtime":      plain(realtime),
	"rlimit_raise":  plain(raiseLimit),
	"numa_policy":   call(unix.SYS_MIGRATE_PAGES, 1),
	"cap_raise":     plain(raiseCaps),
	"securebits":    call(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 1),
	"mm_map":        call(unix.SYS_PRCTL, unix.PR_SET_MM, 1, 0x10000),
	"low_port":      plain(func() error { return bindTCP(80) }),
	"lookup_cookie": call(unix.SYS_LOOKUP_DCOOKIE),
}

const (
	uffdUserModeOnly = 1
	quotaSync        = 0x80000100 // Q_SYNC << 8
	x32Bit           = 0x40000000
	noRandomize      = 0x0040000 // ADDR_NO_RANDOMIZE
)

func bytePtr(s string) uintptr {
	p, _ := unix.BytePtrFromString(s) // no NUL in any of ours
	return uintptr(unsafe.Pointer(p))
}

// bpfProgram loads the smallest socket filter there is: return 0.
func bpfProgram() error {
	insns := [2]uint64{0x00000000000000b7, 0x0000000000000095} // mov r0, 0; exit
	license := [4]byte{'G', 'P', 'L'}
	attr := struct {
		typ, count     uint32
		insns, license uint64
		_              [96]byte
	}{typ: unix.BPF_PROG_TYPE_SOCKET_FILTER, count: 2, insns: uint64(uintptr(unsafe.Pointer(&insns))), license: uint64(uintptr(unsafe.Pointer(&license)))}
	err := errnoOf(unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)))
	runtime.KeepAlive(&insns)
	return err
}

// perfEvent counts the machine's own cycles, not only this process's.
func perfEvent() error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{}))}
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func ioURing() error {
	var params [120]byte
	return errnoOf(unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&params)), 0))
}

func fanotify() error {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// cloneUser starts a child in a user namespace of its own.
func cloneUser() error {
	cmd := exec.Command("/proc/self/exe", "exit", "0")
	cmd.Args[0] = "probe"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	return cmd.Run()
}

// setns joins the first of the namespaces that lets it in.
func setns(files ...string) (err error) {
	runtime.LockOSThread() // and is never unlocked: the thread ends with us
	for _, file := range files {
		fd, oerr := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if oerr != nil {
			err = oerr
			continue
		}
		if err = unix.Setns(fd, 0); err == nil {
			return nil
		}
		unix.Close(fd)
	}
	return err
}

func realtime() error {
	runtime.LockOSThread()
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 99}, 0)
}

func raiseLimit() error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Max++
	return unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
}

// raiseCaps wants every capability there is.
func raiseCaps() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	all := [2]unix.CapUserData{{Effective: ^uint32(0), Permitted: ^uint32(0)}, {Effective: 0x1ff, Permitted: 0x1ff}}
	return unix.Capset(&hdr, &all[0])
}
