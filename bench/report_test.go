package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInsertKeepsWhatIsWrittenByHand(t *testing.T) {
	old := "# Title\n\nbefore\n\n" + markBegin + "\nold figures\n" + markEnd + "\n\n## What did not pay\n\nafter\n"
	got, err := insert(old, "new figures")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(old, "old figures", "new figures", 1)
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	again, err := insert(got, "new figures")
	if err != nil || again != want {
		t.Errorf("a second time: %v\n%s", err, again)
	}
	for _, bad := range []string{"no marker", markBegin + " without an end", markEnd + markBegin} {
		if _, err := insert(bad, "x"); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestWriteReport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.md")
	text := "prose before\n" + markBegin + "\n" + markEnd + "\nprose after\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := sampled("tcp/up/1/mtu65520/ip4", "rate", map[string][]float64{"veth": {40e9, 42e9}, "sbx-tap": {20e9, 21e9}, "pasta": {10e9, 7e9}})
	r.Missing["crun"] = "run scripts/peers.sh"
	r.Paths["veth"] = "a pair"
	r.add(options{}, scenarioNamed(t, "tcp/up/1/mtu65520/ip4"), "slirp4netns", nil, errors.New("it broke\nagain"))
	if err := writeReport(file, r); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	md := string(data)
	for _, want := range []string{
		"prose before", "prose after", "2026-01-02", "Linux 6.1", "sbx v1", "crun (run scripts/peers.sh)", "    bench --only x", "(p.svg)",
		"| path | up, 1, Gbit/s |",
		"| veth | 41.00 (40.00 - 42.00) *0.50* |",
		"| sbx-tap | 20.50 (20.00 - 21.00) |",
		"| pasta | 8.50 (7.00 - 10.00) *2.50* |",
		"| slirp4netns | none |",
		"- slirp4netns: it broke\n",
		"| TCP up, 1 stream | veth | 0.50 | 0.70 | 0.50 | met; aim: 29 % short |",
		"not measured",
	} {
		if !strings.Contains(md, want) {
			t.Errorf("no %q in\n%s", want, md)
		}
	}
	// The plot is well-formed.
	svg, err := os.Open(strings.TrimSuffix(file, ".md") + ".svg")
	if err != nil {
		t.Fatal(err)
	}
	defer svg.Close()
	words, dec := 0, xml.NewDecoder(svg)
	for {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if el, ok := tok.(xml.StartElement); ok && el.Name.Local == "text" {
			words++
		}
	}
	// A title, and a name and a value for each of the four paths.
	if words != 9 {
		t.Errorf("%d texts in the plot, want 9", words)
	}
}

// Every table reads scenarios and metrics that are measured.
func TestReportTablesExist(t *testing.T) {
	have := map[string]bool{}
	for _, s := range allScenarios() {
		have[s.name] = true
	}
	for _, table := range reportTables() {
		for _, c := range table.columns {
			if !have[c.scenario] {
				t.Errorf("table %q: no scenario %q", table.title, c.scenario)
			}
		}
	}
	for _, p := range panels() {
		if !have[p.scenario] {
			t.Errorf("plot %q: no scenario %q", p.title, p.scenario)
		}
	}
}

// A scenario that no table shows would be measured in vain.
func TestEveryScenarioIsReported(t *testing.T) {
	shown := map[string]bool{}
	for _, table := range reportTables() {
		for _, c := range table.columns {
			shown[c.scenario] = true
		}
	}
	for _, s := range allScenarios() {
		if !shown[s.name] {
			t.Errorf("no table shows %s", s.name)
		}
	}
}
