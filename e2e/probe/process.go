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

// reread reads a file past the page cache for ever.
func reread(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	const size = 64 << 10
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return err
	}
	for off := int64(0); ; off += size {
		n, err := f.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return err
		}
		if n < size {
			off = -size // from the beginning again
		}
	}
}
