package probe

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// floodAttempts want more than their share; args[0] is how much.
var floodAttempts = map[string]attempt{
	"forks":   withCount(forks),
	"inotify": withCount(func(n int) error { return open(n, func() (int, error) { return unix.InotifyInit1(unix.IN_CLOEXEC) }) }),
	"files": withCount(func(n int) error {
		return open(n, func() (int, error) { return unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	}),
	"namespaces": withCount(namespaces),
	"memory":     withCount(memory),
	"fill":       fill,
}

func withCount(f func(n int) error) attempt {
	return func(args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return f(n)
	}
}

// forks wants n processes at once.
func forks(n int) (err error) {
	r, w, err := os.Pipe() // its end ends them all
	if err != nil {
		return err
	}
	defer r.Close()
	var children []*os.Process
	for range n {
		var p *os.Process
		p, err = os.StartProcess("/proc/self/exe", []string{"probe", "stdin"}, &os.ProcAttr{Files: []*os.File{r, nil, nil}})
		if err != nil {
			break
		}
		children = append(children, p)
	}
	w.Close()
	for _, p := range children {
		if _, werr := p.Wait(); werr != nil {
			return werr
		}
	}
	return err
}

// open wants n descriptors.
func open(n int, f func() (int, error)) error {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	l.Cur = l.Max
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, (*syscall.Rlimit)(&l)); err != nil {
		return err
	}
	for range n {
		if _, err := f(); err != nil {
			return err
		}
	}
	return nil
}

// namespaces wants n user namespaces at once. Each lives as long as its descriptor.
func namespaces(n int) error {
	for range n {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Args, cmd.Stdin = []string{"probe", "stdin"}, r
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
		err = cmd.Start()
		r.Close()
		if err != nil {
			return err
		}
		fd, err := unix.Open("/proc/"+strconv.Itoa(cmd.Process.Pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		w.Close()
		if err := cmd.Wait(); err != nil {
			return err
		}
		defer unix.Close(fd)
	}
	return nil
}

// memory wants n MiB.
func memory(n int) error {
	b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return nil
}

// fill wants args[0] MiB in the file args[1].
func fill(args []string) error {
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Create(args[1])
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, Stream(n<<20, 1), n<<20)
	return errors.Join(err, f.Close(), os.Remove(args[1]))
}
