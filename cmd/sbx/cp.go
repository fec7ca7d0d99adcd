package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

func cpCommand(g *globals) *command {
	var (
		o     sandbox.CopyOptions
		quiet bool
	)
	c := &command{
		Use: "cp [OPTIONS] SANDBOX:PATH PATH|- | cp [OPTIONS] PATH|- SANDBOX:PATH", Short: "Copy files between a sandbox and the host", Args: wantArgs(2, 2),
		Long: "The sandbox need not run. Into a directory that is there a file or directory is\n" +
			"copied under its name, else it gets the new one; a directory with /. behind it\n" +
			"means what is in it. - is a tar stream. Volumes and bind mounts are seen as in\n" +
			"the sandbox; what is below /proc, /sys and /dev is not copied.\n" +
			"A path on the host that has a colon needs a slash before it: ./a:b.",
		Example:  "  sbx cp web:/etc/nginx/nginx.conf .\n  sbx cp site/. web:/usr/share/nginx/html\n  sbx cp web:/var/log - | tar t",
		Complete: completeCopy,
	}
	fs := c.Flags()
	fs.BoolVarP(&o.Owners, "archive", "a", false, "keep the owners, by their numbers; on the host only root can")
	fs.BoolVarP(&o.FollowLink, "follow-link", "L", false, "copy what a link leads to, if the source is one")
	fs.BoolVarP(&quiet, "quiet", "q", false, "do not say what was copied; nothing is said without a terminal")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		from, src := splitCopy(args[0])
		to, dst := splitCopy(args[1])
		switch {
		case from != "" && to != "":
			return &usage{msg: "copying between two sandboxes is not possible",
				fix: fmt.Sprintf("use two commands: sbx cp %s - | sbx cp - %s", args[0], args[1])}
		case from == "" && to == "":
			return &usage{msg: "one of the two must be in a sandbox", fix: "write it as SANDBOX:PATH"}
		}
		s, err := e.Open(ctx, from+to)
		if err != nil {
			return err
		}
		done := args[1]
		var res sandbox.Copied
		switch {
		case to != "" && src == "-":
			if term.IsTerminal(int(os.Stdin.Fd())) {
				return &usage{msg: "an archive is not typed on a terminal", fix: "redirect it: tar c DIR | sbx cp - " + args[1]}
			}
			res, err = s.CopyTarTo(ctx, c.In(), dst, o)
		case to != "":
			res, err = s.CopyTo(ctx, src, dst, o)
		case dst == "-":
			if out, ok := c.Out().(*os.File); ok && term.IsTerminal(int(out.Fd())) {
				return &usage{msg: "an archive is not for a terminal", fix: "redirect the output, or give a path in place of -"}
			}
			quiet = true
			res, err = s.CopyTarFrom(ctx, src, c.Out(), o)
		default:
			if done, err = filepath.Abs(dst); err == nil {
				res, err = s.CopyFrom(ctx, src, dst, o)
			}
		}
		printCopyNotes(g, res)
		if err == nil && !quiet && term.IsTerminal(int(os.Stdout.Fd())) {
			fmt.Fprintf(c.Err(), "Successfully copied %s to %s\n", units.HumanSizeWithPrecision(float64(res.Bytes), 3), done)
		}
		return err
	})
	return c
}

// splitCopy reads SANDBOX:PATH. A path of the host that has a colon begins with / or .
func splitCopy(arg string) (box, path string) {
	if strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return "", arg
	}
	box, path, ok := strings.Cut(arg, ":")
	if !ok || box == "" {
		return "", arg
	}
	return box, path
}

// completeCopy offers sandboxes with the colon behind them, else files.
func completeCopy(c *command, in typed) (o offers) {
	if len(in.args) >= 2 {
		return o
	}
	for _, name := range completeBoxes(-1, nil)(c, typed{}).words {
		if strings.HasPrefix(name+":", in.current) {
			o.words, o.then = append(o.words, name+":"), offerPart
		}
	}
	if len(o.words) == 0 {
		o.then = offerFiles
	}
	return o
}
