package userns

import (
	"os"
	"runtime"
	"testing"
	"time"
)

// checkLeaks fails the test if it leaves goroutines or descriptors behind.
func checkLeaks(t *testing.T) {
	t.Helper()
	files, goroutines := openFiles(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for {
			f, g := openFiles(t), runtime.NumGoroutine()
			if f <= files && g <= goroutines {
				return
			}
			if time.Now().After(deadline) {
				buf := make([]byte, 64<<10)
				t.Errorf("%d descriptors (were %d), %d goroutines (were %d)\n%s", f, files, g, goroutines, buf[:runtime.Stack(buf, true)])
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}

func openFiles(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}
