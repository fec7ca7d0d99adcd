package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

func formatFlag() cli.Flag {
	return str("format", "`FORMAT` of the output: json, or a Go template")
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "check what this machine offers, and how to fix what is missing",
		Description: `Checks each prerequisite, says what sbx chooses where one is missing, and the exact
fix. Exits with 1 if sandboxes cannot run at all.`,
		Flags: []cli.Flag{formatFlag()},
		Action: func(c *cli.Context) error {
			report := sandbox.Diagnose(c.Context, sandbox.Options{Logger: newLogger(c)})
			done, err := printFormat(c.App.Writer, c.String("format"), []*sandbox.Report{report})
			if err != nil {
				return err
			}
			if !done {
				printReport(c.App.Writer, report, useColour(os.Stdout))
			}
			if !report.OK {
				return exitStatus(1)
			}
			return nil
		},
	}
}

// useColour follows NO_COLOR and CLICOLOR_FORCE.
func useColour(f *os.File) bool {
	if os.Getenv("NO_COLOR") != "" {
		return false
	}
	if v := os.Getenv("CLICOLOR_FORCE"); v != "" && v != "0" {
		return true
	}
	return term.IsTerminal(int(f.Fd()))
}

func printReport(w io.Writer, r *sandbox.Report, colour bool) {
	paint := map[string]string{"ok": "\x1b[32m", "degraded": "\x1b[33m", "missing": "\x1b[31m"}
	for _, c := range r.Checks {
		mark := fmt.Sprintf("%-8s", c.Status)
		if colour && paint[string(c.Status)] != "" {
			mark = paint[string(c.Status)] + mark + "\x1b[0m"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", mark, c.Name, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(w, "          fix: %s\n", strings.ReplaceAll(strings.TrimSpace(c.Fix), "\n", "\n               "))
		}
	}
	fmt.Fprintln(w)
	for _, ch := range r.Choices {
		fmt.Fprintf(w, "%-16s %s", ch.What+":", ch.Chosen)
		if ch.Why != "" {
			fmt.Fprintf(w, " (%s)", ch.Why)
		}
		fmt.Fprintln(w)
	}
	if r.OK {
		fmt.Fprintln(w, "\nSandboxes can run here.")
	} else {
		fmt.Fprintln(w, "\nSandboxes cannot run here until what is missing is fixed.")
	}
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "show directories, drivers and images",
		Flags: []cli.Flag{formatFlag()},
		Action: func(c *cli.Context) error {
			e, err := newEngine(c)
			if err != nil {
				return err
			}
			info, err := e.Info(c.Context)
			if err != nil {
				return err
			}
			info.Version = version
			done, err := printFormat(c.App.Writer, c.String("format"), []*sandbox.SystemInfo{info})
			if err != nil || done {
				return err
			}
			rows := [][]string{
				{"Version:", info.Version},
				{"Data directory:", info.DataDir},
				{"Runtime directory:", info.RuntimeDir},
				{"Kernel:", info.Kernel},
				{"Images:", fmt.Sprint(info.Images)},
				{"Sandboxes running:", fmt.Sprint(info.Running)},
			}
			for _, ch := range info.Choices {
				why := ""
				if ch.Why != "" {
					why = " (" + ch.Why + ")"
				}
				rows = append(rows, []string{strings.ToUpper(ch.What[:1]) + ch.What[1:] + ":", ch.Chosen + why})
			}
			return printTable(c.App.Writer, nil, rows)
		},
	}
}

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:  "version",
		Usage: "print the version",
		Flags: []cli.Flag{formatFlag()},
		Action: func(c *cli.Context) error {
			v := struct{ Version, GoVersion, Os, Arch string }{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if c.String("format") == "json" {
				return json.NewEncoder(c.App.Writer).Encode(v)
			}
			done, err := printFormat(c.App.Writer, c.String("format"), []any{v})
			if err != nil || done {
				return err
			}
			fmt.Fprintf(c.App.Writer, "sbx version %s, %s %s/%s\n", v.Version, v.GoVersion, v.Os, v.Arch)
			return nil
		},
	}
}
