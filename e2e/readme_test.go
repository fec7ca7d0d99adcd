package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestReadme runs the session of the README as it stands there, and compares what comes:
// ids, times and the notes of this machine may differ.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, session, ok := strings.Cut(string(text), "```console\n")
	session, _, ended := strings.Cut(session, "```\n")
	if !ok || !ended {
		t.Fatal("the README has no session")
	}
	e := harness.NewPrivate(t) // with no other events
	// What it pulls is not fetched here.
	img, err := harness.Build(t.Context(), harness.BB)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(e.Dir(), "busybox.tar")
	if err := fixture.SaveDocker(img, "busybox", archive); err != nil {
		t.Fatal(err)
	}
	e.Must("load", "-q", "-i", archive)
	for _, name := range []string{"web", "box"} {
		e.AtEnd("rm", "-f", name)
	}
	session = strings.ReplaceAll(session, "8080", strconv.Itoa(e.FreePort()))
	steps := strings.Split("\n"+session, "\n$ ")[1:]
	if len(steps) < 10 {
		t.Fatalf("%d steps", len(steps))
	}
	for _, step := range steps {
		command, want, _ := strings.Cut(step, "\n")
		want = tolerant(want)
		try := func() error {
			cmd := exec.Command("bash", "-c", command)
			cmd.Env = append(e.Environ(), "PATH="+filepath.Dir(harness.Binary())+":/usr/bin:/bin")
			out, err := cmd.CombinedOutput()
			if got := tolerant(string(out)); err != nil || got != want {
				return fmt.Errorf("$ %s (%v)\n%s\nwant\n%s", command, err, got, want)
			}
			return nil
		}
		patience := time.Duration(0)
		if strings.HasPrefix(command, "curl ") || strings.HasPrefix(command, "sbx logs ") {
			patience = harness.Slow(10 * time.Second) // the server may not be there yet
		}
		harness.Eventually(t, patience, try)
	}
}

var tolerances = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(?m)^(sbx: note|fix): .*\n?`), ""},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "SHORT"},
	{regexp.MustCompile(`Less than a second|\d+ seconds?|About a minute`), "A WHILE"},
	{regexp.MustCompile(` {2,}`), "  "},
}

func tolerant(s string) string {
	for _, t := range tolerances {
		s = t.pattern.ReplaceAllString(s, t.with)
	}
	return strings.TrimSpace(s)
}
