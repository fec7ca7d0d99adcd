package wire

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// polled tells whether a descriptor is in one of the process's epoll sets.
func polled(t *testing.T, fd int) bool {
	t.Helper()
	sets, err := filepath.Glob("/proc/self/fdinfo/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range sets {
		b, err := os.ReadFile(set)
		if os.IsNotExist(err) { // that of the listing
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			var n int
			if _, err := fmt.Sscanf(line, "tfd: %d", &n); err == nil && n == fd {
				return true
			}
		}
	}
	return false
}

// A link that is kept must wake nobody at each frame.
func TestTakeHandle(t *testing.T) {
	checkLeaks(t)
	a, b := pair(t)
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	defer w.Close()
	if err := a.Send("two", nil, File{"kept", w}, File{"used", w}); err != nil {
		t.Fatal(err)
	}
	m, err := b.Recv()
	if err != nil {
		t.Fatal(err)
	}
	defer m.CloseFiles()
	used, err := m.Take("used")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	kept, err := m.TakeHandle("kept")
	if err != nil {
		t.Fatal(err)
	}
	if fd, err := rawFd(used); err != nil || !polled(t, fd) {
		t.Errorf("a file that is used is not in the poller: %v", err)
	}
	if fd, err := rawFd(kept); err != nil || polled(t, fd) {
		t.Errorf("a handle is in the poller: %v", err)
	}
	// It is sent as any other one.
	if err := b.Send("back", nil, File{"kept", kept}); err != nil {
		t.Fatal(err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	back, err := a.Recv()
	if err != nil {
		t.Fatal(err)
	}
	f, err := back.Take("kept")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := m.TakeHandle("kept"); err == nil {
		t.Error("taken twice")
	}
}
