// Command sbx runs container images without root and without a daemon.
//
// It only parses flags, calls the sandbox package, prints, and maps errors to
// exit codes; whatever it can do, a program that imports the packages can do.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/urfave/cli/v2"
)

// version is set by the build.
var version = "dev"

func main() {
	sandbox.MaybeInit()
	os.Exit(run(os.Args))
}

func run(args []string) int {
	// Docker's -h is --hostname and its -v is --volume.
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Usage: "show help", DisableDefaultText: true}
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Usage: "print the version", DisableDefaultText: true}
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprintln(c.App.Writer, "sbx version", version) }
	err := newApp().RunContext(context.Background(), args)
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	if err != nil {
		printError(os.Stderr, err)
		return exitCode(err)
	}
	return 0
}

// exitStatus is the end of a command that has already said everything.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

func newApp() *cli.App {
	app := &cli.App{
		Name:                      "sbx",
		Usage:                     "run container images without root and without a daemon",
		Version:                   version,
		EnableBashCompletion:      true,
		DisableSliceFlagSeparator: true, // commas belong to --mount and to values
		HideHelpCommand:           true,
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              usageError,
		CommandNotFound:           nil,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Aliases: []string{"D"}, Usage: "log what happens, on stderr", EnvVars: []string{"SBX_DEBUG"}},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 0 {
				return usagef("%q is not a command of sbx; see sbx --help", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			runCommand(),
			pullCommand(), loadCommand(), imagesCommand(), rmiCommand(), tagCommand(), imageCommand(),
			doctorCommand(), infoCommand(), versionCommand(),
			completionCommand(),
		},
	}
	for _, c := range app.Commands {
		prepare(c)
	}
	return app
}

// prepare gives every command the same conventions.
func prepare(c *cli.Command) {
	c.UseShortOptionHandling = true
	c.HideHelpCommand = true
	c.OnUsageError = usageError
	for _, s := range c.Subcommands {
		prepare(s)
	}
}

func usageError(c *cli.Context, err error, _ bool) error {
	name := "sbx"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != "sbx" {
		name += " " + c.Command.Name
	}
	return usagef("%v; see %s --help", err, name)
}

// newEngine opens the user's directories.
func newEngine(c *cli.Context) (*sandbox.Engine, error) {
	return sandbox.NewEngine(sandbox.Options{Logger: newLogger(c)})
}

func newLogger(c *cli.Context) *slog.Logger {
	level := slog.LevelWarn
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(c.App.ErrWriter, &slog.HandlerOptions{Level: level}))
}
