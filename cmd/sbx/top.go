package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

func topCommand(g *globals) *command {
	return &command{
		Use: "top SANDBOX", Short: "List the processes of a sandbox", Args: wantArgs(1, 1),
		Long:     "As ps -ef shows them on the host: with the host's numbers and user ids.",
		Complete: completeBoxes(1, runningBox),
		RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, _ []string) error {
			list, err := s.Top(ctx)
			if err != nil {
				return err
			}
			rows := [][]string{{"UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"}}
			now := time.Now()
			for _, p := range list {
				rows = append(rows, []string{
					p.UID, strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.Itoa(load(p, now)), startText(p.Started, now), p.TTY,
					fmt.Sprintf("%02d:%02d:%02d", int(p.CPU.Hours()), int(p.CPU.Minutes())%60, int(p.CPU.Seconds())%60), p.Command,
				})
			}
			return printTable(c.Out(), rows)
		}),
	}
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
