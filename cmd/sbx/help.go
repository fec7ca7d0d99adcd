package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// groupKey is the annotation that holds the heading a flag stands under.
const groupKey = "sbx_group"

// Columns of the help: at least narrow, which is also what a file gets.
const (
	narrow, wide = 80, 100
	textColumn   = 30 // where the flags' texts begin
)

func helpCommand() *command {
	return &command{
		Use:   "help [COMMAND]",
		Short: "Show the help of a command",
		RunE: func(c *command, args []string) error {
			at := c.Root()
			for _, a := range args {
				next := at.find(a)
				if next == nil {
					return unknownCommand(at, a)
				}
				at = next
			}
			return printHelp(c.Out(), at)
		},
		Complete: func(c *command, in typed) offers {
			at := c.Root()
			for _, a := range in.args {
				if at = at.find(a); at == nil {
					return offers{}
				}
			}
			return commandOffers(at)
		},
	}
}

func printHelp(w io.Writer, c *command) error {
	width := narrow
	if cols, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		width = min(max(cols, narrow), wide)
	}
	_, err := io.WriteString(w, helpText(c, width))
	return err
}

// helpText is the help of c: usage, description, commands, flags in groups.
func helpText(c *command, width int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n%s\n", c.UseLine(), c.Short)
	if c.Long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(c.Long))
	}
	if len(c.Aliases) > 0 {
		fmt.Fprintf(&b, "\nAlso: %s\n", strings.Join(c.Aliases, ", "))
	}
	helpCommands(&b, c)
	helpFlags(&b, c, width)
	if c.Example != "" {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", c.Example)
	}
	if len(c.commands) > 0 {
		fmt.Fprintf(&b, "\n%s COMMAND --help says more about a command.\n", c.Path())
	}
	return b.String()
}

func helpCommands(b *strings.Builder, c *command) {
	list := func(title, category string) {
		for _, s := range c.visible() {
			if s.Category != category {
				continue
			}
			if title != "" {
				fmt.Fprintf(b, "\n%s:\n", title)
				title = ""
			}
			fmt.Fprintf(b, "  %-12s %s\n", s.Name(), s.Short)
		}
	}
	for _, title := range categories {
		list(title, title)
	}
	list("Commands", "")
}

func helpFlags(b *strings.Builder, c *command, width int) {
	groups, order := flagGroups(c)
	for _, title := range order {
		fmt.Fprintf(b, "\n%s:\n", title)
		for _, f := range groups[title] {
			helpFlag(b, f, width)
		}
	}
}

// flagGroups are the flags that help shows, by their headings, and those in order.
func flagGroups(c *command) (groups map[string][]*pflag.Flag, order []string) {
	groups = map[string][]*pflag.Flag{}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		title := "Options"
		if g := f.Annotations[groupKey]; len(g) > 0 {
			title = g[0]
		}
		if groups[title] == nil {
			order = append(order, title)
		}
		groups[title] = append(groups[title], f)
	})
	return groups, order
}

// flagText is the name of a flag's value, "" for a switch, and what the flag does.
func flagText(f *pflag.Flag) (arg, text string) {
	arg, text = pflag.UnquoteUsage(f)
	if f.Value.Type() == "bool" {
		arg = ""
	}
	if d := f.DefValue; d != "" && d != "[]" && d != "0" && d != "false" && !strings.Contains(text, "(default") {
		text += " (default " + d + ")"
	}
	return arg, text
}

func helpFlag(b *strings.Builder, f *pflag.Flag, width int) {
	arg, text := flagText(f)
	left := "      --" + f.Name
	if f.Shorthand != "" {
		left = "  -" + f.Shorthand + ", --" + f.Name
	}
	if arg != "" {
		left += " " + arg
	}
	if utf8.RuneCountInString(left) > textColumn-2 {
		fmt.Fprintln(b, left)
		left = ""
	}
	for i, line := range wrap(text, width-textColumn) {
		if i > 0 {
			left = ""
		}
		fmt.Fprintf(b, "%-*s%s\n", textColumn, left, line)
	}
}

// wrap breaks text between words into lines of at most width characters.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(text) {
		switch {
		case line == "":
			line = w
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) <= width:
			line += " " + w
		default:
			lines = append(lines, line)
			line = w
		}
	}
	return append(lines, line)
}
