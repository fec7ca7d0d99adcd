// Package phases tests what becomes of sandboxes when the session of their user, the
// machine or its time ends. Each test is run several times, as the user dev; in between
// root acts, as phases in scripts/vm-guest.sh says. What a phase leaves in the user's
// own home is there in the next one.
package phases

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// phase says how often root has acted; -1 outside of the machine.
var phase = func() int {
	n, err := strconv.Atoi(os.Getenv("SBX_TEST_PHASE"))
	if err != nil {
		return -1
	}
	return n
}()

func TestMain(m *testing.M) {
	if phase < 0 && !probe.IsProbe() {
		fmt.Fprintln(os.Stderr, "e2e/vm/phases needs the virtual machine of scripts/vm.sh: make test-vm")
		os.Exit(1)
	}
	os.Exit(harness.Main(m))
}

// in runs the phase of a test whose turn it is. The first begins with the image and
// without sandboxes, and after the last there are none.
func in(t *testing.T, phases ...func(*testing.T, *harness.Env)) {
	if phase >= len(phases) {
		t.Fatalf("there is no phase %d", phase)
	}
	e := harness.Own(t)
	clear := func() {
		if ids := strings.Fields(e.Must("ps", "-aq")); len(ids) > 0 {
			e.Must(append([]string{"rm", "-f", "-v"}, ids...)...)
		}
	}
	if phase == 0 {
		e.Load(harness.BB)
		clear()
	}
	phases[phase](t, e)
	if phase == len(phases)-1 {
		clear()
		wantWhole(t, e)
	}
}

// wantWhole: what is there belongs to sandboxes that ps shows.
func wantWhole(t *testing.T, e *harness.Env) {
	t.Helper()
	known := strings.Fields(e.Must("ps", "-aq", "--no-trunc"))
	dirs, err := filepath.Glob(filepath.Join(e.Data(), "containers", "?*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if id := filepath.Base(dir); id != ".lock" && !slices.Contains(known, id) {
			t.Errorf("%s is of no sandbox that ps shows", dir)
		}
	}
}

// keep writes down what a later phase wants to know, recall reads it.
func keep(t *testing.T, e *harness.Env, name, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(e.Home, "kept-"+name), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

func recall(t *testing.T, e *harness.Env, name string) string {
	t.Helper()
	value, err := os.ReadFile(filepath.Join(e.Home, "kept-"+name))
	if err != nil {
		t.Fatal(err)
	}
	return string(value)
}

// inspect prints a part of what is known of a sandbox.
func inspect(e *harness.Env, name, format string) string {
	return strings.TrimSpace(e.Must("inspect", "-f", format, name))
}

// wantState checks how a sandbox is, and that its error has this word.
func wantState(t *testing.T, e *harness.Env, name, want, word string) {
	t.Helper()
	got := inspect(e, name, "{{.State.Status}} {{.State.ExitCode}}:{{.State.Error}}")
	state, text, _ := strings.Cut(got, ":")
	if state != want || !strings.Contains(text, word) {
		t.Errorf("%s is %q, want %s with %q", name, got, want, word)
	}
}

// wantMoreLines waits until a sandbox's log has a line more than those it had.
func wantMoreLines(t *testing.T, e *harness.Env, name string) {
	t.Helper()
	before := strings.Count(e.Must("logs", name), "\n")
	harness.Eventually(t, 20*time.Second, func() error {
		if n := strings.Count(e.Must("logs", name), "\n"); n <= before {
			return fmt.Errorf("%s has %d lines in its log, and had %d", name, n, before)
		}
		return nil
	})
}
