package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

// exitUnfit is the status of sbx doctor where sandboxes cannot run.
const exitUnfit = 1

func formatFlag(c *command, p *string) {
	c.Flags().StringVarP(p, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
}

func doctorCommand(g *globals) *command {
	var format string
	c := &command{
		Use: "doctor [OPTIONS]", Short: "Check what this machine offers, and how to fix what is missing", Args: wantArgs(0, 0),
		Long: `Checks each prerequisite, says what sbx chooses where one is missing, and the
exact fix. Exits with 1 if sandboxes cannot run at all.`,
		RunE: func(c *command, _ []string) error {
			report := sandbox.Diagnose(c.Context(), sandbox.Options{Logger: newLogger(g.term, g.debug)})
			done, err := printObject(c.Out(), format, report)
			if err != nil {
				return err
			}
			if !done {
				if err := printReport(c.Out(), report, useColour(os.Stdout)); err != nil {
					return err
				}
			}
			if !report.OK {
				return exitStatus(exitUnfit)
			}
			return nil
		},
	}
	formatFlag(c, &format)
	return c
}

// useColour follows NO_COLOR and CLICOLOR_FORCE.
func useColour(f *os.File) bool {
	if os.Getenv("NO_COLOR") != "" {
		return false
	}
	if v := os.Getenv("CLICOLOR_FORCE"); v != "" && v != "0" {
		return true
	}
	return term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

func printReport(w io.Writer, r *sandbox.Report, colour bool) error {
	var b strings.Builder
	paint := map[string]string{"ok": "\x1b[32m", "degraded": "\x1b[33m", "missing": "\x1b[31m"}
	name := 0
	for _, c := range r.Checks {
		name = max(name, len(c.Name))
	}
	// Texts stand below each other, behind the status and the name.
	indent := "\n" + strings.Repeat(" ", 10+name+2)
	for _, c := range r.Checks {
		mark := fmt.Sprintf("%-8s", c.Status)
		if p := paint[string(c.Status)]; colour && p != "" {
			mark = p + mark + "\x1b[0m"
		}
		lines := strings.Split(strings.TrimSpace(c.Detail), "\n")
		if c.Fix != "" {
			for i, l := range strings.Split(strings.TrimSpace(c.Fix), "\n") {
				lines = append(lines, [2]string{"fix: ", "     "}[min(i, 1)]+l)
			}
		}
		fmt.Fprintf(&b, "%s  %-*s  %s\n", mark, name, c.Name, strings.Join(lines, indent))
	}
	b.WriteByte('\n')
	for _, row := range choiceRows(r.Choices) {
		fmt.Fprintf(&b, "%-17s %s\n", row[0], row[1])
	}
	if r.OK {
		b.WriteString("\nSandboxes can run here.\n")
	} else {
		b.WriteString("\nSandboxes cannot run here until what is missing is fixed.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// choiceRows are the rungs of the ladders, each with why it is not a better one.
func choiceRows(choices []sandbox.Choice) [][]string {
	var rows [][]string
	for _, ch := range choices {
		text := ch.Chosen
		if ch.Why != "" {
			text += " (" + ch.Why + ")"
		}
		rows = append(rows, []string{strings.ToUpper(ch.What[:1]) + ch.What[1:] + ":", text})
	}
	return rows
}

func infoCommand(g *globals) *command {
	var format string
	c := &command{
		Use: "info [OPTIONS]", Short: "Show directories, drivers and images", Args: wantArgs(0, 0),
		RunE: func(c *command, _ []string) error {
			e, err := newEngine(g)
			if err != nil {
				return err
			}
			info, err := e.Info(c.Context())
			if err != nil {
				return err
			}
			info.Version, info.ServerVersion = version, version
			if done, err := printObject(c.Out(), format, info); err != nil || done {
				return err
			}
			return printTable(c.Out(), append([][]string{
				{"Version:", info.Version},
				{"Data directory:", info.DataDir},
				{"Runtime directory:", info.RuntimeDir},
				{"Kernel:", info.Kernel},
				{"Operating system:", info.OperatingSystem},
				{"Architecture:", info.Architecture},
				{"Processors:", fmt.Sprint(info.NCPU)},
				{"Memory:", units.BytesSize(float64(info.MemTotal))},
				{"Images:", fmt.Sprint(info.Images)},
				{"Sandboxes:", fmt.Sprintf("%d: %d running, %d paused, %d stopped", info.Containers, info.ContainersRunning, info.ContainersPaused, info.ContainersStopped)},
			}, choiceRows(info.Choices)...))
		},
	}
	formatFlag(c, &format)
	return c
}

// versionInfo has the keys of sbx version --format.
type versionInfo struct{ Version, GoVersion, Os, Arch string }

func versionCommand() *command {
	var format string
	c := &command{
		Use: "version [OPTIONS]", Short: "Show the version", Args: wantArgs(0, 0),
		RunE: func(c *command, _ []string) error {
			v := versionInfo{version, runtime.Version(), runtime.GOOS, runtime.GOARCH}
			if done, err := printObject(c.Out(), format, v); err != nil || done {
				return err
			}
			return printLines(c.Out(), fmt.Sprintf("sbx version %s, %s %s/%s", v.Version, v.GoVersion, v.Os, v.Arch))
		},
	}
	formatFlag(c, &format)
	return c
}
