package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox"
)

// sbx runs a command line and returns what main would print and exit with.
func sbx(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	err := newRoot(&terminal{f: os.Stderr}).execute(context.Background(), args, streams{in: os.Stdin, out: &out, err: &errs})
	var status exitStatus
	switch {
	case errors.As(err, &status):
		code = int(status)
	case err != nil:
		printError(&errs, err)
		code = exitCode(err)
	}
	return out.String(), errs.String(), code
}

func TestUsage(t *testing.T) {
	for _, tc := range []struct {
		args        string
		code        int
		out, errors string
	}{
		{"", 0, "Usage: sbx [OPTIONS] COMMAND", ""},
		{"--help", 0, "Usage: sbx [OPTIONS] COMMAND", ""},
		{"-h", 0, "Usage: sbx [OPTIONS] COMMAND", ""},
		{"help", 0, "Usage: sbx [OPTIONS] COMMAND", ""},
		{"--version", 0, "sbx version dev\n", ""},
		{"-v", 0, "sbx version dev\n", ""},
		{"help run", 0, "Usage: sbx run [OPTIONS] IMAGE", ""},
		{"run --help", 0, "Usage: sbx run [OPTIONS] IMAGE", ""},
		{"help image ls", 0, "Usage: sbx image ls", ""},
		{"images -h", 0, "Usage: sbx images", ""},
		{"image", 0, "Usage: sbx image COMMAND", ""},
		{"wibble", 125, "", "sbx: \"wibble\" is not a command of sbx\nfix: see sbx --help\n"},
		{"imagse", 125, "", "did you mean sbx image?"},
		{"image bogus", 125, "", "\"bogus\" is not a command of sbx image"},
		{"help bogus", 125, "", "not a command of sbx"},
		{"help image bogus", 125, "", "not a command of sbx image"},
		{"build .", 125, "", "fix: build with"},
		{"--bogus", 125, "", "unknown flag --bogus"},
		{"--debg", 125, "", "unknown flag --debg\nfix: did you mean --debug?"},
		{"-x", 125, "", "unknown flag -x\n"},
		{"--debug=maybe", 125, "", "invalid boolean value \"maybe\""},
		{"-Dv", 0, "sbx version dev\n", ""},
		{"-D version", 0, "sbx version dev, ", ""},
		{"version -D", 0, "sbx version dev, ", ""},
		{"-- version", 0, "sbx version dev, ", ""},
		{"--generate-bash-completion", 125, "", "unknown flag --generate-bash-completion"},
		{"image -h", 0, "Usage: sbx image COMMAND", ""},
		{"image --bogus ls", 125, "", "unknown flag --bogus\nfix: see sbx image --help"},
		{"image lst", 125, "", "did you mean sbx image ls?"},
		{"image ls --bogus", 125, "", "unknown flag --bogus\nfix: see sbx image ls --help"},
		{"pull", 125, "", "sbx pull needs 1 argument\nfix: usage: sbx pull [OPTIONS] IMAGE\n"},
		{"pull a b", 125, "", "sbx pull takes 1 argument"},
		{"tag a", 125, "", "sbx tag needs 2 arguments"},
		{"rmi", 125, "", "sbx rmi needs at least 1 argument"},
		{"images a b", 125, "", "sbx images takes at most 1 argument"},
		{"version x", 125, "", "sbx version takes no argument"},
		{"completion tcsh", 125, "", "bash, zsh, fish"},
		{"run --help=true", 0, "Usage: sbx run", ""},
		{"version --format json", 0, `"Version":"dev"`, ""},
		{"version --format {{.Os}}", 0, "linux\n", ""},
		{"version --format {{.Bogus}}", 125, "", "Bogus"},
		{"version --format {{", 125, "", "--format"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			out, errs, code := sbx(t, strings.Fields(tc.args)...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if !strings.Contains(out, tc.out) || tc.out == "" && out != "" {
				t.Errorf("stdout %q, want %q", out, tc.out)
			}
			if !strings.Contains(errs, tc.errors) || tc.errors == "" && errs != "" {
				t.Errorf("stderr %q, want %q", errs, tc.errors)
			}
		})
	}
}

// --debug may stand before the command, behind its group, and among its own flags.
func TestDebugFlag(t *testing.T) {
	for _, tc := range []struct {
		env  bool // from SBX_DEBUG
		args string
		want bool
	}{
		{false, "image ls", false},
		{false, "-D image ls", true},
		{false, "image --debug ls", true},
		{false, "image ls -D", true},
		{true, "image ls", true},
		{true, "--debug=false image ls", false},
	} {
		g := &globals{debug: tc.env}
		var got *bool
		ls := &command{Use: "ls", RunE: func(*command, []string) error { got = &g.debug; return nil }}
		group := &command{Use: "image COMMAND"}
		group.add(ls)
		root := &command{Use: "sbx"}
		root.add(group)
		prepare(root, g)
		err := root.execute(t.Context(), strings.Fields(tc.args), streams{in: os.Stdin, out: os.Stdout, err: os.Stderr})
		if err != nil || got == nil || *got != tc.want {
			t.Errorf("%+v: %v, %v", tc, got, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
	}{
		{errors.New("x"), 125},
		{usagef("x"), 125},
		{fmt.Errorf("start: %w", sandbox.ErrCommandNotFound), 127},
		{fmt.Errorf("start: %w", sandbox.ErrCommandNotExecutable), 126},
		{interrupted(syscall.SIGINT), 130},
		{fmt.Errorf("pull: %w", interrupted(syscall.SIGTERM)), 143},
		{&image.Error{Kind: image.ErrNotFound}, 125},
	} {
		if got := exitCode(tc.err); got != tc.code {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.code)
		}
	}
}

func TestErrorLines(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{errors.New("no image\n"), "sbx: no image\n"},
		{errors.Join(errors.New("one"), errors.New("two")), "sbx: one; two\n"},
		{&usage{msg: "bad", fix: "do this"}, "sbx: bad\nfix: do this\n"},
		{&image.Error{Subject: "image x", Msg: "not here", Fix: "sbx pull x"}, "sbx: image x: not here\nfix: sbx pull x\n"},
		{fmt.Errorf("start: %w", &wire.Error{Step: "mount", Errno: syscall.EPERM, Fix: "first\nsecond"}), "sbx: start: mount: operation not permitted\nfix: first\n     second\n"},
		{&usage{msg: "bad (do this)", fix: "do this"}, "sbx: bad\nfix: do this\n"},
		{errors.New("cp: a\x1b]0;b\x07\xc2\x9b2J\x9b\tc"), "sbx: cp: a\\x1b]0;b\\x07\\x9b2J\ufffd\tc\n"},
	} {
		var b bytes.Buffer
		printError(&b, tc.err)
		if b.String() != tc.want {
			t.Errorf("got %q, want %q", b.String(), tc.want)
		}
	}
}

func TestHelpFits(t *testing.T) {
	everyCommand(newRoot(&terminal{f: os.Stderr}), func(c *command) {
		for _, width := range []int{narrow, wide} {
			for _, line := range strings.Split(helpText(c, width), "\n") {
				if n := utf8.RuneCountInString(line); n > width {
					t.Errorf("%s: %d columns: %q", c.Path(), n, line)
				}
				if strings.HasSuffix(line, " ") {
					t.Errorf("%s: space at the end of %q", c.Path(), line)
				}
			}
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short text %q", c.Path(), c.Short)
		}
	})
}

var update = flag.Bool("update", false, "write docs/cli.md anew")

const docPath = "../../docs/cli.md"

const docIntro = `# Command line

This page is made from the commands themselves: ` + "`go test ./cmd/sbx -run TestDocs -update`" + `.
How sbx ends is in [exit-codes.md](exit-codes.md).

The flags of ` + "`sbx run`" + ` are docker run's, with the same rules: short ones combine
(` + "`-itp 8080:80`" + `), ` + "`--flag value`" + ` and ` + "`--flag=value`" + ` are the same, repeated ones add up, and
all flags stand before IMAGE. What docker has and sbx has not is refused with the
reason: see the [table](#flags-of-docker-run-that-are-refused).

Data goes to standard output; progress, notes, warnings and errors go to standard error.

| variable | effect |
|---|---|
`

func cliDoc() string {
	var b strings.Builder
	b.WriteString(docIntro)
	for _, v := range environment {
		fmt.Fprintf(&b, "| `%s` | %s |\n", strings.Join(v.names, "`, `"), v.effect)
	}
	everyCommand(newRoot(&terminal{f: os.Stderr}), func(c *command) {
		fmt.Fprintf(&b, "\n## %s\n\n```\n%s```\n", c.Path(), helpText(c, narrow))
	})
	b.WriteString("\n## Flags of docker run that are refused\n\n| flag | why | instead |\n|---|---|---|\n")
	for _, u := range unsupportedFlags() {
		if u.why != "" {
			fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", u.name, u.why, u.fix)
		}
	}
	return b.String()
}

func TestDocs(t *testing.T) {
	want := cliDoc()
	if *update {
		if err := os.WriteFile(docPath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(docPath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/cli.md is not what the commands print; renew it: go test ./cmd/sbx -run TestDocs -update")
	}
}
