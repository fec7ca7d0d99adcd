package probe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func get(args []string) error {
	resp, err := http.Get(args[0])
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// Client has one connection per request, so that every transfer makes its own way.
func Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, ReadBufferSize: 256 << 10, WriteBufferSize: 256 << 10}}
}

// Down fetches n bytes of seed from base/bytes and compares them with what they should be.
func Down(base string, n int64, seed uint64) error {
	want, err := Sum(Stream(n, seed))
	if err != nil {
		return err
	}
	resp, err := Client().Get(fmt.Sprintf("%s/bytes?n=%d&seed=%d", base, n, seed))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := Sum(resp.Body)
	if err != nil {
		return fmt.Errorf("after %s: %w", got, err)
	}
	if got != want {
		return fmt.Errorf("received %s, sent %s", got, want)
	}
	return nil
}

// Up sends n bytes of seed to base/sum and compares the sum it is told.
func Up(base string, n int64, seed uint64) error {
	req, err := http.NewRequest(http.MethodPost, base+"/sum", Stream(n, seed))
	if err != nil {
		return err
	}
	req.ContentLength = n
	resp, err := Client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	want, err := Sum(Stream(n, seed))
	if err != nil {
		return err
	}
	if s := strings.TrimSpace(string(got)); s != want {
		return fmt.Errorf("received %s, sent %s", s, want)
	}
	return nil
}

func transferArgs(args []string) (int64, uint64, error) {
	n, err1 := strconv.ParseInt(args[1], 10, 64)
	seed, err2 := strconv.ParseUint(args[2], 10, 64)
	return n, seed, errors.Join(err1, err2)
}

func down(args []string) error {
	n, seed, err := transferArgs(args)
	if err != nil {
		return err
	}
	return Down(args[0], n, seed)
}

func up(args []string) error {
	n, seed, err := transferArgs(args)
	if err != nil {
		return err
	}
	return Up(args[0], n, seed)
}

// dial prints "ok MS" or "ERRNO MS"; errnos are spelt as in errno(3).
func dial(args []string) error {
	start := time.Now()
	c, err := net.DialTimeout(args[0], args[1], 5*time.Second)
	word := "ok"
	if err != nil {
		word = errnoName(err)
	} else if args[0] == "udp" {
		word = udpAnswer(c)
	}
	fmt.Println(word, time.Since(start).Milliseconds())
	if c != nil {
		return c.Close()
	}
	return nil
}

// udpAnswer sends a datagram and says what came back, which may be an ICMP error.
func udpAnswer(c net.Conn) string {
	buf := make([]byte, 100)
	for range 2 { // the second write meets the error that the first one caused
		if _, err := c.Write([]byte("probe")); err != nil {
			return errnoName(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return err.Error()
		}
		if _, err := c.Read(buf); err == nil {
			return "ok"
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			return errnoName(err)
		}
	}
	return "ETIMEDOUT"
}

func errnoName(err error) string {
	names := map[syscall.Errno]string{
		syscall.ECONNREFUSED: "ECONNREFUSED", syscall.ENETUNREACH: "ENETUNREACH", syscall.EHOSTUNREACH: "EHOSTUNREACH",
		syscall.ETIMEDOUT: "ETIMEDOUT", syscall.ECONNRESET: "ECONNRESET", syscall.EACCES: "EACCES", syscall.EPERM: "EPERM",
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if n := names[errno]; n != "" {
			return n
		}
		return fmt.Sprintf("E%d", int(errno))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "ETIMEDOUT"
	}
	return strings.ReplaceAll(err.Error(), " ", "-")
}

func many(args []string) error {
	n, err1 := strconv.Atoi(args[1])
	par, err2 := strconv.Atoi(args[2])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	return Many(args[0], n, par)
}

// Many makes n short connections to an echo server, par at once, and returns the first errors.
func Many(addr string, n, par int) error {
	work := make(chan int)
	var mu sync.Mutex
	var errs []error
	failed := 0
	var wg sync.WaitGroup
	for range par {
		wg.Go(func() {
			for i := range work {
				if err := exchange(addr, fmt.Appendf(nil, "connection %d", i)); err != nil {
					mu.Lock()
					if failed++; failed <= 5 {
						errs = append(errs, fmt.Errorf("connection %d: %w", i, err))
					}
					mu.Unlock()
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
	if failed > 0 {
		return fmt.Errorf("%d of %d connections failed: %w", failed, n, errors.Join(errs...))
	}
	return nil
}

func exchange(addr string, msg []byte) error {
	c, err := net.DialTimeout("tcp", addr, 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(msg); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}

// talk goes on until the connection fails. Its server may not be there yet.
func talk(args []string) error {
	network := "tcp"
	if len(args) > 1 {
		network = args[1]
	}
	c, err := net.DialTimeout(network, args[0], 20*time.Second)
	for end := time.Now().Add(patience); errors.Is(err, syscall.ECONNREFUSED) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		c, err = net.DialTimeout(network, args[0], 20*time.Second)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	buf := make([]byte, 5)
	for n := 1; ; n++ {
		if err := c.SetDeadline(time.Now().Add(10 * time.Minute)); err != nil {
			return err
		}
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		fmt.Println("answer", n)
		time.Sleep(20 * time.Millisecond)
	}
}

func udp(args []string) error {
	var sizes []int
	for _, a := range args[1:] {
		n, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		sizes = append(sizes, n)
	}
	return UDP(args[0], sizes)
}

func cast(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", args[0]) // Go allows broadcasts
	if err != nil {
		return err
	}
	defer c.Close()
	for range n {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

// UDP sends a datagram of each size to an echo server and compares the answers.
// It tries each size three times: a datagram may be lost. One that was answered
// before may come again, for the network may double it; any other is an error.
func UDP(addr string, sizes []int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	var earlier [][]byte
	for _, size := range sizes {
		want, err := io.ReadAll(Stream(int64(size), uint64(size)))
		if err != nil {
			return err
		}
		for range 3 {
			if _, err = c.Write(want); err != nil {
				break
			}
			if err = answer(c, want, earlier); !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("datagram of %d bytes: %w", size, err)
		}
		earlier = append(earlier, want)
	}
	return nil
}

// answer reads until want has come, for two seconds.
func answer(c net.Conn, want []byte, earlier [][]byte) error {
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return err
		}
		got := buf[:n]
		if bytes.Equal(got, want) {
			return nil
		}
		if !slices.ContainsFunc(earlier, func(e []byte) bool { return bytes.Equal(e, got) }) {
			return fmt.Errorf("got %d other bytes back", n)
		}
	}
}
