package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An order is a command that a process of another account runs for the tests, which could
// not become that account themselves: scripts/as-user, as root, starts it before them.
type order struct {
	Args []string // "probe" is this program
	Env  []string // beside its own
}

// outcome is what came of it.
type outcome struct {
	Out  string // of both streams
	Code int
	Err  string // it could not be run
}

// obey takes orders of one user at a Unix socket, one a connection.
func obey(args []string) error {
	uid, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", args[0])
	if err != nil {
		return err
	}
	if err := os.Chmod(args[0], 0o666); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := obeyOne(c.(*net.UnixConn), uid); err != nil {
				fmt.Fprintln(os.Stderr, "probe: obey:", err)
			}
		}()
	}
}

func obeyOne(c *net.UnixConn, uid int) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var perr error
	if err := rc.Control(func(fd uintptr) { peer, perr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || perr != nil {
		return errors.Join(err, perr)
	}
	if int(peer.Uid) != uid {
		return fmt.Errorf("user %d is not user %d", peer.Uid, uid)
	}
	var o order
	if err := json.NewDecoder(c).Decode(&o); err != nil || len(o.Args) == 0 {
		return fmt.Errorf("an order of %d words: %w", len(o.Args), err)
	}
	cmd := exec.Command(o.Args[0], o.Args[1:]...)
	if o.Args[0] == "probe" {
		cmd = &exec.Cmd{Path: "/proc/self/exe", Args: o.Args}
	}
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/", append(os.Environ(), o.Env...), 5*time.Second
	out, err := cmd.CombinedOutput()
	res := outcome{Out: string(out)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		res.Code = exit.ExitCode()
	} else if err != nil {
		res.Err = err.Error()
	}
	return json.NewEncoder(c).Encode(res)
}

// Command has the process that obeys at a socket run a command, and returns what it has
// written and its status.
func Command(socket string, env []string, args ...string) (string, int, error) {
	c, err := net.Dial("unix", socket)
	for end := time.Now().Add(10 * time.Second); err != nil && time.Now().Before(end); c, err = net.Dial("unix", socket) {
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return "", 0, err
		}
		time.Sleep(20 * time.Millisecond) // it has just been started
	}
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(order{args, env}); err != nil {
		return "", 0, err
	}
	var res outcome
	if err := json.NewDecoder(c).Decode(&res); err != nil {
		return "", 0, err
	}
	if res.Err != "" {
		return "", 0, errors.New(res.Err)
	}
	return res.Out, res.Code, nil
}
