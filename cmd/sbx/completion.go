package main

import (
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// The scripts ask sbx itself: sbx __complete WORD... CURRENT.
//
//go:embed completion
var scripts embed.FS

var shellNames = []string{"bash", "zsh", "fish"}

func completionCommand() *command {
	return &command{
		Use:   "completion SHELL",
		Short: "Print the completion script of a shell",
		Long:  "SHELL is bash, zsh or fish.",
		Example: `  source <(sbx completion bash)   # ~/.bashrc
  source <(sbx completion zsh)    # ~/.zshrc, after compinit
  sbx completion fish | source    # ~/.config/fish/config.fish`,
		Complete: func(_ *command, in typed) offers {
			if len(in.args) > 0 {
				return offers{}
			}
			return offers{words: shellNames}
		},
		RunE: func(c *command, args []string) error {
			if len(args) != 1 || !slices.Contains(shellNames, args[0]) {
				return &usage{msg: "sbx completion needs the name of a shell: " + strings.Join(shellNames, ", "), fix: "source <(sbx completion bash)"}
			}
			script, err := scripts.ReadFile("completion/sbx." + args[0])
			if err != nil {
				return err
			}
			_, err = c.Out().Write(script)
			return err
		},
	}
}

// What the shell does besides, or instead of, offering the words.
const (
	offerNothing = ":none"
	offerFiles   = ":files"
	offerDirs    = ":dirs"
	offerPart    = ":nospace" // more may follow a word: NAME=
)

// offers are what may stand at the cursor: words, with a description after a tab if
// there is one, and one of the constants above; "" is offerNothing.
type offers struct {
	words []string
	then  string
}

// typed is what a command was given before the cursor.
type typed struct {
	args    []string
	flags   map[string]bool
	current string // what stands at the cursor
}

// completion offers arguments of a command.
type completion func(c *command, in typed) offers

func completeCommand() *command {
	return &command{
		Use: "__complete [WORD...] CURRENT", Short: "Answer the completion of a shell", Hidden: true, Raw: true, Args: wantArgs(1, -1),
		RunE: func(c *command, args []string) error {
			o := complete(c, args[:len(args)-1], args[len(args)-1])
			if o.then == "" {
				o.then = offerNothing
			}
			return printLines(c.Out(), append(o.words, o.then)...)
		},
	}
}

// complete offers what may stand in place of current, after words. asking is the
// command that asks, with the context.
func complete(asking *command, words []string, current string) offers {
	at := asking.Root()
	for len(at.commands) > 0 && len(words) > 0 {
		if !strings.HasPrefix(words[0], "-") { // flags of groups are switches
			next := at.find(words[0])
			if next == nil && at.RunE == nil {
				return offers{}
			}
			if next == nil {
				break
			}
			at = next
		}
		words = words[1:]
	}
	in, open, flagsEnd := at.typed(words)
	in.current = current
	var o offers
	prefix := ""
	switch name, value, assigned := strings.Cut(current, "="); {
	case open != nil:
		o = flagOffers(at, open)
	case flagsEnd || !strings.HasPrefix(current, "-"):
		switch {
		case len(at.commands) > 0 && len(words) == 0:
			o = commandOffers(at)
			if at.RunE != nil {
				at.ctx = asking.ctx
				o.words = append(o.words, at.Complete(at, in).words...)
			}
		case at.Complete != nil:
			at.ctx = asking.ctx
			o = at.Complete(at, in)
		}
	case assigned && strings.HasPrefix(name, "--"):
		if f := at.Flags().Lookup(name[2:]); f != nil {
			o, prefix, current = flagOffers(at, f), name+"=", value
		}
	default:
		o = flagNames(at, in)
	}
	var fit []string
	for _, w := range o.words {
		if strings.HasPrefix(w, current) {
			fit = append(fit, prefix+w)
		}
	}
	o.words = fit
	return o
}

// typed sorts words as pflag would. open is the flag whose value comes next.
func (c *command) typed(words []string) (in typed, open *pflag.Flag, flagsEnd bool) {
	in.flags = map[string]bool{}
	for _, w := range words {
		switch {
		case open != nil:
			open = nil
		case flagsEnd || len(w) < 2 || w[0] != '-':
			in.args = append(in.args, w)
			flagsEnd = flagsEnd || c.OptionsFirst
		case w == "--":
			flagsEnd = true
		case w[1] == '-':
			name, _, assigned := strings.Cut(w[2:], "=")
			if f := c.Flags().Lookup(name); f != nil {
				in.flags[f.Name] = true
				if !assigned && f.NoOptDefVal == "" {
					open = f
				}
			}
		default:
			for i := 1; i < len(w); i++ {
				f := c.Flags().ShorthandLookup(w[i : i+1])
				if f == nil {
					break
				}
				in.flags[f.Name] = true
				if f.NoOptDefVal == "" {
					if i == len(w)-1 {
						open = f
					}
					break
				}
			}
		}
	}
	return in, open, flagsEnd
}

func commandOffers(c *command) (o offers) {
	for _, s := range c.visible() {
		o.words = append(o.words, s.Name()+"\t"+s.Short)
	}
	return o
}

// flagNames are the flags that can be given yet.
func flagNames(c *command, in typed) (o offers) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && (!in.flags[f.Name] || f.Value.Type() == "list") {
			_, text := pflag.UnquoteUsage(f)
			o.words = append(o.words, fmt.Sprintf("--%s\t%s", f.Name, text))
		}
	})
	return o
}
