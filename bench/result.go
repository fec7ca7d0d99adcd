package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

// results are what a run gives, as in the JSON file.
type results struct {
	Date     time.Time         `json:"date"`
	Commands []string          `json:"commands"`
	Kernel   string            `json:"kernel"`
	CPU      string            `json:"cpu"`
	CPUs     int               `json:"cpus"`
	Settings map[string]string `json:"settings"` // of the host's network
	Versions map[string]string `json:"versions"` // of sbx builds and peers
	Missing  map[string]string `json:"missing,omitempty"`
	Paths    map[string]string `json:"paths"` // name: what it is
	// OtherLoad is, for each round, the part of the machine that others kept busy.
	OtherLoad []float64 `json:"other_load"`
	Cells     []*cell   `json:"cells"`
}

// cell is a figure of one path in one scenario: a value for each round.
type cell struct {
	Scenario string    `json:"scenario"`
	Path     string    `json:"path"`
	Metric   string    `json:"metric"`
	Values   []float64 `json:"values,omitempty"`
	Failed   int       `json:"failed,omitempty"` // rounds without a value
	Error    string    `json:"error,omitempty"`  // of the last of them
	Seconds  float64   `json:"seconds"`          // of each measure
}

// cell finds a cell, or nil.
func (r *results) cell(scenario, path, metric string) *cell {
	for _, c := range r.Cells {
		if c.Scenario == scenario && c.Path == path && c.Metric == metric {
			return c
		}
	}
	return nil
}

// values of a cell; none if there is no such cell.
func (r *results) values(scenario, path, metric string) []float64 {
	if c := r.cell(scenario, path, metric); c != nil {
		return c.Values
	}
	return nil
}

// add notes one round's figures of a path, or its error under the main metric.
func (r *results) add(o options, s scenario, path string, m metrics, err error) {
	note := func(metric string) *cell {
		c := r.cell(s.name, path, metric)
		if c == nil {
			c = &cell{Scenario: s.name, Path: path, Metric: metric, Seconds: o.seconds.Seconds()}
			r.Cells = append(r.Cells, c)
		}
		return c
	}
	if err != nil {
		c := note(s.metric)
		c.Error = oneLine(err.Error())
		c.Failed++
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		c := note(name)
		c.Values = append(c.Values, m[name])
	}
}

// oneLine is the first of several errors.
func oneLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	return s
}

// scenarios are the names with a result, in the order of the list.
func (r *results) scenarios() []scenario {
	var have []scenario
	for _, s := range allScenarios() {
		if slices.ContainsFunc(r.Cells, func(c *cell) bool { return c.Scenario == s.name }) {
			have = append(have, s)
		}
	}
	return have
}

// pathsOf are the paths with a result in a scenario, in the order of its list.
func (r *results) pathsOf(scenario string) []string {
	var names []string
	for _, c := range r.Cells {
		if c.Scenario == scenario && !slices.Contains(names, c.Path) {
			names = append(names, c.Path)
		}
	}
	var order []string
	for _, s := range allScenarios() {
		if s.name == scenario {
			order = s.paths
		}
	}
	place := func(name string) int {
		base, _, _ := strings.Cut(name, ":")
		return slices.Index(order, base)
	}
	slices.SortStableFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(place(a), place(b)), strings.Compare(a, b))
	})
	return names
}

func (r *results) write(file string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

func readResults(file string) (*results, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(results)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// merge adds the rounds of another run, which must have measured the same.
func (r *results) merge(other *results) error {
	if len(r.Cells) == 0 {
		*r = *other
		return nil
	}
	for _, what := range []struct{ ours, theirs map[string]string }{
		{r.Versions, other.Versions}, {r.Settings, other.Settings}, {map[string]string{"kernel": r.Kernel}, map[string]string{"kernel": other.Kernel}},
	} {
		for name, theirs := range what.theirs {
			if ours, ok := what.ours[name]; ok && ours != theirs {
				return fmt.Errorf("measured with %s %s, and others with %s", name, theirs, ours)
			}
			what.ours[name] = theirs
		}
	}
	for _, c := range other.Cells {
		have := r.cell(c.Scenario, c.Path, c.Metric)
		if have == nil {
			r.Cells = append(r.Cells, c)
			continue
		}
		if have.Seconds != c.Seconds {
			return fmt.Errorf("%s: measures of %g s, and others of %g s", c.Scenario, c.Seconds, have.Seconds)
		}
		have.Values = append(have.Values, c.Values...)
		have.Failed += c.Failed
		have.Error = cmp.Or(c.Error, have.Error)
	}
	r.OtherLoad = append(r.OtherLoad, other.OtherLoad...)
	r.Commands = append(r.Commands, other.Commands...)
	if other.Date.After(r.Date) {
		r.Date = other.Date
	}
	for name, what := range other.Paths {
		r.Paths[name] = what
	}
	if r.Missing == nil {
		r.Missing = other.Missing
	}
	return nil
}

// mergeFiles puts the results of several runs together.
func mergeFiles(o options) error {
	if len(o.files) == 0 {
		return errors.New("--merge: which files?")
	}
	all := new(results)
	for _, f := range o.files {
		r, err := readResults(f)
		if err != nil {
			return err
		}
		if err := all.merge(r); err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	if o.json != "" {
		if err := all.write(o.json); err != nil {
			return err
		}
	}
	if o.report != "" {
		if err := writeReport(o.report, all); err != nil {
			return err
		}
	}
	return printResults(os.Stdout, all)
}
