package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
)

// printFormat prints v as --format asks: json, or a Go template over v; every
// item of a list on a line of its own. It returns false for a table.
func printFormat[T any](w io.Writer, format string, items []T) (bool, error) {
	switch {
	case format == "" || format == "table":
		return false, nil
	case format == "json":
		enc := json.NewEncoder(w)
		for _, it := range items {
			if err := enc.Encode(it); err != nil {
				return true, err
			}
		}
		return true, nil
	}
	t, err := template.New("format").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		},
		"join": strings.Join, "lower": strings.ToLower, "upper": strings.ToUpper,
	}).Parse(strings.TrimPrefix(format, "table ") + "\n")
	if err != nil {
		return true, usagef("--format: %v", err)
	}
	for _, it := range items {
		if err := t.Execute(w, it); err != nil {
			return true, usagef("--format: %v", err)
		}
	}
	return true, nil
}

// printTable prints rows under a header, in columns.
func printTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	if header != nil {
		fmt.Fprintln(tw, strings.Join(header, "\t"))
	}
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}
