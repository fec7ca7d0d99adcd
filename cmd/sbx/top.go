package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/rootless-sbx/sbx/sandbox"
)

func topCommand(g *globals) *command {
	return &command{
		Use: "top SANDBOX [PS OPTIONS]", Short: "List the processes of a sandbox", Args: wantArgs(1, -1), OptionsFirst: true,
		Long:     "As ps -ef shows them on the host: with the host's numbers and user ids. With\noptions it is the host's ps that shows them.",
		Example:  "  sbx top web\n  sbx top web -o pid,pcpu,rss,args",
		Complete: completeBoxes(1, runningBox),
		RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error {
			list, err := s.Top(ctx)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				return psOf(ctx, c.Out(), list, args)
			}
			rows := [][]string{{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}}
			now := time.Now()
			for _, p := range list {
				rows = append(rows, []string{
					p.UID, strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.Itoa(load(p, now)), startText(p.Started, now), p.TTY,
					fmt.Sprintf("%02d:%02d:%02d", int(p.CPU.Hours()), int(p.CPU.Minutes())%60, int(p.CPU.Seconds())%60), printable(p.Command),
				})
			}
			return printTable(c.Out(), rows)
		}),
	}
}

// printable keeps what a process calls itself from moving our cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// psOf has the host's ps show processes; that of the sandbox may say anything. With
// options that choose processes or draw a tree it shows all, and the others are left
// out by their number, as docker top does.
func psOf(ctx context.Context, out io.Writer, list []sandbox.Process, args []string) error {
	pids := map[string]bool{}
	for _, p := range list {
		pids[strconv.Itoa(p.PID)] = true
	}
	chosen := strings.Join(slices.Collect(maps.Keys(pids)), ",")
	if text, err := ps(ctx, append(slices.Clone(args), "-q", chosen)); err == nil {
		_, err := io.WriteString(out, text)
		return err
	}
	text, err := ps(ctx, args)
	if err != nil {
		return err
	}
	head, rest, _ := strings.Cut(text, "\n")
	column := slices.Index(strings.Fields(head), "PID")
	if column < 0 {
		return &usage{msg: "there is no column PID in what ps shows with these options", fix: "add it: -o pid,..."}
	}
	if err := printLines(out, head); err != nil {
		return err
	}
	for line := range strings.Lines(rest) {
		if f := strings.Fields(line); column < len(f) && pids[f[column]] {
			if _, err := io.WriteString(out, line); err != nil {
				return err
			}
		}
	}
	return nil
}

func ps(ctx context.Context, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, "ps", args...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return "", &usage{msg: "there is no program ps on this machine", fix: "sbx top NAME without options needs none; or: apt-get install procps"}
	case errors.As(err, &exit) && len(exit.Stderr) > 0: // else it has found no process
		line, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
		return "", fmt.Errorf("ps %s: %s", strings.Join(args, " "), line)
	case errors.As(err, &exit):
		err = nil
	}
	return string(out), err
}

// load is the part of its life that a process has computed, in percent.
func load(p sandbox.Process, now time.Time) int {
	if age := now.Sub(p.Started); age > 0 {
		return min(int(100*p.CPU/age), 99)
	}
	return 0
}

func startText(t, now time.Time) string {
	if now.Sub(t) < 24*time.Hour {
		return t.Local().Format("15:04")
	}
	return t.Local().Format("Jan02")
}
