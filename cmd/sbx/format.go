package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"text/template"
)

// printItems prints every item on a line of its own, as format asks: "json", a Go
// template, or "table TEMPLATE" in columns under their headers, which headers has
// by the names in the template. options are those of text/template.
func printItems[T any](w io.Writer, format string, headers map[string]string, items []T, options ...string) error {
	if format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		for _, it := range items {
			if err := enc.Encode(it); err != nil {
				return err
			}
		}
		return nil
	}
	text, table := strings.CutPrefix(format, "table ")
	if format == "table" {
		return usagef("--format table needs a template here")
	}
	t, err := parseTemplate(text)
	if err != nil {
		return err
	}
	t.Option(options...)
	out := w
	var tw *tabwriter.Writer
	if table {
		tw = tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
		out = tw
		if err := printItem(out, t, headers); err != nil {
			return err
		}
	}
	for _, it := range items {
		if err := printItem(out, t, it); err != nil {
			return err
		}
	}
	if tw != nil {
		return tw.Flush()
	}
	return nil
}

// printInspection prints what was found as one list, or each by a template with
// the names of the fields or, as docker inspect, the keys of the JSON.
func printInspection[T any](w io.Writer, format string, list []T) error {
	if format == "" || format == "json" {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		if format == "" {
			enc.SetIndent("", "    ")
		}
		return enc.Encode(list)
	}
	var b bytes.Buffer
	err := printItems(&b, format, nil, list)
	if err != nil {
		raw := make([]any, len(list))
		for i, it := range list {
			text, jerr := json.Marshal(it)
			if jerr != nil {
				return jerr
			}
			dec := json.NewDecoder(bytes.NewReader(text))
			dec.UseNumber()
			if jerr := dec.Decode(&raw[i]); jerr != nil {
				return jerr
			}
		}
		b.Reset()
		if printItems(&b, format, nil, raw, "missingkey=error") != nil {
			return err // which says more than that of the keys
		}
	}
	_, err = w.Write(b.Bytes())
	return err
}

// printObject prints one object as --format asks; false if that was not given.
func printObject(w io.Writer, format string, v any) (bool, error) {
	if format == "" {
		return false, nil
	}
	return true, printItems(w, format, nil, []any{v})
}

// parseTemplate reads a template of --format, with Docker's functions and its
// escapes: in a shell's quotes \t is two characters.
func parseTemplate(text string) (*template.Template, error) {
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := template.New("format").Funcs(template.FuncMap{
		"json":  toJSON,
		"join":  strings.Join,
		"split": strings.Split,
		"lower": strings.ToLower,
		"upper": strings.ToUpper,
		"title": func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
		"println": func(a ...any) string {
			return fmt.Sprintln(a...)
		},
		"pad": func(s string, before, after int) string {
			return strings.Repeat(" ", max(before, 0)) + s + strings.Repeat(" ", max(after, 0))
		},
		"truncate": func(s string, n int) string {
			if r := []rune(s); n >= 0 && len(r) > n {
				return string(r[:n])
			}
			return s
		},
	}).Parse(text)
	if err != nil {
		return nil, badFormat(err)
	}
	return t, nil
}

func printItem(w io.Writer, t *template.Template, v any) error {
	var bad template.ExecError
	if err := t.Execute(w, v); errors.As(err, &bad) {
		return badFormat(err)
	} else if err != nil {
		return err // of the writer
	}
	_, err := fmt.Fprintln(w)
	return err
}

func badFormat(err error) error {
	return &usage{msg: fmt.Sprintf("--format: %v", err), fix: "use json, or a Go template such as '{{json .}}'"}
}

func toJSON(v any) (string, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// printTable prints rows in columns.
func printTable(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}
