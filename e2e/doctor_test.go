package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

func TestDoctor(t *testing.T) {
	e := harness.New(t)
	text := e.Must("doctor")
	for _, word := range []string{"user namespaces", "newuidmap", "/dev/net/tun", "overlay"} {
		if !strings.Contains(strings.ToLower(text), word) {
			t.Errorf("lacks %q: %s", word, text)
		}
	}
	var report struct {
		OK     bool
		Checks []struct{ Name, Status string }
	}
	if err := json.Unmarshal([]byte(e.Must("doctor", "--format", "json")), &report); err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Checks) < 5 {
		t.Errorf("%+v", report)
	}
}

func TestInfoAndVersion(t *testing.T) {
	e := harness.New(t)
	for _, cmd := range []string{"info", "version"} {
		if out := e.Must(cmd); out == "" {
			t.Errorf("sbx %s says nothing", cmd)
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(e.Must(cmd, "--format", "json")), &v); err != nil || len(v) == 0 {
			t.Errorf("sbx %s --format json: %v", cmd, err)
		}
	}
	e.Fails(125, []string{"no-such-verb"}, "no-such-verb")
	for _, cmd := range [][]string{{"--help"}, {"run", "--help"}} {
		if out := e.Must(cmd...); !strings.Contains(out, "USAGE") && !strings.Contains(out, "Usage") {
			t.Errorf("%v: %q", cmd, out)
		}
	}
}
