package probe

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"time"
)

// pace asks an echo server for what it gives in so many milliseconds, twice: pace ADDR
// MS. It prints how many round trips of a byte there were, their median and 99th
// percentile in microseconds, and how many bytes of a stream came back.
func pace(args []string) error {
	ms, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	window := time.Duration(ms) * time.Millisecond
	took, err := rounds(args[0], window)
	if err != nil {
		return err
	}
	bytes, err := stream(args[0], window)
	if err != nil {
		return err
	}
	slices.Sort(took)
	n := len(took)
	fmt.Println(n, took[n/2].Microseconds(), took[n*99/100].Microseconds(), bytes)
	return nil
}

// rounds sends a byte, waits for it, and so on.
func rounds(addr string, window time.Duration) (took []time.Duration, err error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	until := time.Now().Add(window)
	b := []byte{1}
	for now := time.Now(); len(took) == 0 || now.Before(until); {
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return nil, err
		}
		next := time.Now()
		took = append(took, next.Sub(now))
		now = next
	}
	return took, nil
}

// stream counts what comes back.
func stream(addr string, window time.Duration) (int64, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(window)); err != nil {
		return 0, err
	}
	go func() {
		for b := make([]byte, 256<<10); ; {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, fmt.Errorf("after %d bytes: %w", n, err)
	}
	return n, nil
}
