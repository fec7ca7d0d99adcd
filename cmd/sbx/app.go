package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"github.com/urfave/cli/v2"
)

// command is a command, or a group of them. urfave/cli dispatches to it; the flags
// of a command are read by pflag, whose grammar is docker's: -itp8080:80, and
// nothing behind IMAGE. Package flag, which urfave/cli has below, knows neither.
type command struct {
	Use                  string // the name, then the arguments
	Aliases              []string
	Short, Long, Example string
	Category             string
	Hidden               bool
	Raw                  bool       // take the arguments as they are, flags too
	OptionsFirst         bool       // flags end at the first argument
	Args                 argsCheck  // nil takes any
	Complete             completion // nil offers nothing
	// RunE of a group runs for arguments that name none of its commands; nil refuses
	// them.
	RunE func(c *command, args []string) error
	// Define adds flags when they are first asked for, which for most commands of a
	// process is never.
	Define func(c *command)

	parent   *command
	commands []*command // sorted by name; a command that has some is a group
	flags    *pflag.FlagSet
	mirrors  *command     // the command that it is the same as, by another name
	ctx      *cli.Context // while it runs
}

type argsCheck func(c *command, args []string) error

func (c *command) Name() string {
	name, _, _ := strings.Cut(c.Use, " ")
	return name
}

func (c *command) names() []string { return append([]string{c.Name()}, c.Aliases...) }

// Path is the name with those of the groups before it.
func (c *command) Path() string {
	if c.parent == nil {
		return c.Name()
	}
	return c.parent.Path() + " " + c.Name()
}

// UseLine is how to call it.
func (c *command) UseLine() string {
	if c.parent == nil {
		return c.Use
	}
	return c.parent.Path() + " " + c.Use
}

func (c *command) Root() *command {
	for c.parent != nil {
		c = c.parent
	}
	return c
}

func (c *command) Flags() *pflag.FlagSet {
	if c.flags == nil {
		c.flags = pflag.NewFlagSet(c.Name(), pflag.ContinueOnError)
		c.flags.SortFlags = false
		if c.Define != nil {
			c.Define(c)
		}
	}
	return c.flags
}

func (c *command) Context() context.Context { return c.ctx.Context }
func (c *command) In() io.Reader            { return c.ctx.App.Reader }
func (c *command) Out() io.Writer           { return c.ctx.App.Writer }
func (c *command) Err() io.Writer           { return c.ctx.App.ErrWriter }

func (c *command) add(cmds ...*command) {
	for _, s := range cmds {
		s.parent = c
	}
	c.commands = append(c.commands, cmds...)
	slices.SortFunc(c.commands, func(a, b *command) int { return cmp.Compare(a.Name(), b.Name()) })
}

// find returns the command of that name below c, nil if there is none.
func (c *command) find(name string) *command {
	for _, s := range c.commands {
		if !s.Hidden && slices.Contains(s.names(), name) {
			return s
		}
	}
	return nil
}

// visible are the commands that help and completion show.
func (c *command) visible() (list []*command) {
	for _, s := range c.commands {
		if !s.Hidden {
			list = append(list, s)
		}
	}
	return list
}

// streams are those of a command line.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

// execute runs a command line on the root of the tree.
func (c *command) execute(ctx context.Context, args []string, std streams) error {
	app := &cli.App{
		Name: c.Name(), Usage: c.Short, UsageText: c.Use, Version: version,
		Reader: std.in, Writer: std.out, ErrWriter: std.err,
		HideHelp: true, UseShortOptionHandling: true,
		Flags: c.groupFlags(), OnUsageError: c.usageError, Action: c.run,
		// Errors become messages and exit codes in main.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	for _, s := range c.commands {
		app.Commands = append(app.Commands, s.cli())
	}
	return app.RunContext(ctx, append([]string{c.Name()}, args...))
}

// cli is c for urfave/cli.
func (c *command) cli() *cli.Command {
	u := &cli.Command{
		Name: c.Name(), Aliases: c.Aliases, Usage: c.Short, UsageText: c.UseLine(),
		Description: c.Long, Category: c.Category, Hidden: c.Hidden,
		HideHelp: true, OnUsageError: c.usageError, Action: c.run,
	}
	if len(c.commands) == 0 {
		u.SkipFlagParsing = true
		return u
	}
	u.Flags = c.groupFlags()
	for _, s := range c.commands {
		u.Subcommands = append(u.Subcommands, s.cli())
	}
	return u
}

// groupFlags are the flags of a group, which all are switches. --version is
// urfave's own, and --help ends its parsing with flag.ErrHelp.
func (c *command) groupFlags() (list []cli.Flag) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "version" {
			return
		}
		u := &cli.BoolFlag{Name: f.Name, Usage: f.Usage, Hidden: f.Hidden}
		if f.Shorthand != "" {
			u.Aliases = []string{f.Shorthand}
		}
		u.Action = func(_ *cli.Context, on bool) error { return f.Value.Set(strconv.FormatBool(on)) }
		list = append(list, u)
	})
	return list
}

// usageError is what urfave/cli calls for a flag of a group that it cannot read.
func (c *command) usageError(ctx *cli.Context, err error, _ bool) error {
	if errors.Is(err, flag.ErrHelp) {
		return printHelp(ctx.App.Writer, c)
	}
	// Package flag has no type for it.
	if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
		return unknownFlag(c, name, len(name) == 1)
	}
	return &usage{msg: err.Error(), fix: "see " + c.Path() + " --help"}
}

// run is the action that urfave/cli has dispatched to.
func (c *command) run(ctx *cli.Context) error {
	c.ctx = ctx
	args := ctx.Args().Slice()
	if len(c.commands) > 0 && (c.RunE == nil || len(args) == 0) {
		return runGroup(c, args)
	}
	if !c.Raw {
		c.Flags().SetInterspersed(!c.OptionsFirst)
		if err := c.Flags().Parse(args); err != nil {
			return flagError(c, err)
		}
		if help, err := c.Flags().GetBool("help"); err == nil && help {
			return printHelp(c.Out(), c)
		}
		args = c.Flags().Args()
	}
	if c.Args != nil {
		if err := c.Args(c, args); err != nil {
			return err
		}
	}
	return c.RunE(c, args)
}
