package sandbox_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sink counts and hashes, and may be slow.
type sink struct {
	hash  hash.Hash
	n     int64
	delay time.Duration
}

func newSink(delay time.Duration) *sink { return &sink{hash: sha256.New(), delay: delay} }

func (s *sink) Write(p []byte) (int, error) {
	time.Sleep(s.delay)
	s.n += int64(len(p))
	return s.hash.Write(p)
}

func (s *sink) sum() string { return fmt.Sprintf("%x", s.hash.Sum(nil)) }

func TestStreamsApart(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "echo out; echo err >&2; cat; echo out2")
	cfg.Stdin = strings.NewReader("in\n")
	if o, e, st := w.output(cfg); o != "out\nin\nout2\n" || e != "err\n" || st.Code != 0 {
		t.Errorf("%q %q %+v", o, e, st)
	}
	cfg.Stdin = nil
	cfg.Cmd = []string{"sh", "-c", "readlink /proc/self/fd/0; cat | wc -c"}
	if o, _, _ := w.output(cfg); o != "/dev/null\n0\n" {
		t.Errorf("no stdin: %q", o)
	}
}

// The workload's streams block: a program that is told "try again" gives up.
func TestStreamsBlock(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "cd /proc/self/fdinfo; for i in 0 1 2; do sed -n s/^flags:.//p $i; done")
	cfg.Stdin = strings.NewReader("")
	o, e, _ := w.output(cfg)
	flags := strings.Fields(o)
	if len(flags) != 3 {
		t.Fatalf("%q %q", o, e)
	}
	for fd, f := range flags {
		var n int
		if _, err := fmt.Sscanf(f, "%o", &n); err != nil || n&unix.O_NONBLOCK != 0 {
			t.Errorf("descriptor %d: flags %s, %v", fd, f, err)
		}
	}
}

// 64 MiB in and out again, and to a slow reader, arrive whole, also when the
// workload has long gone.
func TestManyBytes(t *testing.T) {
	w := newWorld(t)
	const size = 64 << 20
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * i >> 3)
	}
	want := sha256.New()
	in := io.TeeReader(io.LimitReader(&repeat{block: block}, size), want)
	out := newSink(0)
	cfg := w.config("cat")
	cfg.Stdin, cfg.Stdout = in, out
	if st, err := w.wait(w.start(cfg)); err != nil || st.Code != 0 {
		t.Fatalf("%+v, %v", st, err)
	}
	if sum := fmt.Sprintf("%x", want.Sum(nil)); out.n != size || out.sum() != sum {
		t.Errorf("%d bytes of %d, sums %s %s", out.n, size, out.sum(), sum)
	}
	o, e := newSink(30*time.Millisecond), newSink(20*time.Millisecond)
	cfg = w.config("sh", "-c", "head -c 2000000 /dev/zero & head -c 2000000 /dev/zero >&2; wait")
	cfg.Stdout, cfg.Stderr = o, e
	if st, err := w.wait(w.start(cfg)); err != nil || st.Code != 0 || o.n != 2000000 || e.n != 2000000 {
		t.Errorf("slow reader: %+v, %v, %d and %d bytes", st, err, o.n, e.n)
	}
	// One that takes longer than the grace for each piece.
	o = newSink(400 * time.Millisecond)
	cfg = w.config("head", "-c", "200000", "/dev/zero")
	cfg.Stdout = o
	if st, err := w.wait(w.start(cfg)); err != nil || st.Code != 0 || o.n != 200000 {
		t.Errorf("very slow reader: %+v, %v, %d bytes", st, err, o.n)
	}
}

type repeat struct {
	block []byte
	off   int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.off:])
	r.off = (r.off + n) % len(r.block)
	return n, nil
}

// failing takes n bytes and no more.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errors.New("enough")
	}
	return len(p), nil
}

// A writer that fails closes the pipe: yes(1) ends by SIGPIPE and does not run on.
func TestWriterFails(t *testing.T) {
	w := newWorld(t)
	for _, tty := range []bool{false, true} {
		cfg := w.config("sh", "-c", "yes; echo after >&2; exit 9")
		cfg.Stdout, cfg.TTY = &failing{1 << 20}, tty
		var stderr bytes.Buffer
		cfg.Stderr = &stderr
		st, err := w.wait(w.start(cfg))
		if err != nil {
			t.Error(err)
		}
		if !tty && (st.Code != 9 || stderr.String() != "after\n" && !strings.Contains(stderr.String(), "after")) {
			t.Errorf("%+v %q", st, stderr.String())
		}
	}
}

// A writer that blocks keeps Wait, but neither the sandbox's resources nor Wait's
// own deadline.
func TestWriterBlocks(t *testing.T) {
	w := newWorld(t)
	r, out := io.Pipe()
	cfg := w.config("echo", "hello")
	cfg.Stdout, cfg.Name = out, "blocked"
	s := w.start(cfg)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob(filepath.Join(w.dir, "data/containers/[0-9a-f]*"))
		if err != nil || time.Now().After(end) {
			t.Fatalf("%v, %v", names, err)
		}
		if len(names) == 0 {
			break
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait: %v", err)
	}
	b, err := io.ReadAll(io.LimitReader(r, 6))
	if string(b) != "hello\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if st, err := w.wait(s); err != nil || st.Code != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// A reader is left alone at the end of the sandbox: a file is not read any more,
// and what comes later is still there for the caller.
func TestStdinLeftOver(t *testing.T) {
	w := newWorld(t)
	for _, kind := range []string{"pipe", "blocking pipe", "terminal"} {
		var r, in *os.File
		var err error
		switch kind {
		case "terminal":
			in, r, err = openPTY()
		default:
			r, in, err = os.Pipe()
			if kind == "blocking pipe" && err == nil {
				r.Fd()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		before := runtime.NumGoroutine()
		cfg := w.config("sh", "-c", "read a; echo got $a")
		cfg.Stdin = r
		var out bytes.Buffer
		cfg.Stdout = &out
		s := w.start(cfg)
		fmt.Fprintln(in, "one")
		if st, err := w.wait(s); err != nil || st.Code != 0 || out.String() != "got one\n" {
			t.Errorf("%s: %+v, %v, %q", kind, st, err, out.String())
		}
		for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the goroutine that reads stdin is still there", kind)
			}
		}
		fmt.Fprintln(in, "two")
		b := make([]byte, 10)
		if n, err := r.Read(b); string(b[:n]) != "two\n" || err != nil {
			t.Errorf("%s: the caller reads %q, %v", kind, b[:n], err)
		}
		r.Close()
		in.Close()
	}
	// The caller may close its file while the sandbox runs.
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cfg := w.config("sh", "-c", "echo; cat >/dev/null")
	cfg.Stdin = r
	s, _ := w.startReady(cfg)
	closed := make(chan error)
	go func() { closed <- r.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close of the caller's stdin hangs")
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// openPTY makes a terminal in raw mode without echo.
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, err
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	return master, slave, err
}

// A process outside that got the workload's stdout does not keep Wait.
func TestOutputHeldOutside(t *testing.T) {
	w := newWorld(t)
	cfg := w.config("sh", "-c", "echo before; exec sleep 1000")
	s, out := w.startReady(cfg)
	pidfd, err := unix.PidfdOpen(s.Info().PID, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	held, err := unix.PidfdGetfd(pidfd, 1, 0)
	if err != nil {
		t.Fatalf("pidfd_getfd: %v", err)
	}
	f := os.NewFile(uintptr(held), "held")
	defer f.Close()
	fmt.Fprintln(f, "from outside")
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	if got := out.buf.String(); got != "before\nfrom outside\n" {
		t.Errorf("%q", got)
	}
	if _, err := f.WriteString("x"); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write after the end: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	for _, init := range []bool{false, true} {
		cfg := w.config("sh", "-c", "tty; stty size; read a; echo got $a; stty size; head -c 300000 /dev/zero | tr '\\0' x; echo end")
		cfg.TTY, cfg.Rows, cfg.Cols, cfg.Init = true, 30, 100, init
		r, in := io.Pipe()
		out := newLineWriter()
		cfg.Stdin, cfg.Stdout = r, out
		s := w.create(cfg)
		if err := s.Resize(31, 101); err != nil {
			t.Error(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		out.wait(t)
		for end := time.Now().Add(20 * time.Second); !strings.Contains(out.buf.String(), "31 101"); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("size: %q", out.buf.String())
			}
		}
		if err := s.Resize(40, 120); err != nil {
			t.Error(err)
		}
		io.WriteString(in, "hello\n")
		in.Close()
		if st, err := w.wait(s); err != nil || st.Code != 0 {
			t.Errorf("%+v, %v", st, err)
		}
		got := out.buf.String()
		for _, want := range []string{"/dev/", "got hello\r\n40 120\r\n", "xend\r\n"} {
			if !strings.Contains(got, want) {
				t.Errorf("init %v: no %q in %.200q", init, want, got)
			}
		}
		if n := strings.Count(got, "x"); n != 300000 {
			t.Errorf("init %v: %d bytes of 300000", init, n)
		}
	}
}

// The end of a terminal's input, and a session that outlives its leader.
func TestTerminalEnds(t *testing.T) {
	w := newWorld(t)
	for _, command := range []string{"echo hi; exit 3", "(sleep 1000 &) ; echo hi; exit 3", "echo hi; exec 0<&- 1>&- 2>&-; sleep 0.3; exit 3"} {
		cfg := w.config("sh", "-c", command)
		cfg.TTY = true
		var out bytes.Buffer
		cfg.Stdout = &out
		st, err := w.wait(w.start(cfg))
		if err != nil || st.Code != 3 || out.String() != "hi\r\n" {
			t.Errorf("%q: %+v, %v, %q", command, st, err, out.String())
		}
	}
}
