package main

import (
	"context"
	"os"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

// changeRow has the keys of docker diff --format.
type changeRow struct{ Type, Path string }

func diffCommand(g *globals) *command {
	var format string
	c := &command{
		Use: "diff [OPTIONS] SANDBOX", Short: "Show which files of a sandbox have changed since it was made", Args: wantArgs(1, 1),
		Long:     "A is an added, C a changed and D a deleted file. What is in volumes and other\nmounts is not the sandbox's own.",
		Complete: completeBoxes(1, nil),
		RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, _ []string) error {
			list, err := s.Diff(ctx)
			if err != nil {
				return err
			}
			rows := make([]changeRow, len(list))
			for i, ch := range list {
				rows[i] = changeRow{ch.Kind.String(), ch.Path}
			}
			if format != "" {
				return printItems(c.Out(), format, map[string]string{"Type": "CHANGE TYPE", "Path": "PATH"}, rows)
			}
			show := func(path string) string { return path }
			if out, ok := c.Out().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
				show = harmless
			}
			for _, r := range rows {
				if err := printLines(c.Out(), r.Type+" "+show(r.Path)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	c.Flags().StringVar(&format, "format", "", "print `FORMAT`: json, or a Go template")
	return c
}
