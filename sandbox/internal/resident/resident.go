// Package resident makes a process of sbx small once it has started. Most of what
// is resident then is code that only the start has run: pages of the binary, which
// stay in the page cache and are mapped again when they are needed.
package resident

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// settled is how long a process is left alone before it is trimmed: a sandbox that
// ends sooner would only have to map the pages again. One that is never left alone, as
// by a health check each second, is trimmed after patience.
const (
	settled  = 2 * time.Second
	patience = 3 * time.Second
)

var (
	mu    sync.Mutex
	timer *time.Timer // of the process, which has one memory
	first time.Time   // call that the timer has not run for yet
)

// TrimLater trims this process when nobody has called it for a while: whoever does
// something now and then calls it each time.
func TrimLater() {
	mu.Lock()
	defer mu.Unlock()
	if first.IsZero() {
		first = time.Now()
	}
	wait := min(settled, time.Until(first.Add(patience)))
	if timer == nil {
		timer = time.AfterFunc(wait, func() {
			mu.Lock()
			first = time.Time{}
			mu.Unlock()
			Trim()
		})
		return
	}
	timer.Reset(wait)
}

// Trim gives the free heap back and unmaps the pages of the program's file. Where
// /proc cannot be read they stay.
func Trim() {
	debug.FreeOSMemory()
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, a := range fileOnly(f, exe) {
		// Refused at worst, and then they stay.
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, a.begin, a.end-a.begin, unix.MADV_DONTNEED)
	}
}

type area struct{ begin, end uintptr }

// fileOnly are the areas of file in smaps that cannot be written and hold no page
// that differs from the file: a relocation, a debugger's breakpoint.
func fileOnly(smaps io.Reader, file string) (list []area) {
	var a area
	candidate := false
	for sc := bufio.NewScanner(smaps); sc.Scan(); {
		line := sc.Bytes()
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && bytes.IndexByte(key, ' ') < 0 {
			if candidate && string(key) == "Anonymous" && string(bytes.TrimSpace(value)) == "0 kB" {
				list = append(list, a)
			}
			continue
		}
		var mode, offset, dev, inode string
		n, err := fmt.Sscanf(sc.Text(), "%x-%x %s %s %s %s", &a.begin, &a.end, &mode, &offset, &dev, &inode)
		candidate = err == nil && n == 6 && mode[1] == '-' && strings.HasSuffix(sc.Text(), " "+file)
	}
	return list
}
