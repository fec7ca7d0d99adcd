package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/rootless-sbx/sbx/image"
	"golang.org/x/term"
)

type storeAction func(ctx context.Context, c *command, s *image.Store, args []string) error

// withStore opens the image store for a command, which an interrupt ends cleanly.
func withStore(g *globals, f storeAction) func(*command, []string) error {
	return func(c *command, args []string) error {
		e, err := newEngine(g)
		if err != nil {
			return err
		}
		store, err := e.Images()
		if err != nil {
			return err
		}
		ctx, stop := withInterrupt(c.Context())
		defer stop()
		return f(ctx, c, store, args)
	}
}

// withInterrupt returns a context that a signal ends, with the signal as cause.
func withInterrupt(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case sig := <-ch:
			cancel(interrupted(sig.(syscall.Signal)))
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(ch)
		cancel(nil)
	}
}

// endedBy prefers the signal to what the store says about a context that ended.
func endedBy(ctx context.Context, err error) error {
	var (
		sig    interrupted
		status exitStatus
	)
	if err != nil && !errors.As(err, &status) && errors.As(context.Cause(ctx), &sig) {
		return sig
	}
	return err
}

func pullCommand(g *globals) *command {
	var opts image.PullOptions
	var quiet bool
	c := &command{
		Use: "pull [OPTIONS] IMAGE", Short: "Fetch an image from a registry", Args: wantArgs(1, 1),
		Long: `Credentials are those of docker, podman and their credential helpers. Registries
on the loopback interface are tried with plain HTTP too.`,
		Complete: completeImages(1),
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			bars := newProgress(g.term.f, quiet)
			opts.Progress = bars.event
			img, err := s.Pull(ctx, args[0], opts)
			bars.close()
			if err != nil {
				return endedBy(ctx, err)
			}
			return printLines(c.Out(), img.ID)
		}),
	}
	fs := c.Flags()
	fs.StringVar(&opts.Platform, "platform", "", "`PLATFORM` of the image, as OS/ARCH[/VARIANT]")
	defineRefused(fs, unsupportedFlag{name: "all-tags", short: "a", boolean: true, harmless: []string{"false"}, why: "one image at a time is pulled", fix: "sbx pull NAME:TAG for each"})
	defineRefused(fs, unsupportedFlag{name: "disable-content-trust", boolean: true, harmless: []string{"true", "false"}})
	fs.BoolVar(&opts.Insecure, "insecure", false, "allow plain HTTP and unverified certificates")
	fs.BoolVarP(&quiet, "quiet", "q", false, "no progress, only the id")
	return c
}

func loadCommand(g *globals) *command {
	var opts image.LoadOptions
	var input string
	var quiet bool
	c := &command{
		Use: "load [OPTIONS] [PATH]", Short: "Read images from an archive or an OCI layout directory", Args: wantArgs(0, 1),
		Long:     "Reads what docker save, podman save and OCI tools write, compressed or not,\nfrom PATH or standard input.",
		Complete: func(*command, typed) offers { return offers{then: offerFiles} },
		Example:  "  sbx load -i image.tar\n  docker save debian:12 | sbx load",
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			path := input
			if len(args) == 1 {
				if input != "" {
					return usagef("sbx load reads one archive, not %s and %s", input, args[0])
				}
				path = args[0]
			}
			fromStdin := path == "" || path == "-"
			if fromStdin && term.IsTerminal(int(os.Stdin.Fd())) {
				return &usage{msg: "sbx load reads an archive from standard input, which is a terminal", fix: "sbx load -i FILE"}
			}
			bars := newProgress(g.term.f, quiet)
			opts.Progress = bars.event
			var imgs []*image.Image
			var err error
			if fromStdin {
				imgs, err = s.LoadFrom(ctx, os.Stdin, opts)
			} else {
				imgs, err = s.Load(ctx, path, opts)
			}
			bars.close()
			if err != nil {
				return endedBy(ctx, err)
			}
			return printLines(c.Out(), loaded(imgs)...)
		}),
	}
	fs := c.Flags()
	fs.StringVarP(&input, "input", "i", "", "read `PATH` instead of standard input")
	fs.StringVar(&opts.Platform, "platform", "", "`PLATFORM` of the image, as OS/ARCH[/VARIANT]")
	fs.StringVar(&opts.Name, "tag", "", "`NAME` for an image that has none in the archive")
	fs.BoolVarP(&quiet, "quiet", "q", false, "no progress")
	return c
}

// loaded are docker load's words.
func loaded(imgs []*image.Image) []string {
	var lines []string
	for _, img := range imgs {
		if len(img.Names) == 0 {
			lines = append(lines, "Loaded image ID: "+img.ID)
		}
		for _, n := range img.Names {
			lines = append(lines, "Loaded image: "+n)
		}
	}
	return lines
}

func printLines(w io.Writer, lines ...string) error {
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, l); err != nil {
			return err
		}
	}
	return nil
}

func rmiCommand(g *globals) *command {
	var force bool
	c := &command{
		Use: "rmi [OPTIONS] IMAGE [IMAGE...]", Short: "Remove images", Args: wantArgs(1, -1),
		Complete: completeImages(-1),
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			failed := false
			for _, ref := range args {
				done, err := s.Remove(ctx, ref, force)
				if perr := printLines(c.Out(), done...); perr != nil {
					return perr
				}
				if ctx.Err() != nil {
					return endedBy(ctx, err)
				}
				if force && errors.Is(err, image.ErrNotFound) {
					continue // as with rm -f
				}
				if err != nil {
					printError(c.Err(), err)
					failed = true
				}
			}
			if failed {
				return exitStatus(exitOwn)
			}
			return nil
		}),
	}
	c.Flags().Bool("no-prune", false, "no difference here: intermediate images are never made")
	refuse(c.Flags(), whyPlatform, "", "platform")
	c.Flags().BoolVarP(&force, "force", "f", false, "remove an image of several names, and do not mind one that is not there")
	return c
}

func tagCommand(g *globals) *command {
	return &command{
		Use: "tag IMAGE NAME[:TAG]", Short: "Give an image another name", Args: wantArgs(2, 2),
		Complete: completeImages(2),
		RunE: withStore(g, func(ctx context.Context, _ *command, s *image.Store, args []string) error {
			return s.Tag(ctx, args[0], args[1])
		}),
	}
}

// confirm asks before something that cannot be undone.
func confirm(c *command, what string) error {
	fmt.Fprintf(c.Err(), "%s Continue? [y/N] ", what)
	line, err := bufio.NewReader(c.In()).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if err != nil {
		fmt.Fprintln(c.Err())
	}
	if a := strings.ToLower(strings.TrimSpace(line)); a == "y" || a == "yes" {
		return nil
	}
	return &usage{msg: "nothing was removed: not confirmed", fix: "answer y, or give --force"}
}

func imageCommand(g *globals) *command {
	list, remove := imagesCommand(g), rmiCommand(g)
	list.Use, list.Aliases = "ls [OPTIONS] [NAME]", []string{"list"}
	remove.Use, remove.Aliases = "rm [OPTIONS] IMAGE [IMAGE...]", []string{"remove"}
	c := &command{Use: "image COMMAND", Short: "Manage images"}
	c.add(list, inspectCommand(g), pullCommand(g), loadCommand(g), importCommand(g), tagCommand(g), remove, imagePruneCommand(g))
	return c
}

func inspectCommand(g *globals) *command {
	var format string
	c := &command{
		Use: "inspect [OPTIONS] IMAGE [IMAGE...]", Short: "Show everything about images, as docker image inspect does", Args: wantArgs(1, -1),
		Complete: completeImages(-1),
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			list := []*image.Inspection{}
			var failed error
			for _, ref := range args {
				in, err := s.Inspect(ctx, ref)
				if err != nil {
					failed = errors.Join(failed, endedBy(ctx, err))
					continue
				}
				list = append(list, in)
			}
			return errors.Join(printInspection(c.Out(), format, list), failed)
		}),
	}
	refuse(c.Flags(), whyPlatform, "", "platform")
	c.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
	return c
}
