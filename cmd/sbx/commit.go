package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

func commitCommand(g *globals) *command {
	var (
		o              sandbox.CommitOptions
		pause, noPause bool
	)
	c := &command{
		Use: "commit [OPTIONS] SANDBOX [NAME[:TAG]]", Short: "Make an image of a sandbox", Args: wantArgs(1, 2),
		Long: "The image has the sandbox's configuration and a new layer with what has changed\n" +
			"in its files; what is in volumes is left out. --change takes the instructions\n" +
			"CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER,\n" +
			"VOLUME and WORKDIR.",
		Example:  "  sbx commit web web:patched\n  sbx commit -m 'with vim' -c 'CMD [\"bash\"]' -c 'ENV EDITOR=vim' box tools",
		Complete: completeBoxes(1, nil),
		RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, args []string) error {
			if len(args) > 0 {
				o.Name = args[0]
			}
			o.NoPause = noPause || !pause
			img, res, err := s.Commit(ctx, o)
			var ce *image.ChangeError
			if errors.As(err, &ce) {
				return &usage{msg: err.Error(), fix: "see " + c.Path() + " --help"}
			}
			if err != nil {
				return err
			}
			printCopyNotes(g, res)
			return printLines(c.Out(), img.ID)
		}),
	}
	fs := c.Flags()
	fs.StringVarP(&o.Author, "author", "a", "", "who has made it, e.g. \"Ada <ada@example.com>\"")
	fs.StringArrayVarP(&o.Changes, "change", "c", nil, "apply a Dockerfile's `INSTRUCTION` to the image")
	fs.StringVarP(&o.Message, "message", "m", "", "a note for the image's history")
	fs.BoolVarP(&pause, "pause", "p", true, "let the sandbox stand still meanwhile, if it has a cgroup")
	fs.BoolVar(&noPause, "no-pause", false, "let it run on")
	return c
}

func exportCommand(g *globals) *command {
	var file string
	c := &command{
		Use: "export [OPTIONS] SANDBOX", Short: "Write a sandbox's root file system as a tar archive", Args: wantArgs(1, 1),
		Long:     "With the owners that the sandbox sees. Of a volume there is what it covers.",
		Example:  "  sbx export -o web.tar web\n  sbx export web | tar t",
		Complete: completeBoxes(1, nil),
		RunE: withBox(g, func(ctx context.Context, c *command, s *sandbox.Sandbox, _ []string) error {
			if file == "" {
				if out, ok := c.Out().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
					return &usage{msg: "an archive is not for a terminal", fix: "use -o FILE, or redirect the output"}
				}
				res, err := s.Export(ctx, c.Out())
				printCopyNotes(g, res)
				return err
			}
			f, err := atomicfile.Create(file)
			if err != nil {
				return err
			}
			defer f.Close()
			res, err := s.Export(ctx, f)
			printCopyNotes(g, res)
			if err != nil {
				return fmt.Errorf("export to %s: %w", file, err)
			}
			return f.Commit()
		}),
	}
	c.Flags().StringVarP(&file, "output", "o", "", "write to `FILE`")
	return c
}

// printCopyNotes says what could not be copied as it was.
func printCopyNotes(g *globals, res sandbox.Copied) {
	for _, n := range res.Notes {
		say(g.term, "sbx: note: %s", n)
	}
	if res.MoreNotes > 0 {
		say(g.term, "sbx: note: and %d more like these", res.MoreNotes)
	}
}
