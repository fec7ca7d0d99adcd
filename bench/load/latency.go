package load

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pingpong sends 64 bytes and waits for their echo, again and again.
func (a *agent) pingpong(r Request) (Reply, error) {
	fd, err := dial(r.Addr, header{kind: kindEcho})
	if err != nil {
		return Reply{}, err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return Reply{}, err
	}
	buf := make([]byte, 64)
	var took []time.Duration
	begin := time.Now()
	for last := begin; last.Sub(begin) < r.Warm+r.For; {
		if err := writeAll(fd, buf); err != nil {
			return Reply{}, fmt.Errorf("send: %w", err)
		}
		if err := readFull(fd, buf); err != nil {
			return Reply{}, fmt.Errorf("receive: %w", err)
		}
		now := time.Now()
		if last.Sub(begin) >= r.Warm {
			took = append(took, now.Sub(last))
		}
		last = now
	}
	return latencies(took, r.For), nil
}

func echo(fd int) {
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 || writeAll(fd, buf[:n]) != nil {
			return
		}
	}
}

// connect opens connections one after the other on each of r.Streams threads: each
// sends its header, is answered with a byte, and is closed by the server first, so
// that the client's port is free at once. One that fails is counted and costs its
// thread the time it took.
func (a *agent) connect(r Request) (Reply, error) {
	sa, family, err := sockaddr(r.Addr)
	if err != nil {
		return Reply{}, err
	}
	var wg sync.WaitGroup
	took := make([][]time.Duration, max(r.Streams, 1))
	errs := make([]error, len(took))
	var failed atomic.Int64
	begin := time.Now()
	for i := range took {
		wg.Go(func() {
			for {
				start := time.Now()
				if start.Sub(begin) >= r.Warm+r.For {
					return
				}
				if err := connectOnce(sa, family); err != nil {
					failed.Add(1)
					errs[i] = err
					continue
				}
				if start.Sub(begin) >= r.Warm {
					took[i] = append(took[i], time.Since(start))
				}
			}
		})
	}
	wg.Wait()
	rep := latencies(slices.Concat(took...), r.For)
	rep.Failed = failed.Load()
	if rep.Got == 0 {
		return rep, fmt.Errorf("no connection: %w", errors.Join(errs...))
	}
	return rep, nil
}

func connectOnce(sa unix.Sockaddr, family int) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tv := unix.Timeval{Sec: 4}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
	if err := connectFd(fd, sa); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if err := writeAll(fd, header{kind: kindOnce}.bytes()); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var b [1]byte
	if err := readFull(fd, b[:]); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	if err := readFull(fd, b[:]); err != io.ErrUnexpectedEOF {
		return fmt.Errorf("wait for the end: %v", err)
	}
	return nil
}

// connectFd connects; a signal of Go's runtime does not interrupt it.
func connectFd(fd int, sa unix.Sockaddr) error {
	err := unix.Connect(fd, sa)
	if err != unix.EINTR {
		return err
	}
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(p, 4000)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.ETIMEDOUT
		}
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			return err
		}
		if code != 0 {
			return unix.Errno(code)
		}
		return nil
	}
}

func latencies(took []time.Duration, window time.Duration) Reply {
	if len(took) == 0 {
		return Reply{}
	}
	slices.Sort(took)
	return Reply{
		Got: int64(len(took)), Rate: float64(len(took)) / window.Seconds(), Elapsed: window,
		P50: took[len(took)/2], P99: took[len(took)*99/100],
	}
}

func sockaddr(addr string) (unix.Sockaddr, int, error) {
	t, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, 0, err
	}
	if ip := t.IP.To4(); ip != nil {
		return &unix.SockaddrInet4{Port: t.Port, Addr: [4]byte(ip)}, unix.AF_INET, nil
	}
	return &unix.SockaddrInet6{Port: t.Port, Addr: [16]byte(t.IP.To16())}, unix.AF_INET6, nil
}
