package boxdir

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// FuzzStart reads when a process was started, whatever it calls itself.
func FuzzStart(f *testing.F) {
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(b, "name")
	}
	f.Add([]byte("1 (x) S 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0"), ") S 1 2 3 (")
	f.Add([]byte(")"), "")
	f.Fuzz(func(t *testing.T, stat []byte, name string) {
		start, ok := parseStart(stat)
		if ok && (start == "" || strings.ContainsAny(start, " \n")) {
			t.Fatalf("%q", start)
		}
		// Another name does not change it.
		if open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')'); open >= 0 && end > open {
			renamed := string(stat[:open+1]) + name + string(stat[end:])
			if again, ok2 := parseStart([]byte(renamed)); ok != ok2 || again != start {
				t.Fatalf("%q, as %q %q", start, name, again)
			}
		}
	})
}
