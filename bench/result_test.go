package main

import (
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// sampled are results with given values of one metric in one scenario.
func sampled(scenario, metric string, values map[string][]float64) *results {
	r := &results{
		Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Kernel: "6.1", CPUs: 2, CPU: "test", Commands: []string{"bench --only x"},
		Versions: map[string]string{"sbx 1": "v1"}, Settings: map[string]string{}, Missing: map[string]string{}, Paths: map[string]string{},
	}
	for path, v := range values {
		r.Cells = append(r.Cells, &cell{Scenario: scenario, Path: path, Metric: metric, Values: v, Seconds: 1})
	}
	return r
}

func scenarioNamed(t *testing.T, name string) scenario {
	t.Helper()
	for _, s := range allScenarios() {
		if s.name == name {
			return s
		}
	}
	t.Fatalf("no scenario %q", name)
	return scenario{}
}

func TestScenarioNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range allScenarios() {
		if seen[s.name] {
			t.Errorf("two scenarios are named %s", s.name)
		}
		seen[s.name] = true
		if s.run == nil || len(s.paths) == 0 || s.metric == "" {
			t.Errorf("%s is incomplete", s.name)
		}
	}
}

// Every path that a scenario names exists.
func TestScenarioPathsExist(t *testing.T) {
	w := &world{opt: options{sbx: []build{{"1", "/sbx"}}}}
	have := w.paths()
	for _, s := range allScenarios() {
		for _, name := range s.paths {
			if len(have[name]) != 1 {
				t.Errorf("%s: path %s exists %d times", s.name, name, len(have[name]))
			}
		}
	}
}

func TestAdd(t *testing.T) {
	r, s := new(results), scenarioNamed(t, "dns")
	o := options{seconds: time.Second}
	r.add(o, s, "pasta", metrics{"questions": 10, "cpu/question": 0.5}, nil)
	r.add(o, s, "pasta", nil, errors.New("it broke\nagain"))
	r.add(o, s, "pasta", metrics{"questions": 30}, nil)
	c := r.cell("dns", "pasta", "questions")
	if c == nil || !slices.Equal(c.Values, []float64{10, 30}) || c.Failed != 1 || c.Error != "it broke" || c.Seconds != 1 {
		t.Errorf("cell %+v", c)
	}
	if got := r.values("dns", "pasta", "cpu/question"); !slices.Equal(got, []float64{0.5}) {
		t.Errorf("second metric: %v", got)
	}
	if got := r.values("dns", "nobody", "questions"); got != nil {
		t.Errorf("a path without results has %v", got)
	}
}

// Tables list paths as the scenario does, however the rounds were rotated.
func TestPathsOf(t *testing.T) {
	r := sampled("dns", "questions", map[string][]float64{"pasta": {1}, "sbx-tap:new": {1}, "sbx-tap:old": {1}, "loopback": {1}})
	want := []string{"loopback", "sbx-tap:new", "sbx-tap:old", "pasta"}
	if got := r.pathsOf("dns"); !slices.Equal(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
}

func TestMerge(t *testing.T) {
	a := sampled("dns", "questions", map[string][]float64{"pasta": {1, 2}})
	b := sampled("dns", "questions", map[string][]float64{"pasta": {3}, "sbx-tap": {4}})
	b.Date = a.Date.Add(time.Hour)
	b.Cells[0].Failed, b.Cells[0].Error = 1, "late"
	path := b.Cells[0].Path
	all := new(results)
	for _, r := range []*results{a, b} {
		if err := all.merge(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := all.values("dns", "pasta", "questions"); !slices.Equal(got, []float64{1, 2, 3}) {
		t.Errorf("rounds of both: %v", got)
	}
	if got := all.values("dns", "sbx-tap", "questions"); !slices.Equal(got, []float64{4}) {
		t.Errorf("a path of the second run: %v", got)
	}
	if c := all.cell("dns", path, "questions"); c.Failed != 1 || c.Error != "late" {
		t.Errorf("%s: failures %d, %q", path, c.Failed, c.Error)
	}
	if !all.Date.Equal(b.Date) || len(all.Commands) != 2 {
		t.Errorf("date %v, commands %v", all.Date, all.Commands)
	}
}

// Rounds of different programs are not one measurement.
func TestMergeRefuses(t *testing.T) {
	for name, change := range map[string]func(*results){
		"sbx 1":   func(r *results) { r.Versions["sbx 1"] = "v2" },
		"kernel":  func(r *results) { r.Kernel = "6.2" },
		"wmem":    func(r *results) { r.Settings["wmem"] = "2" },
		"of 2 s":  func(r *results) { r.Cells[0].Seconds = 2 },
		"nothing": func(*results) {},
	} {
		a := sampled("dns", "questions", map[string][]float64{"pasta": {1}})
		a.Settings["wmem"] = "1"
		b := sampled("dns", "questions", map[string][]float64{"pasta": {1}})
		change(b)
		err := a.merge(b)
		if (err == nil) != (name == "nothing") {
			t.Errorf("%s differs: error %v", name, err)
		}
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("%s differs, but the error is: %v", name, err)
		}
	}
}

func TestWriteAndRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	r := sampled("dns", "questions", map[string][]float64{"pasta": {1, 2}})
	r.Missing["crun"] = "not there"
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Cells, r.Cells) || !reflect.DeepEqual(got.Missing, r.Missing) || !got.Date.Equal(r.Date) {
		t.Errorf("read %+v, wrote %+v", got, r)
	}
}
