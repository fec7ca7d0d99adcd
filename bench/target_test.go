package main

import (
	"math"
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	none := math.NaN()
	for _, c := range []struct {
		name       string
		least, aim float64
		lower      bool
		got        float64
		want       string
	}{
		{"above the aim", 0.5, 0.7, false, 0.8, "aim met"},
		{"exactly the aim", 0.5, 0.7, false, 0.7, "aim met"},
		{"between", 0.5, 0.8, false, 0.6, "met; aim: 25 % short"},
		{"exactly the least", 0.5, none, false, 0.5, "met"},
		{"below", 0.5, 0.7, false, 0.25, "**50 % short**"},
		{"only an aim", none, 1, false, 0.9, "aim: 10 % short"},
		{"less is better, met", 1.2, 0.9, true, 0.8, "aim met"},
		{"less is better, between", 1.2, 1, true, 1.1, "met; aim: 10 % over"},
		{"less is better, above", 1, none, true, 1.5, "**50 % over**"},
		{"nothing", 1, 2, false, none, "not measured"},
	} {
		got := target{least: c.least, aim: c.aim, lower: c.lower}.verdict(c.got)
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Every target reads scenarios, paths and metrics that exist: with all cells there,
// all of them have a figure.
func TestTargetsAreMeasured(t *testing.T) {
	r := new(results)
	for _, s := range allScenarios() {
		for _, p := range s.paths {
			for _, m := range []string{s.metric, "p99", "cpu/GiB"} {
				r.Cells = append(r.Cells, &cell{Scenario: s.name, Path: p, Metric: m, Values: []float64{2}})
			}
		}
	}
	for _, x := range targets() {
		got := x.got(r)
		if math.IsNaN(got) {
			t.Errorf("%s against %s: no figure", x.what, x.of)
		}
		if x.of != "/s" && x.of != "MiB" && got != 1 {
			t.Errorf("%s against %s: equal figures give %v", x.what, x.of, got)
		}
		if math.IsNaN(x.least) && math.IsNaN(x.aim) {
			t.Errorf("%s against %s wants nothing", x.what, x.of)
		}
		if better := x.least < x.aim; !math.IsNaN(x.least) && !math.IsNaN(x.aim) && better == x.lower {
			t.Errorf("%s against %s: the aim %v is less than the least, %v", x.what, x.of, x.aim, x.least)
		}
	}
}

// With several builds of sbx the first by name counts.
func TestFindBuild(t *testing.T) {
	r := sampled("dns", "questions", map[string][]float64{"sbx-tap:b": {2}, "sbx-tap:a": {1}, "sbx-packet": {3}})
	if got := r.find("dns", "sbx-tap", "questions"); len(got) != 1 || got[0] != 1 {
		t.Errorf("sbx-tap is %v, want that of build a", got)
	}
}

func TestNumber(t *testing.T) {
	for _, c := range []struct {
		of   string
		v    float64
		want string
	}{
		{"pasta", 0.456, "0.46"}, {"/s", 20000, "20000 /s"}, {"MiB", 14.96, "15.0 MiB"}, {"MiB", math.NaN(), "-"},
	} {
		if got := (target{of: c.of}).number(c.v); got != c.want {
			t.Errorf("%v of %s: %q, want %q", c.v, c.of, got, c.want)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		metric string
		v      float64
		want   string
	}{
		{"rate", 1.5e9, "1.50 Gbit/s"}, {"p99", 120e-6, "120 us"}, {"time", 0.0251, "25.1 ms"}, {"cpu/GiB", 0.333, "0.33 s/GiB"},
		{"mem flow", 2048, "2.0 KiB"}, {"mem idle", 3 << 20, "3.0 MiB"}, {"flows", 4096, "4096"}, {"flood loss", 0.25, "25.0 %"},
		{"failed", 3, "3"}, {"connections", 2000, "2000 /s"},
	} {
		if got := format(c.metric, c.v); got != c.want {
			t.Errorf("%s: %q, want %q", c.metric, got, c.want)
		}
	}
	if got := format("rate", math.NaN()); strings.ContainsAny(got, "0123456789") {
		t.Errorf("no figure is written %q", got)
	}
}
