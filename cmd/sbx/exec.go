package main

import (
	"context"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/term"
)

func execCommand(g *globals) *command {
	var (
		cfg                      sandbox.ExecConfig
		interactive, detach, tty bool
		env, envFiles            []string
		keys                     string
	)
	c := &command{
		Use: "exec [OPTIONS] SANDBOX COMMAND [ARG...]", Short: "Run a command in a sandbox that runs", Args: wantArgs(2, -1), OptionsFirst: true,
		Long:     "It has the rights of the sandbox's own command. The exit code is the command's;\n126 if it cannot be invoked, 127 if it was not found.",
		Example:  "  sbx exec -it web sh\n  sbx exec -u app web id",
		Complete: completeExecArgs,
	}
	fs := c.Flags()
	fs.BoolVarP(&interactive, "interactive", "i", false, "connect standard input")
	fs.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVarP(&detach, "detach", "d", false, "leave the command to itself")
	lists(fs, &env, "env", "e", "set `NAME=VALUE`, or pass the caller's NAME on")
	lists(fs, &envFiles, "env-file", "", "read variables from `FILE`")
	fs.StringVarP(&cfg.User, "user", "u", "", "run as `USER`[:GROUP]")
	fs.StringVarP(&cfg.WorkDir, "workdir", "w", "", "start in `DIR`")
	fs.StringVar(&keys, "detach-keys", defaultDetachKeys, "`KEYS` that leave a terminal, e.g. ctrl-x,x")
	defineRefused(fs, unsupportedFlag{name: "privileged", boolean: true, harmless: []string{"false"},
		why: "a command has at most the rights that the sandbox was started with", fix: "start the sandbox with --cap-add"})
	c.RunE = func(c *command, args []string) error {
		seq, err := parseDetachKeys(keys)
		if err != nil {
			return err
		}
		if cfg.Env, err = execEnv(env, envFiles); err != nil {
			return err
		}
		if tty && interactive && !detach && !term.IsTerminal(int(os.Stdin.Fd())) {
			return &usage{msg: "-t needs a terminal, and standard input is none", fix: "leave out -t, as in a script or a CI job; -i alone connects the input"}
		}
		e, err := newEngine(g)
		if err != nil {
			return failed(err)
		}
		s, err := e.Open(c.Context(), args[0])
		if err != nil {
			return failed(err)
		}
		cfg.Args, cfg.TTY, cfg.Detach = args[1:], tty, detach
		if detach {
			x, err := s.Exec(c.Context(), cfg)
			if err != nil {
				return workloadFailed(err)
			}
			return x.Close()
		}
		in, detached := newDetachReader(os.Stdin, seq)
		cfg.Stdout, cfg.Stderr = os.Stdout, os.Stderr
		if interactive {
			cfg.Stdin = os.Stdin
			if tty {
				cfg.Stdin = in
			}
		}
		return execAttached(c.Context(), g, s, cfg, detached)
	}
	return c
}

// execAttached runs a command with our streams. Signals are ours, as with Docker; the
// keys of a terminal reach the command.
func execAttached(ctx context.Context, g *globals, s *sandbox.Sandbox, cfg sandbox.ExecConfig, detached *detachment) error {
	cfg.Rows, cfg.Cols, _ = windowSize()
	raw, err := rawTerminal(cfg.TTY, cfg.Stdin != nil, g.term)
	if err != nil {
		return failed(err)
	}
	defer raw.restore()
	x, err := s.Exec(ctx, cfg)
	if err != nil {
		return workloadFailed(err)
	}
	defer x.Close()
	if cfg.TTY {
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, syscall.SIGWINCH)
		defer signal.Stop(ch)
		go func() {
			for range ch {
				if rows, cols, ok := windowSize(); ok {
					x.Resize(rows, cols) // the terminal may have gone
				}
			}
		}()
	}
	return waitAttached(g, x.Wait, detached)
}

func execEnv(env, files []string) ([]string, error) {
	o := runOptions{env: env, envFiles: files}
	var cfg sandbox.Config
	if err := o.parseEnv(&cfg); err != nil {
		return nil, err
	}
	var list []string
	for _, kv := range cfg.Env {
		if full, ok := withValue(kv); ok {
			list = append(list, full)
		}
	}
	return list, nil
}

// completeExecArgs offers what runs, then files for the command.
func completeExecArgs(c *command, in typed) offers {
	if len(in.args) > 0 {
		return offers{then: offerFiles}
	}
	return completeBoxes(1, runningBox)(c, in)
}

// withValue gives a variable that is passed on its value.
func withValue(kv string) (string, bool) {
	if strings.Contains(kv, "=") {
		return kv, true
	}
	v, ok := os.LookupEnv(kv)
	return kv + "=" + v, ok
}
