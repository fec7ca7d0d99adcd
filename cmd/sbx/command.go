package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// globals are the flags that stand before the command.
type globals struct {
	debug bool
	term  *terminal // standard error
}

// newRoot makes the tree of commands. Everything that sbx itself says goes to term.
func newRoot(term *terminal) *cobra.Command {
	g := &globals{term: term}
	g.debug, _ = strconv.ParseBool(os.Getenv("SBX_DEBUG"))
	root := &cobra.Command{
		Use:   "sbx [OPTIONS] COMMAND",
		Short: "Run container images without root and without a daemon",
		Example: `  sbx run --rm -p 8080:80 demo
  sbx run --rm -it -v "$PWD:/work" -w /work debian:12 bash
  sbx help run`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              runGroup,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.SetVersionTemplate("sbx version {{.Version}}\n")
	root.PersistentFlags().BoolVarP(&g.debug, "debug", "D", g.debug, "log what happens, on standard error; also SBX_DEBUG=1")
	root.Flags().BoolP("version", "v", false, "print the version")
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Sandboxes:"},
		&cobra.Group{ID: "image", Title: "Images:"},
		&cobra.Group{ID: "system", Title: "System:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", runCommand(g))
	add("image", pullCommand(g), loadCommand(g), imagesCommand(g), rmiCommand(g), tagCommand(g), imageCommand(g))
	add("system", doctorCommand(g), infoCommand(g), versionCommand(), completionCommand(), helpCommand())
	root.SetHelpCommand(helpCommandOf(root))
	root.SetHelpFunc(func(c *cobra.Command, _ []string) { printHelp(c.OutOrStdout(), c) })
	root.SetFlagErrorFunc(flagError)
	prepare(root)
	return root
}

// prepare gives every command the same conventions.
func prepare(c *cobra.Command) {
	c.Flags().SortFlags = false
	c.DisableFlagsInUseLine = true
	// Docker's -h is --hostname under run, and help elsewhere.
	if c.Flags().ShorthandLookup("h") == nil {
		c.Flags().BoolP("help", "h", false, "show this help")
	} else {
		c.Flags().Bool("help", false, "show this help")
	}
	for _, s := range c.Commands() {
		prepare(s)
	}
}

// runGroup is the action of a command that only has others below it.
func runGroup(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		printHelp(c.OutOrStdout(), c)
		return nil
	}
	return unknownCommand(c, args[0])
}

// dockerOnly are commands of docker that sbx does not have, and what to do instead.
var dockerOnly = map[string]string{
	"build":   "build with buildah, podman or docker, and read the image: docker save IMAGE | sbx load",
	"login":   "sbx reads ~/.docker/config.json and its credential helpers; log in with any tool that writes it",
	"logout":  "sbx reads ~/.docker/config.json and its credential helpers",
	"push":    "sbx runs images; push with the tool that built them",
	"save":    "images come from a registry or an archive: keep that",
	"compose": "start one sandbox for each service: sbx run",
	"swarm":   "sbx runs on one machine",
	"search":  "search on the registry's web page",
}

func unknownCommand(c *cobra.Command, name string) error {
	see := "see " + c.CommandPath() + " --help"
	if why := dockerOnly[name]; why != "" && !c.HasParent() {
		return &usage{msg: fmt.Sprintf("%q is not a command of sbx", name), fix: why}
	}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(name); len(near) > 0 {
		see = fmt.Sprintf("did you mean %s %s? Else %s", c.CommandPath(), near[0], see)
	}
	return &usage{msg: fmt.Sprintf("%q is not a command of %s", name, c.CommandPath()), fix: see}
}

// flagError says on one line what is wrong with a flag, and the likely remedy.
func flagError(c *cobra.Command, err error) error {
	see := "see " + c.CommandPath() + " --help"
	var (
		un      *unsupportedError
		missing *pflag.NotExistError
		empty   *pflag.ValueRequiredError
		value   *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &un):
		return &usage{msg: un.Error(), fix: un.fix}
	case errors.As(err, &missing):
		name := missing.GetSpecifiedName()
		if rest := missing.GetSpecifiedShortnames(); rest != "" {
			if len(rest) > 1 && c.Flags().Lookup(rest) != nil { // -rm
				see = fmt.Sprintf("did you mean --%s? Else %s", rest, see)
			}
			return &usage{msg: "unknown flag -" + name, fix: see}
		}
		if near := nearestFlag(c.Flags(), name); near != "" {
			see = fmt.Sprintf("did you mean --%s? Else %s", near, see)
		}
		return &usage{msg: "unknown flag --" + name, fix: see}
	case errors.As(err, &empty):
		arg, text := pflag.UnquoteUsage(empty.GetFlag())
		return &usage{msg: fmt.Sprintf("--%s needs a value", empty.GetFlag().Name), fix: fmt.Sprintf("--%s %s: %s", empty.GetFlag().Name, arg, text)}
	case errors.As(err, &value):
		f, cause := value.GetFlag(), value.Unwrap()
		var num *strconv.NumError
		if errors.As(cause, &num) {
			want := map[string]string{"bool": "true or false", "int": "a whole number"}[f.Value.Type()]
			cause = fmt.Errorf("want %s", want)
		}
		return &usage{msg: fmt.Sprintf("--%s %q: %v", f.Name, value.GetValue(), cause), fix: see}
	}
	return &usage{msg: err.Error(), fix: see}
}

// nearestFlag finds the flag that name was probably meant to be: the first that it
// begins, else the one with the fewest letters to change.
func nearestFlag(fs *pflag.FlagSet, name string) string {
	best, least := "", 3
	fs.VisitAll(func(f *pflag.Flag) {
		switch d := distance(name, f.Name); {
		case f.Hidden || least == 0:
		case len(name) > 2 && strings.HasPrefix(f.Name, name):
			best, least = f.Name, 0
		case d < least && d < len(name):
			best, least = f.Name, d
		}
	})
	return best
}

// distance is the number of letters to change (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// wantArgs checks the number of arguments; most < 0 means any number.
func wantArgs(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if n := len(args); n >= least && (most < 0 || n <= most) {
			return nil
		}
		what := fmt.Sprintf("takes %d argument", most)
		switch {
		case most == 0:
			what = "takes no argument"
		case len(args) < least && least == most:
			what = fmt.Sprintf("needs %d argument", least)
		case len(args) < least:
			what = fmt.Sprintf("needs at least %d argument", least)
		case least != most:
			what = fmt.Sprintf("takes at most %d argument", most)
		}
		if least > 1 || most > 1 && len(args) > most {
			what += "s"
		}
		return &usage{msg: c.CommandPath() + " " + what, fix: "usage: " + c.UseLine()}
	}
}

// newEngine opens the user's directories.
func newEngine(g *globals) (*sandbox.Engine, error) {
	return sandbox.NewEngine(sandbox.Options{Logger: newLogger(g.term, g.debug)})
}
