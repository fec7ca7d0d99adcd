package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/pflag"
)

// globals are the flags that stand before the command.
type globals struct {
	debug bool
	term  *terminal // standard error
}

// newRoot makes the tree of commands. Everything that sbx itself says goes to term.
func newRoot(term *terminal) *command {
	g := &globals{term: term}
	root := &command{
		Use:   "sbx [OPTIONS] COMMAND",
		Short: "Run container images without root and without a daemon",
		Example: `  sbx run --rm -p 8080:80 demo
  sbx run --rm -it -v "$PWD:/work" -w /work debian:12 bash
  sbx help run`,
	}
	// What is no boolean is false.
	g.debug, _ = strconv.ParseBool(os.Getenv("SBX_DEBUG"))
	root.Flags().BoolP("version", "v", false, "print the version")
	add := func(category string, cmds ...*command) {
		for _, c := range cmds {
			c.Category = category
		}
		root.add(cmds...)
	}
	add(categories[0], runCommand(g), createCommand(g), startCommand(g), stopCommand(g), restartCommand(g), killCommand(g),
		removeCommand(g), psCommand(g), logsCommand(g), execCommand(g), attachCommand(g), waitCommand(g), inspectAnyCommand(g),
		renameCommand(g), commitCommand(g), cpCommand(g), diffCommand(g), exportCommand(g), portCommand(g), topCommand(g), statsCommand(g), pauseCommand(g),
		unpauseCommand(g), updateCommand(g))
	add(categories[1], pullCommand(g), loadCommand(g), importCommand(g), imagesCommand(g), rmiCommand(g), tagCommand(g), imageCommand(g), volumeCommand(g), networkCommand(g))
	add(categories[2], systemCommand(g), eventsCommand(g), doctorCommand(g), infoCommand(g), versionCommand(), completionCommand(), helpCommand())
	root.add(completeCommand(), manualCommand())
	prepare(root, g)
	root.add(containerCommand(g, root))
	return root
}

// containerCommand is docker container, whose commands are those about sandboxes.
func containerCommand(g *globals, root *command) *command {
	group := &command{Use: "container COMMAND", Short: "The commands about sandboxes, under docker's other names", Category: categories[0]}
	group.add(boxPruneCommand(g))
	prepare(group, g)
	for _, c := range root.commands {
		if c.Category != categories[0] {
			continue
		}
		same := *c
		same.mirrors, same.Category = c, ""
		if c.Name() == "ps" {
			same.Use, same.Aliases = "ls [OPTIONS]", []string{"ps", "list"}
		}
		group.add(&same)
	}
	return group
}

// categories are the headings of the commands, in the order of the help.
var categories = []string{"Sandboxes", "Images and volumes", "System"}

// prepare gives every command the flags that all have.
func prepare(c *command, g *globals) {
	own := c.Define
	c.Define = func(c *command) {
		if own != nil {
			own(c)
		}
		commonFlags(c, g)
	}
	if c.flags != nil { // it has defined its own already
		commonFlags(c, g)
	}
	for _, s := range c.commands {
		prepare(s, g)
	}
}

func commonFlags(c *command, g *globals) {
	fs := c.Flags()
	// Docker's -h is --hostname under run, and help elsewhere.
	h := "h"
	if fs.ShorthandLookup(h) != nil {
		h = ""
	}
	fs.BoolP("help", h, false, "show this help")
	// The variable's value is not the default: the help would show it.
	debug := g.debug
	fs.BoolVarP(&g.debug, "debug", "D", false, "log what happens, on standard error; also SBX_DEBUG=1")
	g.debug = debug
	fs.Lookup("debug").Hidden = c.parent != nil
}

// runGroup is the action of a command that only has others below it.
func runGroup(c *command, args []string) error {
	if len(args) == 0 {
		return printHelp(c.Out(), c)
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

func unknownCommand(c *command, name string) error {
	see := "see " + c.Path() + " --help"
	if why := dockerOnly[name]; why != "" && c.parent == nil {
		return &usage{msg: fmt.Sprintf("%q is not a command of sbx", name), fix: why}
	}
	var names []string
	for _, s := range c.visible() {
		names = append(names, s.names()...)
	}
	if near := nearest(names, name); near != "" {
		see = fmt.Sprintf("did you mean %s %s? Else %s", c.Path(), near, see)
	}
	return &usage{msg: fmt.Sprintf("%q is not a command of %s", name, c.Path()), fix: see}
}

// flagError says on one line what is wrong with a flag, and the likely remedy.
func flagError(c *command, err error) error {
	see := "see " + c.Path() + " --help"
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
		rest := missing.GetSpecifiedShortnames()
		if len(rest) > 1 && c.Flags().Lookup(rest) != nil { // -rm
			return &usage{msg: "unknown flag -" + name, fix: fmt.Sprintf("did you mean --%s? Else %s", rest, see)}
		}
		return unknownFlag(c, name, rest != "")
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

func unknownFlag(c *command, name string, short bool) error {
	see := "see " + c.Path() + " --help"
	if short {
		return &usage{msg: "unknown flag -" + name, fix: see}
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	if near := nearest(names, name); near != "" {
		see = fmt.Sprintf("did you mean --%s? Else %s", near, see)
	}
	return &usage{msg: "unknown flag --" + name, fix: see}
}

// nearest finds what name was probably meant to be, nothing if that is far: the first
// that it begins, else the one with the fewest letters to change. urfave's own
// suggestions have no limit and name something for every word.
func nearest(names []string, name string) string {
	best, least := "", 3
	for _, n := range names {
		if len(name) > 2 && strings.HasPrefix(n, name) {
			return n
		}
		if d := distance(name, n); d < least && d < len(name) {
			best, least = n, d
		}
	}
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
func wantArgs(least, most int) argsCheck {
	return func(c *command, args []string) error {
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
		return &usage{msg: c.Path() + " " + what, fix: "usage: " + c.UseLine()}
	}
}

// newEngine opens the user's directories.
func newEngine(g *globals) (*sandbox.Engine, error) {
	return sandbox.NewEngine(sandbox.Options{Logger: newLogger(g.term, g.debug)})
}
