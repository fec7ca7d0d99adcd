package flock

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	a, b := open(t, path), open(t, path)
	if err := Try(a, unix.LOCK_SH); err != nil {
		t.Fatal(err)
	}
	if err := Try(b, unix.LOCK_SH); err != nil {
		t.Errorf("two shared locks: %v", err)
	}
	if err := Try(b, unix.LOCK_EX); !errors.Is(err, ErrLocked) {
		t.Errorf("exclusive beside shared: %v", err)
	}
	cause := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := Wait(ctx, b, unix.LOCK_EX); !errors.Is(err, cause) {
		t.Errorf("wait with an ended context: %v", err)
	}
	got := make(chan error)
	go func() { got <- Wait(t.Context(), b, unix.LOCK_EX) }()
	a.Close()
	if err := <-got; err != nil {
		t.Errorf("wait: %v", err)
	}
	if err := Try(a, unix.LOCK_EX); err == nil || errors.Is(err, ErrLocked) {
		t.Errorf("closed file: %v", err)
	}
	if !AtPath(b, path) {
		t.Error("the file is not at its path")
	}
	os.Remove(path)
	if AtPath(b, path) {
		t.Error("a removed file is at its path")
	}
	open(t, path)
	if AtPath(b, path) {
		t.Error("a replaced file is at its path")
	}
}
