package streams

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pipe makes a pipe both of whose ends the poller serves.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func data(n int) []byte {
	rnd := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	rnd.Read(b)
	return b
}

func attach(t *testing.T, o *Output, kind Kind) (*os.File, <-chan struct{}) {
	t.Helper()
	r, w := pipe(t)
	gone, err := o.Attach(w, kind)
	if err != nil {
		t.Fatal(err)
	}
	return r, gone
}

func TestEveryByteToAll(t *testing.T) {
	r, w := pipe(t)
	var log syncBuffer
	o := NewOutput(r, &log)
	one, gone1 := attach(t, o, Primary)
	two, gone2 := attach(t, o, Watching)
	go o.Run()
	want := data(3 << 20)
	go func() {
		w.Write(want)
		w.Close()
	}()
	var wg sync.WaitGroup
	for _, f := range []*os.File{one, two} {
		wg.Go(func() {
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, want) {
				t.Errorf("a session got %d bytes, %v; want %d", len(got), err, len(want))
			}
		})
	}
	wg.Wait()
	<-gone1
	<-gone2
	if err := o.Drain(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(log.b.Bytes(), want) {
		t.Errorf("the log got %d bytes, want %d", log.b.Len(), len(want))
	}
}

// A session that reads nothing is let go, and neither the log nor another one
// misses a byte.
func TestStalledSession(t *testing.T) {
	r, w := pipe(t)
	var log syncBuffer
	o := NewOutput(r, &log)
	o.patience = 50 * time.Millisecond
	stalled, gone := attach(t, o, Watching)
	other, _ := attach(t, o, Watching)
	go o.Run()
	want := data(1 << 20)
	go func() {
		w.Write(want)
		w.Close()
	}()
	if got, err := io.ReadAll(other); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the other session got %d bytes, %v", len(got), err)
	}
	<-gone
	got, err := io.ReadAll(stalled)
	if err != nil || len(got) == 0 || !bytes.HasPrefix(want, got) {
		t.Errorf("the stalled session got %d bytes that are no beginning (%v)", len(got), err)
	}
	<-o.done
	if !bytes.Equal(log.b.Bytes(), want) {
		t.Error("the log misses something")
	}
}

// The primary session is waited for, and its end is the workload's.
func TestPrimary(t *testing.T) {
	r, w := pipe(t)
	o := NewOutput(r, nil)
	o.patience = time.Millisecond
	session, gone := attach(t, o, Primary)
	go o.Run()
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(data(4 << 20))
		written <- err
	}()
	buf := make([]byte, 100<<10)
	if _, err := io.ReadFull(session, buf); err != nil {
		t.Fatal(err)
	}
	session.Close()
	<-gone
	if err := <-written; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the workload's write: %v, want EPIPE", err)
	}
	<-o.done
}

// A primary session that is one no more may go.
func TestDemote(t *testing.T) {
	r, w := pipe(t)
	var log syncBuffer
	o := NewOutput(r, &log)
	session, gone := attach(t, o, Primary)
	o.Demote()
	go o.Run()
	session.Close()
	want := data(1 << 20)
	if _, err := w.Write(want); err != nil {
		t.Errorf("the workload's write: %v", err)
	}
	w.Close()
	<-gone
	if err := o.Drain(); err != nil {
		t.Error(err)
	}
	if !bytes.Equal(log.b.Bytes(), want) {
		t.Error("the log misses something")
	}
}

// A descriptor that somebody outside holds does not keep Drain.
func TestDrainHeldOutside(t *testing.T) {
	r, w := pipe(t)
	var log syncBuffer
	o := NewOutput(r, &log)
	go o.Run()
	w.Write([]byte("rest"))
	if err := o.Drain(); err != nil {
		t.Fatal(err)
	}
	if log.b.String() != "rest" {
		t.Errorf("the log has %q", log.b.String())
	}
}

func TestHangup(t *testing.T) {
	for _, kind := range []Kind{Primary, Patient, Watching} {
		r, w := pipe(t)
		o := NewOutput(r, nil)
		_, gone := attach(t, o, kind)
		go o.Run()
		written := make(chan error, 1)
		go func() {
			_, err := w.Write(data(1 << 20)) // the session takes nothing
			w.Close()
			written <- err
		}()
		time.AfterFunc(10*time.Millisecond, func() { o.Hangup(kind) })
		<-gone
		if err := <-written; errors.Is(err, syscall.EPIPE) != (kind == Primary) {
			t.Errorf("kind %d: the workload's write: %v", kind, err)
		}
		if err := o.Drain(); err != nil {
			t.Error(err)
		}
	}
}

func TestTooManySessions(t *testing.T) {
	r, _ := pipe(t)
	o := NewOutput(r, nil)
	for range MaxSessions {
		attach(t, o, Watching)
	}
	_, w := pipe(t)
	if _, err := o.Attach(w, Watching); !errors.Is(err, ErrTooMany) {
		t.Errorf("got %v", err)
	}
	go o.Run()
	r.Close()
	<-o.done
	if gone, err := o.Attach(w, Watching); err != nil {
		t.Error(err)
	} else {
		<-gone
	}
}
