package load

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bulkBuffer is one read or write of bulk data, as in iperf3.
const bulkBuffer = 128 << 10

// bulk moves data over r.Streams connections at once, up or down.
func (a *agent) bulk(r Request) (Reply, error) {
	from := time.Now().Add(r.Warm)
	var wg sync.WaitGroup
	replies := make([]Reply, max(r.Streams, 1))
	errs := make([]error, len(replies))
	for i := range replies {
		wg.Go(func() { replies[i], errs[i] = oneStream(r, from) })
	}
	wg.Wait()
	var sum Reply
	for _, rep := range replies {
		sum.Bytes += rep.Bytes
		sum.Total += rep.Total
		sum.Rate += rep.Rate
		sum.Elapsed = max(sum.Elapsed, rep.Elapsed)
		sum.Stuck = cmp.Or(sum.Stuck, rep.Stuck)
	}
	return sum, errors.Join(errs...)
}

func oneStream(r Request, from time.Time) (Reply, error) {
	h := header{kind: kindUp, from: from, window: r.For}
	if r.Down {
		h.kind = kindDown
	}
	fd, err := dial(r.Addr, h)
	if err != nil {
		return Reply{}, err
	}
	defer unix.Close(fd)
	if r.Down {
		return receiveWindow(fd, h, func(Reply) error { return unix.Shutdown(fd, unix.SHUT_WR) })
	}

	// The server says when its window is over, but some paths carry no answer while
	// they are full: so the sender stops a little later by itself.
	patience := unix.NsecToTimeval(int64(r.Warm + r.For + 8*time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return Reply{}, err
	}
	var stop atomic.Bool
	type result struct {
		bytes int64
		err   error
	}
	sent := make(chan result, 1)
	go func() {
		n, err := send(fd, &stop, from.Add(r.For+overrun))
		sent <- result{n, err}
	}()
	rep, err := readReport(fd)
	stop.Store(true)
	if err != nil {
		unix.Shutdown(fd, unix.SHUT_RDWR)
		<-sent
		return Reply{}, fmt.Errorf("the server's report: %w", err)
	}
	s := <-sent
	if s.err != nil {
		return rep, fmt.Errorf("send: %w", s.err)
	}
	rep.Total = s.bytes
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		return rep, err
	}
	// The server closes when it has all; some paths close the other half at once. The
	// figure holds for a path that takes too long, but not for the next one on it.
	if err := readFull(fd, make([]byte, 1)); err != io.ErrUnexpectedEOF && err != unix.ECONNRESET {
		rep.Stuck = fmt.Sprintf("does not drain: %v", err)
	}
	return rep, nil
}

func serveUp(fd int, h header) {
	receiveWindow(fd, h, func(rep Reply) error { return writeReport(fd, rep) })
}

func serveDown(fd int) {
	var stop atomic.Bool
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		var b [1]byte
		for {
			n, err := unix.Read(fd, b[:])
			if err == unix.EINTR || err == unix.EAGAIN {
				continue
			}
			if n <= 0 {
				stop.Store(true)
				return
			}
		}
	}()
	send(fd, &stop, time.Time{})
	unix.Shutdown(fd, unix.SHUT_RDWR)
	<-closed
}

// overrun makes sure that something arrives after the window, which ends it.
const overrun = 20 * time.Millisecond

// send sends until it is told to stop, or until a time if that is not zero.
func send(fd int, stop *atomic.Bool, until time.Time) (sent int64, err error) {
	buf := make([]byte, bulkBuffer)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for !stop.Load() {
		if err := writeAll(fd, buf); err != nil {
			if stop.Load() {
				return sent, nil
			}
			return sent, err
		}
		sent += int64(len(buf))
		if !until.IsZero() && time.Now().After(until) {
			break
		}
	}
	return sent, nil
}

// receiveWindow reads until the end of the stream. done is called with the figures
// when the window is over; reading goes on until the sender has closed.
func receiveWindow(fd int, h header, done func(Reply) error) (Reply, error) {
	buf := make([]byte, bulkBuffer)
	rep := Reply{Elapsed: h.window}
	to := h.from.Add(h.window)
	over := false
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return rep, fmt.Errorf("receive: %w", err)
		}
		now := time.Now()
		if n == 0 {
			if !over {
				return rep, fmt.Errorf("receive: the stream ended %v before its window", to.Sub(now))
			}
			return rep, nil
		}
		rep.Total += int64(n)
		switch {
		case now.Before(h.from):
		case now.Before(to):
			rep.Bytes += int64(n)
		case !over:
			over = true
			rep.Rate = float64(rep.Bytes) * 8 / rep.Elapsed.Seconds()
			if err := done(rep); err != nil {
				return rep, err
			}
		}
	}
}

func writeReport(fd int, rep Reply) error {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(rep.Bytes))
	binary.BigEndian.PutUint64(b[8:], uint64(rep.Elapsed))
	return writeAll(fd, b[:])
}

func readReport(fd int) (Reply, error) {
	var b [16]byte
	if err := readFull(fd, b[:]); err != nil {
		return Reply{}, err
	}
	rep := Reply{
		Bytes:   int64(binary.BigEndian.Uint64(b[:])),
		Elapsed: time.Duration(binary.BigEndian.Uint64(b[8:])),
	}
	if rep.Elapsed > 0 {
		rep.Rate = float64(rep.Bytes) * 8 / rep.Elapsed.Seconds()
	}
	return rep, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		b = b[n:]
	}
	return nil
}
