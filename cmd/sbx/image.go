package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/image"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"
)

// withStore opens the image store for a command, which an interrupt ends cleanly.
func withStore(f func(context.Context, *cli.Context, *image.Store) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		e, err := newEngine(c)
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		err = f(ctx, c, store)
		if errors.Is(err, context.Canceled) {
			return interrupted(syscall.SIGINT)
		}
		return err
	}
}

// wantArgs checks the number of arguments.
func wantArgs(c *cli.Context, least, most int) error {
	if n := c.NArg(); n < least || most >= 0 && n > most {
		return usagef("usage: sbx %s %s", strings.TrimPrefix(c.Command.HelpName, "sbx "), c.Command.ArgsUsage)
	}
	return nil
}

func pullCommand() *cli.Command {
	return &cli.Command{
		Name: "pull", Usage: "fetch an image from a registry", ArgsUsage: "IMAGE",
		Flags: []cli.Flag{
			str("platform", "`OS/ARCH[/VARIANT]` of the image"),
			flag("insecure", "allow plain HTTP and unverified certificates"),
			flag("quiet", "print the id only", "q"),
		},
		Action: withStore(func(ctx context.Context, c *cli.Context, s *image.Store) error {
			if err := wantArgs(c, 1, 1); err != nil {
				return err
			}
			bars := newProgress(c.App.ErrWriter, c.Bool("quiet"))
			img, err := s.Pull(ctx, c.Args().First(), image.PullOptions{
				Platform: c.String("platform"), Insecure: c.Bool("insecure"), Progress: bars.event,
			})
			bars.close()
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, img.ID)
			return nil
		}),
	}
}

func loadCommand() *cli.Command {
	return &cli.Command{
		Name: "load", Usage: "read images from an archive or an OCI layout directory", ArgsUsage: "[PATH]",
		Description: "Reads what docker save, podman save and OCI tools write, from PATH or standard input.",
		Flags: []cli.Flag{
			str("input", "read `PATH` instead of standard input", "i"),
			str("platform", "`OS/ARCH[/VARIANT]` of the image"),
			str("tag", "`NAME` for an image that has none in the archive"),
			flag("quiet", "no progress", "q"),
		},
		Action: withStore(func(ctx context.Context, c *cli.Context, s *image.Store) error {
			if err := wantArgs(c, 0, 1); err != nil {
				return err
			}
			path := c.String("input")
			if c.NArg() == 1 {
				path = c.Args().First()
			}
			bars := newProgress(c.App.ErrWriter, c.Bool("quiet"))
			opts := image.LoadOptions{Name: c.String("tag"), Platform: c.String("platform"), Progress: bars.event}
			var imgs []*image.Image
			var err error
			switch {
			case path != "" && path != "-":
				imgs, err = s.Load(ctx, path, opts)
			case term.IsTerminal(int(os.Stdin.Fd())):
				return usagef("sbx load reads an archive from standard input, which is a terminal; name a file with -i")
			default:
				imgs, err = s.LoadFrom(ctx, os.Stdin, opts)
			}
			bars.close()
			if err != nil {
				return err
			}
			for _, img := range imgs {
				if len(img.Names) == 0 {
					fmt.Fprintf(c.App.Writer, "Loaded image ID: %s\n", img.ID)
				}
				for _, n := range img.Names {
					fmt.Fprintf(c.App.Writer, "Loaded image: %s\n", n)
				}
			}
			return nil
		}),
	}
}

// imageRow has the keys of docker images --format.
type imageRow struct {
	Repository, Tag, ID, Digest, CreatedSince, CreatedAt, Size string
}

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name: "images", Usage: "list images", ArgsUsage: "[NAME]",
		Flags: []cli.Flag{formatFlag(), flag("quiet", "print ids only", "q"), flag("no-trunc", "print whole ids"), flag("digests", "show digests")},
		Action: withStore(func(ctx context.Context, c *cli.Context, s *image.Store) error {
			if err := wantArgs(c, 0, 1); err != nil {
				return err
			}
			imgs, err := s.List(ctx)
			if err != nil {
				return err
			}
			rows := imageRows(imgs, c.Args().First(), c.Bool("no-trunc"))
			if c.Bool("quiet") {
				seen := map[string]bool{}
				for _, r := range rows {
					if !seen[r.ID] {
						fmt.Fprintln(c.App.Writer, r.ID)
					}
					seen[r.ID] = true
				}
				return nil
			}
			if done, err := printFormat(c.App.Writer, c.String("format"), rows); done || err != nil {
				return err
			}
			header := []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"}
			if c.Bool("digests") {
				header = []string{"REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"}
			}
			var table [][]string
			for _, r := range rows {
				row := []string{r.Repository, r.Tag}
				if c.Bool("digests") {
					row = append(row, r.Digest)
				}
				table = append(table, append(row, r.ID, r.CreatedSince, r.Size))
			}
			return printTable(c.App.Writer, header, table)
		}),
	}
}

func imageRows(imgs []*image.Image, only string, whole bool) []imageRow {
	var rows []imageRow
	for _, img := range imgs {
		id := img.ID
		if !whole {
			id = strings.TrimPrefix(id, "sha256:")[:12]
		}
		names := img.Names
		if len(names) == 0 {
			names = []string{"<none>:<none>"}
		}
		for _, n := range names {
			repo, tag := n, "<none>"
			if i := strings.LastIndex(n, ":"); i > strings.LastIndex(n, "/") {
				repo, tag = n[:i], n[i+1:]
			}
			if only != "" && only != n && only != repo {
				continue
			}
			row := imageRow{Repository: repo, Tag: tag, ID: id, Digest: img.Manifest.Digest, Size: units.HumanSizeWithPrecision(float64(img.Size), 3), CreatedSince: "N/A", CreatedAt: "N/A"}
			if t := img.Created(); !t.IsZero() && t.Unix() > 0 {
				row.CreatedSince = units.HumanDuration(time.Since(t)) + " ago"
				row.CreatedAt = t.Format(time.RFC3339)
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func rmiCommand() *cli.Command {
	return &cli.Command{
		Name: "rmi", Usage: "remove images", ArgsUsage: "IMAGE [IMAGE...]",
		Flags: []cli.Flag{flag("force", "remove an image of several names", "f")},
		Action: withStore(func(ctx context.Context, c *cli.Context, s *image.Store) error {
			if err := wantArgs(c, 1, -1); err != nil {
				return err
			}
			failed := false
			for _, ref := range c.Args().Slice() {
				done, err := s.Remove(ctx, ref, c.Bool("force"))
				for _, l := range done {
					fmt.Fprintln(c.App.Writer, l)
				}
				if err != nil {
					printError(c.App.ErrWriter, err)
					failed = true
				}
			}
			if failed {
				return exitStatus(1)
			}
			return nil
		}),
	}
}

func tagCommand() *cli.Command {
	return &cli.Command{
		Name: "tag", Usage: "give an image another name", ArgsUsage: "IMAGE NAME[:TAG]",
		Action: withStore(func(ctx context.Context, c *cli.Context, s *image.Store) error {
			if err := wantArgs(c, 2, 2); err != nil {
				return err
			}
			return s.Tag(ctx, c.Args().Get(0), c.Args().Get(1))
		}),
	}
}

func imageCommand() *cli.Command {
	list, remove := imagesCommand(), rmiCommand()
	list.Name, list.Aliases = "ls", []string{"list"}
	remove.Name = "rm"
	return &cli.Command{
		Name: "image", Usage: "manage images",
		Subcommands: []*cli.Command{list, remove, pullCommand(), loadCommand(), tagCommand(), {
			Name: "inspect", Usage: "show everything about images, as docker image inspect does", ArgsUsage: "IMAGE [IMAGE...]",
			Flags:  []cli.Flag{str("format", "Go `TEMPLATE` of the output", "f")},
			Action: withStore(inspectImages),
		}},
	}
}

func inspectImages(ctx context.Context, c *cli.Context, s *image.Store) error {
	if err := wantArgs(c, 1, -1); err != nil {
		return err
	}
	list := []*image.Inspection{}
	for _, ref := range c.Args().Slice() {
		in, err := s.Inspect(ctx, ref)
		if err != nil {
			return err
		}
		list = append(list, in)
	}
	if f := c.String("format"); f != "" && f != "json" {
		_, err := printFormat(c.App.Writer, f, list)
		return err
	}
	enc := json.NewEncoder(c.App.Writer)
	enc.SetIndent("", "    ")
	return enc.Encode(list)
}
