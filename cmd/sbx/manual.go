package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
)

// The manual pages are made from the commands, like the help and docs/cli.md: here in
// the Markdown that go-md2man turns into roff, see the Makefile. The program itself does
// without its parser, which each process would initialise.

func manualCommand() *command {
	return &command{
		Use: "__manual DIR DATE", Short: "Write the manual pages", Hidden: true, Args: wantArgs(2, 2),
		RunE: func(c *command, args []string) (err error) {
			everyCommand(c.Root(), func(c *command) {
				page := filepath.Join(args[0], pageName(c)+".1.md")
				err = errors.Join(err, os.WriteFile(page, []byte(manualPage(c, args[1])), 0o644))
			})
			return err
		},
	}
}

// everyCommand calls f for c and what is below it, once for each.
func everyCommand(c *command, f func(*command)) {
	f(c)
	for _, s := range c.visible() {
		if s.mirrors == nil {
			everyCommand(s, f)
		}
	}
}

// pageName is the name of a command's page: sbx-image-ls.
func pageName(c *command) string {
	if c.mirrors != nil {
		c = c.mirrors
	}
	return strings.ReplaceAll(c.Path(), " ", "-")
}

func manualPage(c *command, date string) string {
	var b strings.Builder
	name := pageName(c)
	fmt.Fprintf(&b, "%% %q 1 %q %q \"User Commands\"\n\n", strings.ToUpper(name), date, "sbx "+version)
	fmt.Fprintf(&b, "# NAME\n\n%s - %s\n\n", name, escape(strings.ToLower(c.Short[:1])+c.Short[1:]))
	fmt.Fprintf(&b, "# SYNOPSIS\n\n%s\n\n", synopsis(c))
	b.WriteString("# DESCRIPTION\n\n")
	fmt.Fprintf(&b, "%s.\n\n", prose(c.Short))
	if c.Long != "" {
		fmt.Fprintf(&b, "%s\n\n", prose(c.Long))
	}
	if c.parent == nil {
		b.WriteString(prose(manualIntro) + "\n\n")
	}
	if len(c.Aliases) > 0 {
		fmt.Fprintf(&b, "Also: %s.\n\n", escape(strings.Join(c.Aliases, ", ")))
	}
	manualCommands(&b, c)
	groups, order := flagGroups(c)
	for i, title := range order {
		if i == 0 {
			b.WriteString("# OPTIONS\n\n")
		}
		if len(order) > 1 {
			fmt.Fprintf(&b, "### %s\n\n", title)
		}
		for _, f := range groups[title] {
			manualFlag(&b, f)
		}
	}
	if c.Example != "" {
		fmt.Fprintf(&b, "# EXAMPLES\n\n```\n%s\n```\n\n", strings.ReplaceAll(c.Example, "\n  ", "\n")[2:])
	}
	if c.parent == nil {
		manualEnvironment(&b)
	}
	fmt.Fprintf(&b, "# SEE ALSO\n\n%s\n", strings.Join(related(c), ", "))
	return b.String()
}

// environment are the variables that sbx reads.
var environment = []struct {
	names  []string
	effect string
}{
	{[]string{"SBX_DEBUG=1"}, "as --debug"},
	{[]string{"XDG_DATA_HOME"}, "images, volumes and sandboxes are in its `sbx`; default `~/.local/share`"},
	{[]string{"XDG_RUNTIME_DIR"}, "sockets and locks are in its `sbx`; without it in a private directory below /tmp"},
	{[]string{"DOCKER_CONFIG", "REGISTRY_AUTH_FILE"}, "where credentials of registries are"},
	{[]string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"}, "proxy for pulls"},
	{[]string{"NO_COLOR", "CLICOLOR_FORCE"}, "never, or always, colours"},
}

const manualIntro = `Containers run as the calling user, without root and without a daemon. The flags,
output formats and exit codes are those of docker(1) where there is the same.`

// synopsis is how to call the command, with its name in bold.
func synopsis(c *command) string {
	return "**" + c.Path() + "** " + escape(strings.TrimSpace(strings.TrimPrefix(c.UseLine(), c.Path())))
}

func manualCommands(b *strings.Builder, c *command) {
	if len(c.visible()) == 0 {
		return
	}
	b.WriteString("# COMMANDS\n\n")
	for _, s := range c.visible() {
		fmt.Fprintf(b, "**%s**(1)\n: %s\n\n", pageName(s), prose(s.Short))
	}
}

func manualFlag(b *strings.Builder, f *pflag.Flag) {
	arg, text := flagText(f)
	name := "**--" + f.Name + "**"
	if f.Shorthand != "" {
		name = "**-" + f.Shorthand + "**, " + name
	}
	if arg != "" {
		name += " *" + arg + "*"
	}
	fmt.Fprintf(b, "%s\n: %s\n\n", name, prose(text))
}

func manualEnvironment(b *strings.Builder) {
	b.WriteString("# ENVIRONMENT\n\n")
	for _, v := range environment {
		fmt.Fprintf(b, "**%s**\n: %s\n\n", strings.ReplaceAll(strings.Join(v.names, "**, **"), "_", "\\_"), prose(v.effect))
	}
}

// related are the pages of the group that the command is in, of what is in it, and
// sbx itself.
func related(c *command) []string {
	var list []string
	for p := c.parent; p != nil; p = p.parent {
		list = append([]string{"**" + pageName(p) + "**(1)"}, list...)
	}
	for _, s := range c.visible() {
		list = append(list, "**"+pageName(s)+"**(1)")
	}
	return list
}

// prose is plain text in lines that are short in the page's source too.
func prose(s string) string { return strings.Join(wrap(escape(s), 72), "\n") }

// escape keeps Markdown from seeing marks in plain text.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `_`, `\_`, "`", "\\`", `<`, `\<`, `>`, `\>`, `[`, `\[`, `]`, `\]`, `|`, `\|`, `~`, `\~`).Replace(s)
}
