package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fa, fb, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if a, err = NewConn(fa); err != nil {
		t.Fatal(err)
	}
	if b, err = NewConn(fb); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// checkLeaks fails the test if descriptors or goroutines outlive it. Call it
// before pair, whose clean-up must come first.
func checkLeaks(t *testing.T) {
	t.Helper()
	count := func() (files, goroutines int) {
		ents, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(ents), runtime.NumGoroutine()
	}
	files, goroutines := count()
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			f, g := count()
			if f <= files && g <= goroutines {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d descriptors (were %d), %d goroutines (were %d)", f, files, g, goroutines)
				return
			}
		}
	})
}

func tempFile(t testing.TB, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestSendRecv(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	for _, size := range []int{0, 1, maxDatagram/2 - 3, maxDatagram/2 - 2, maxDatagram / 2, 1 << 20, maxBody - 2} {
		body := strings.Repeat("x", size)
		f := tempFile(t, "one")
		if err := a.Send("hello", body, File{"first", f}, File{"second", f}); err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		m, err := b.Recv()
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		var got string
		if err := m.Decode(&got); err != nil || got != body || m.Type != "hello" || m.Spill != (size+2 > maxDatagram/2) {
			t.Fatalf("%d bytes: got %d, type %q, spill %v, %v", size, len(got), m.Type, m.Spill, err)
		}
		r, err := m.Take("second")
		if err != nil {
			t.Fatal(err)
		}
		if flags, err := unix.FcntlInt(r.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("the received descriptor is not close-on-exec (%v)", err)
		}
		buf := make([]byte, 8)
		if n, _ := r.ReadAt(buf, 0); string(buf[:n]) != "one" {
			t.Errorf("the descriptor reads %q", buf[:n])
		}
		r.Close()
		if _, err := m.Take("second"); err == nil {
			t.Error("taken twice")
		}
		if _, err := m.Take("third"); err == nil {
			t.Error("took what was not sent")
		}
		m.CloseFiles()
		m.CloseFiles()
	}
}

func TestSendLimits(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	f := tempFile(t, "")
	closed := tempFile(t, "")
	closed.Close()
	many := make([]File, maxFiles)
	for i := range many {
		many[i] = File{"f", f}
	}
	for name, err := range map[string]error{
		"body":        a.Send("x", strings.Repeat("x", maxBody)),
		"descriptors": a.Send("x", nil, many...),
		"closed file": a.Send("x", nil, File{"f", closed}),
		"unmarshal":   a.Send("x", make(chan int)),
		"names":       a.Send("x", nil, File{strings.Repeat("n", maxDatagram), f}),
	} {
		if err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	// The connection still works, and the largest number of descriptors with a
	// spilled body is accepted.
	if err := a.Send("last", strings.Repeat("x", maxDatagram), many[1:]...); err != nil {
		t.Fatal(err)
	}
	m, err := b.Recv()
	if err != nil || m.Type != "last" || len(m.fds) != maxFiles-1 {
		t.Fatalf("%+v, %v", m, err)
	}
	m.CloseFiles()
}

// Sending a descriptor leaves its blocking mode alone.
func TestSendKeepsNonblock(t *testing.T) {
	a, _ := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := a.Send("x", nil, File{"r", r}); err != nil {
		t.Fatal(err)
	}
	fd, err := rawFd(r)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

func TestEOF(t *testing.T) {
	checkLeaks(t)
	t.Run("closed", func(t *testing.T) {
		a, b := pair(t)
		a.Close()
		if _, err := b.Recv(); err != io.EOF {
			t.Errorf("Recv: %v", err)
		}
		if err := b.Send("x", nil); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Send: %v", err)
		}
	})
	// The other side dies without reading what we sent: its last words must still
	// be heard, although the kernel reports a reset first.
	t.Run("last words", func(t *testing.T) {
		a, b := pair(t)
		if err := b.Send("unread", nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.Send("error", "why", File{"f", tempFile(t, "")}); err != nil {
				t.Fatal(err)
			}
		}
		a.Close()
		for range 2 {
			m, err := b.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var why string
			if err := m.Decode(&why); err != nil || why != "why" {
				t.Errorf("%q, %v", why, err)
			}
			m.CloseFiles()
		}
		if _, err := b.Recv(); err != io.EOF {
			t.Errorf("Recv: %v", err)
		}
	})
	t.Run("own end", func(t *testing.T) {
		a, _ := pair(t)
		done := make(chan error)
		go func() { done <- a.Serve(func(*Message) {}) }()
		a.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		a, _ := pair(t)
		if err := a.SetReadDeadline(time.Now()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Recv(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("Recv: %v", err)
		}
	})
}

// raw sends bytes and descriptors as a hostile peer might.
func raw(t *testing.T, c *Conn, b []byte, files ...*os.File) {
	t.Helper()
	var fds []int
	for _, f := range files {
		fd, err := rawFd(f)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
	}
	var oob []byte
	if fds != nil {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.uc.WriteMsgUnix(b, oob, nil); err != nil {
		t.Fatal(err)
	}
}

func TestRecvHostile(t *testing.T) {
	checkLeaks(t)
	f := tempFile(t, "not sealed")
	unsealed, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	mem := os.NewFile(uintptr(unsealed), "unsealed")
	defer mem.Close()
	huge, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	big := os.NewFile(uintptr(huge), "huge")
	defer big.Close()
	if err := big.Truncate(maxBody + 1); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(huge), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		t.Fatal(err)
	}
	var many []*os.File
	for range maxFiles + 1 {
		many = append(many, f)
	}
	for _, tc := range []struct {
		name, text string
		files      []*os.File
		want       error
	}{
		{name: "no JSON", text: "hello"},
		{name: "other version", text: `{"v":2,"t":"x"}`, want: ErrVersion},
		{name: "no version", text: `{"t":"x"}`, want: ErrVersion},
		{name: "unnamed descriptor", text: `{"v":1,"t":"x"}`, files: []*os.File{f}},
		{name: "missing descriptor", text: `{"v":1,"t":"x","files":["a","b"]}`, files: []*os.File{f}},
		{name: "missing body", text: `{"v":1,"t":"x","spill":true}`},
		{name: "body is a file", text: `{"v":1,"t":"x","spill":true}`, files: []*os.File{f}},
		{name: "body not sealed", text: `{"v":1,"t":"x","spill":true}`, files: []*os.File{mem}},
		{name: "body too large", text: `{"v":1,"t":"x","spill":true}`, files: []*os.File{big}},
		{name: "too long", text: `{"v":1,"t":"` + strings.Repeat("x", maxDatagram) + `"}`, files: []*os.File{f}},
		{name: "too many descriptors", text: `{"v":1,"t":"x"}`, files: many},
		{name: "too many names", text: `{"v":1,"t":"x","files":[` + strings.Repeat(`"",`, 1000) + `""]}`},
		{name: "empty", text: "", files: nil, want: io.EOF},
		{name: "one zero byte with a descriptor", text: "\x00", files: []*os.File{f}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := pair(t)
			raw(t, a, []byte(tc.text), tc.files...)
			m, err := b.Recv()
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %+v, %v", m, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"v":1,"t":"mapped","b":{"files":2}}`, `{"v":1,"t":"x","id":3,"re":true,"err":{"errno":13,"msg":"no"}}`,
		`{"v":1,"t":"x","files":["a","b"],"spill":true}`, `{"v":1,"b":null}`, `[`, `{"v":1,"err":{"errno":-1}}`, `{"v":1,"id":1e99}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		if len(m.Files) > maxFiles || m.V != Version {
			t.Fatalf("accepted %+v", m)
		}
		if _, err := m.Take("a"); err == nil {
			t.Fatal("took a descriptor that was not there")
		}
		m.CloseFiles()
		var v any
		_ = m.Decode(&v) // must not panic; the body may be anything
		if m.Err != nil {
			_ = m.Err.Error()
			if c, err := json.Marshal(m.Err.clip()); err != nil || len(c) > maxDatagram-1024 {
				t.Fatalf("clipped to %d bytes, %v", len(c), err)
			}
		}
		// What we accept we can send on.
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parse(out); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}

type echo struct{ N int }

func serveEcho(c *Conn) chan error {
	done := make(chan error, 1)
	go func() {
		done <- c.Serve(func(m *Message) {
			var e echo
			err := m.Decode(&e)
			if err == nil && e.N < 0 {
				err = fmt.Errorf("read it: %w", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES})
			}
			switch m.Type {
			case "echo":
				c.Reply(m, e, err)
			case "file":
				if f, err := m.Take("f"); err == nil {
					c.Reply(m, e, nil, File{"back", f})
					f.Close()
				} else {
					c.Reply(m, nil, err)
				}
			}
		})
	}()
	return done
}

func TestCall(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	serving, calling := serveEcho(b), make(chan error, 1)
	go func() { calling <- a.Serve(func(m *Message) { t.Errorf("message %q", m.Type) }) }()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			var e echo
			m, err := a.Call(t.Context(), "echo", echo{i}, &e)
			if err != nil || e.N != i {
				t.Errorf("%d: %d, %v", i, e.N, err)
				return
			}
			m.CloseFiles()
		})
	}
	wg.Wait()
	if _, err := a.Call(t.Context(), "echo", echo{-1}, nil); !errors.Is(err, syscall.EACCES) || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error: %v", err)
	}
	if _, err := a.Call(t.Context(), "echo", "not an object", nil); err == nil {
		t.Error("no error for a bad body")
	}
	f := tempFile(t, "there and back")
	m, err := a.Call(t.Context(), "file", nil, nil, File{"f", f})
	if err != nil {
		t.Fatal(err)
	}
	back, err := m.Take("back")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 32)
	if n, _ := back.ReadAt(got, 0); string(got[:n]) != "there and back" {
		t.Errorf("read %q", got[:n])
	}
	back.Close()
	if len(a.pending) != 0 {
		t.Errorf("%d calls are still pending", len(a.pending))
	}
	a.Close()
	if err := <-serving; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-calling; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := a.Call(t.Context(), "echo", nil, nil); err == nil {
		t.Error("call after the end")
	}
}

func TestCallAbandoned(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	calling := make(chan error, 1)
	go func() { calling <- a.Serve(func(*Message) {}) }()
	f := tempFile(t, "")

	// The caller gives up; the late reply's descriptor must be closed.
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := a.Call(ctx, "slow", nil, nil)
		result <- err
	}()
	m, err := b.Recv()
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Call: %v", err)
	}
	if err := b.Reply(m, nil, nil, File{"f", f}); err != nil {
		t.Fatal(err)
	}

	// The callee dies while a call waits.
	go func() {
		_, err := a.Call(t.Context(), "never", nil, nil)
		result <- err
	}()
	if _, err := b.Recv(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := <-result; !errors.Is(err, io.EOF) {
		t.Errorf("Call: %v", err)
	}
	if err := <-calling; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// Calls and replies race with their own cancellation; nothing may leak.
func TestCallCancelRace(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	serving, calling := serveEcho(b), make(chan error, 1)
	go func() { calling <- a.Serve(func(*Message) {}) }()
	f := tempFile(t, "")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*10*time.Microsecond)
			defer cancel()
			m, err := a.Call(ctx, "file", nil, nil, File{"f", f})
			if err == nil {
				m.CloseFiles()
			} else if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	a.Close()
	<-serving
	<-calling
}

// A peer that does not read costs the caller no more than his patience, and the
// next writer gets through once it reads again.
func TestSendBlocked(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	body := strings.Repeat("x", maxDatagram/4)
	var err error
	sent := 0
	for ; sent < 10000; sent++ {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err = a.send(ctx, &Message{V: Version, Type: "x"}, body, nil)
		cancel()
		if err != nil {
			break
		}
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("after %d messages: %v", sent, err)
	}
	for range sent {
		if _, err := b.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Send("y", nil); err != nil {
		t.Fatal(err)
	}
	if m, err := b.Recv(); err != nil || m.Type != "y" {
		t.Errorf("%v, %v", m, err)
	}
}

// An error that is too large for a datagram is shortened: the caller must get an
// answer.
func TestReplyHugeError(t *testing.T) {
	a, b := pair(t)
	for _, fill := range []string{"x", "\x01", "é", "\xff"} {
		e := &Error{Code: "panic", Step: strings.Repeat(fill, 70000), Msg: strings.Repeat(fill, 70000), Stack: strings.Repeat(fill, 1<<20), Path: strings.Repeat(fill, 70000), Errno: syscall.EIO}
		if err := a.Reply(&Message{Type: "x", ID: 1}, nil, e); err != nil {
			t.Fatalf("%q: %v", fill, err)
		}
		m, err := b.Recv()
		if err != nil || m.Err == nil || m.Err.Errno != syscall.EIO || m.Err.Code != "panic" || m.Err.Stack == "" {
			t.Errorf("%q: %+v, %v", fill, m, err)
		}
	}
}

func TestPeer(t *testing.T) {
	a, _ := pair(t)
	if peer, err := a.Peer(); err != nil || int(peer.Uid) != os.Getuid() || int(peer.Pid) != os.Getpid() {
		t.Errorf("%+v, %v", peer, err)
	}
}

func TestNewConnRejects(t *testing.T) {
	checkLeaks(t)
	if _, err := NewConn(tempFile(t, "")); err == nil {
		t.Error("took a file for a socket")
	}
}

func BenchmarkCall(b *testing.B) {
	x, y := pair(b)
	serveEcho(y)
	go x.Serve(func(*Message) {})
	for b.Loop() {
		if _, err := x.Call(b.Context(), "echo", echo{1}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
