package main

import (
	"encoding/json"
	"fmt"
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
	Error    string    `json:"error,omitempty"` // the last one
	Rounds   int       `json:"rounds"`          // seconds of each measure
	Seconds  float64   `json:"seconds"`
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
			c = &cell{Scenario: s.name, Path: path, Metric: metric, Rounds: o.rounds, Seconds: o.seconds.Seconds()}
			r.Cells = append(r.Cells, c)
		}
		return c
	}
	if err != nil {
		note(s.metric).Error = oneLine(err.Error())
		return
	}
	for name, v := range m {
		c := note(name)
		c.Values = append(c.Values, v)
	}
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
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

// pathsOf are the paths with a result in a scenario, in the order of measuring.
func (r *results) pathsOf(scenario string) []string {
	var names []string
	for _, c := range r.Cells {
		if c.Scenario == scenario && !slices.Contains(names, c.Path) {
			names = append(names, c.Path)
		}
	}
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

// merge puts another run's results in: its scenarios replace ours whole, as only
// figures of one run are comparable.
func (r *results) merge(other *results) {
	replaced := map[string]bool{}
	for _, c := range other.Cells {
		replaced[c.Scenario] = true
	}
	r.Cells = slices.DeleteFunc(r.Cells, func(c *cell) bool { return replaced[c.Scenario] })
	r.Cells = append(r.Cells, other.Cells...)
	r.OtherLoad = append(r.OtherLoad, other.OtherLoad...)
	r.Commands = append(r.Commands, other.Commands...)
	if other.Date.After(r.Date) {
		r.Date, r.Kernel, r.CPU, r.CPUs = other.Date, other.Kernel, other.CPU, other.CPUs
	}
	for _, m := range []struct{ to, from *map[string]string }{
		{&r.Versions, &other.Versions}, {&r.Missing, &other.Missing}, {&r.Paths, &other.Paths},
	} {
		if *m.to == nil {
			*m.to = map[string]string{}
		}
		for k, v := range *m.from {
			(*m.to)[k] = v
		}
	}
}
