package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/rootless-sbx/sbx/image"
	"golang.org/x/term"
)

func importCommand(g *globals) *command {
	var o image.ImportOptions
	var changes []string
	c := &command{
		Use: "import [OPTIONS] FILE|- [NAME[:TAG]]", Short: "Make an image of a root file system in a tar archive", Args: wantArgs(1, 2),
		Long: "The archive is compressed or not, as docker export and sbx export write it. It\n" +
			"says nothing about what to run: --change does, with the words of sbx commit.",
		Example:  "  sbx import -c 'CMD [\"/bin/sh\"]' rootfs.tar.gz box:1\n  curl -L https://example.com/rootfs.tar.gz | sbx import - box:1",
		Complete: func(*command, typed) offers { return offers{then: offerFiles} },
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			err := image.ApplyChanges(&o.Config, changes)
			var ce *image.ChangeError
			if errors.As(err, &ce) {
				return &usage{msg: err.Error(), fix: "see " + c.Path() + " --help"}
			}
			if err != nil {
				return err
			}
			if len(args) == 2 {
				o.Name = args[1]
			}
			o.Comment = cmp.Or(o.Comment, "Imported from "+args[0])
			r, err := openImport(args[0])
			if err != nil {
				return err
			}
			defer r.Close()
			img, err := s.Import(ctx, r, o)
			if err != nil {
				return endedBy(ctx, err)
			}
			return printLines(c.Out(), img.ID)
		}),
	}
	fs := c.Flags()
	fs.StringArrayVarP(&changes, "change", "c", nil, "apply a Dockerfile's `INSTRUCTION` to the image")
	fs.StringVarP(&o.Comment, "message", "m", "", "a note for the image's history")
	fs.StringVar(&o.Platform, "platform", "", "`PLATFORM` of the programs in it, as OS/ARCH[/VARIANT]")
	return c
}

func openImport(path string) (io.ReadCloser, error) {
	switch {
	case strings.HasPrefix(path, "http://") || strings.HasPrefix(path, "https://"):
		return nil, &usage{msg: "sbx import reads files, not " + path, fix: "curl -L " + path + " | sbx import - NAME"}
	case path != "-":
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			return nil, &usage{msg: path + " is a directory", fix: "tar -C " + path + " -c . | sbx import - NAME; or run it as it is: sbx run --rootfs " + path}
		}
		return os.Open(path)
	case term.IsTerminal(int(os.Stdin.Fd())):
		return nil, &usage{msg: "sbx import - reads an archive from standard input, which is a terminal", fix: "sbx import FILE NAME"}
	}
	return io.NopCloser(os.Stdin), nil
}
