package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func fakeBuild(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sbx")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestParseOptions(t *testing.T) {
	file := fakeBuild(t)
	o, err := parseOptions([]string{"--sbx", "a=" + file, "--sbx", "b=" + file, "--only", "^tcp/", "--paths", "sbx,veth", "--rounds", "7", "--seconds", "0.5", "--json", "/x/y.json"})
	if err != nil {
		t.Fatal(err)
	}
	if want := []build{{"a", file}, {"b", file}}; !slices.Equal(o.sbx, want) {
		t.Errorf("builds %v, want %v", o.sbx, want)
	}
	if o.rounds != 7 || o.seconds != 500*time.Millisecond || o.json != "/x/y.json" {
		t.Errorf("%+v", o)
	}
	// Where the files of this run are says nothing to the reader of the report.
	if want := "bench --only '^tcp/' --paths sbx,veth --rounds 7 --seconds 0.5"; o.command != want {
		t.Errorf("command %q, want %q", o.command, want)
	}
	for _, s := range o.chosen() {
		if s.name[:4] != "tcp/" {
			t.Errorf("--only ^tcp/ has chosen %s", s.name)
		}
	}
}

func TestDefaults(t *testing.T) {
	file := fakeBuild(t)
	o, err := parseOptions([]string{"--sbx", file})
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds < 5 {
		t.Errorf("%d rounds", o.rounds)
	}
	q, err := parseOptions([]string{"--sbx", file, "--quick"})
	if err != nil {
		t.Fatal(err)
	}
	if a, b := len(o.chosen()), len(q.chosen()); b == 0 || b >= a || q.seconds >= o.seconds {
		t.Errorf("quick: %d of %d scenarios of %v, else %v", b, a, q.seconds, o.seconds)
	}
}

func TestOptionErrors(t *testing.T) {
	file := fakeBuild(t)
	for _, args := range [][]string{
		{"--sbx", "/nonexistent/sbx"}, {"--sbx", file, "stray.json"}, {"--sbx", file, "--only", "("},
	} {
		if _, err := parseOptions(args); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
	if _, err := parseOptions([]string{"--help"}); !errors.Is(err, errHelp) {
		t.Errorf("--help: %v", err)
	}
}

func TestWants(t *testing.T) {
	for _, c := range []struct {
		paths []string
		name  string
		want  bool
	}{
		{nil, "pasta", true},
		{[]string{"pasta"}, "pasta", true},
		{[]string{"pasta"}, "pasta-32M", false},
		{[]string{"sbx"}, "sbx-stack:new", true},
		{[]string{"sbx-tap"}, "sbx-tap:new", true},
		{[]string{"sbx-tap:old"}, "sbx-tap:new", false},
	} {
		if got := (options{paths: c.paths}).wants(c.name); got != c.want {
			t.Errorf("--paths %v wants %s: %v", c.paths, c.name, got)
		}
	}
}
