package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FuzzProcess reads what /proc says of a process. Its name and its command are the
// process's own choice.
func FuzzProcess(f *testing.F) {
	self := "/proc/" + strconv.Itoa(os.Getpid())
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		return string(b)
	}
	f.Add(read(self+"/stat"), read(self+"/cmdline"), read(self+"/status"), read("/proc/stat"))
	f.Add("7 (a) b) (c) S 1"+strings.Repeat(" 0", 30), "", "Name:\tNSpid: 1 2\nNSpid:\t1\t2\n", "btime 99999999999999999999\n")
	f.Add(") (", "\x00", "NSpid:", "btime")
	dir := filepath.Join(f.TempDir(), "7")
	if err := os.Mkdir(dir, 0o700); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, stat, cmdline, status, boot string) {
		if n := parseDepth(status); n < 0 || n > len(status) {
			t.Errorf("%d namespaces", n)
		}
		began, err := parseBoot(boot)
		if err != nil {
			began = time.Unix(1e9, 0)
		}
		for name, text := range map[string]string{"stat": stat, "cmdline": cmdline} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := readProcess(dir, began)
		if err != nil {
			return
		}
		if p.PID != 7 || strings.ContainsRune(p.Command, 0) && !strings.ContainsRune(stat, 0) {
			t.Errorf("%+v", p)
		}
		if p.TTY != "?" && !strings.HasPrefix(p.TTY, "pts/") {
			t.Errorf("terminal %q", p.TTY)
		}
	})
}
