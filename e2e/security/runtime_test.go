package security

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestOverwriteBinary: a program that gets sbx itself executed inside the sandbox, and
// holds on to its file, must not be able to write to it or to change its mode
// (CVE-2019-5736 in runc). The file is the user's own, and so is root inside.
func TestOverwriteBinary(t *testing.T) {
	e := harness.New(t, harness.BB)
	own := filepath.Join(e.Dir(), "sbx")
	data, err := os.ReadFile(harness.Binary())
	must(t, err)
	must(t, os.WriteFile(own, data, 0o755))
	with := func(c *exec.Cmd) { c.Path = own }
	for _, flags := range [][]string{{"--network", "none"}, {"--network", "none", "--init"}} {
		args := slices.Concat([]string{"run", "--rm", "--name", "victim"}, flags, []string{harness.BB, "/probe", "try", "exe"})
		p := e.StartWith(with, args...)
		p.WaitOut("waiting", 10*time.Second)
		for range 200 {
			if strings.Contains(p.Result().Stdout, "holding") {
				break
			}
			e.StartWith(with, "exec", "victim", "/proc/self/exe", "--help").Wait(10 * time.Second)
		}
		p.WaitOut("holding", time.Second)
		if got := lastLine(p.Wait(10 * time.Second).Stdout); got != "EROFS" && got != "EPERM" {
			t.Errorf("with %v: %s", flags, got)
		}
		now, err := os.ReadFile(own)
		must(t, err)
		st, err := os.Stat(own)
		must(t, err)
		if sha256.Sum256(now) != sha256.Sum256(data) || st.Mode() != 0o755 {
			t.Errorf("with %v sbx was changed: mode %v, it begins with %q", flags, st.Mode(), now[:16])
		}
	}
}
