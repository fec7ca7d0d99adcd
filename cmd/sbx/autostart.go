package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
)

// autostartUnit is the name of the unit that starts sandboxes by their restart policies.
const autostartUnit = "sbx-restart.service"

func autostartCommand(g *globals) *command {
	var install, remove bool
	c := &command{
		Use: "autostart [OPTIONS]", Short: "Have systemd start sandboxes by their restart policies", Args: wantArgs(0, 0),
		Long: `Prints a unit for the user's systemd that runs "sbx start --by-policy" when that
begins: with the machine if the user lingers (loginctl enable-linger), else at
login.`,
		Example: `  sbx system autostart --install
  systemctl --user start sbx-restart`,
	}
	c.Flags().BoolVar(&install, "install", false, "write it to ~/.config/systemd/user, and enable it")
	c.Flags().BoolVar(&remove, "remove", false, "take it away again")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		if install && remove {
			return usagef("--install and --remove contradict each other")
		}
		unit, err := autostartText(os.Getenv)
		if err != nil {
			return err
		}
		if !install && !remove {
			_, err := fmt.Fprint(c.Out(), unit)
			return err
		}
		dir, err := os.UserConfigDir()
		if err != nil {
			return fmt.Errorf("find the directory of units: %w", err)
		}
		path := filepath.Join(dir, "systemd", "user", autostartUnit)
		if remove {
			err = removeUnit(path)
		} else {
			err = installUnit(path, unit)
		}
		if err != nil {
			return err
		}
		// One that does not run yet will read it when it begins.
		if out, err := exec.CommandContext(ctx, "systemctl", "--user", "daemon-reload").CombinedOutput(); err != nil {
			say(g.term, "sbx: note: the user's systemd was not told: %v: %s", err, strings.TrimSpace(string(out)))
		}
		if note := e.LogoutNote(); install && note != "" {
			say(g.term, "sbx: note: the unit begins at login, and not with the machine; %s", note)
		}
		return printLines(c.Out(), path)
	})
	return c
}

// autostartText is the unit, for this program and the directory that it uses now.
func autostartText(getenv func(string) string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	env := ""
	if v := getenv("XDG_DATA_HOME"); v != "" {
		env = "Environment=" + unitQuote("XDG_DATA_HOME="+v) + "\n"
	}
	// A sandbox that cannot be started must not end the others, which are processes of
	// the unit.
	return `[Unit]
Description=Sandboxes that start by their restart policies
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
` + env + `ExecStart=-` + unitQuote(self) + ` start --by-policy

[Install]
WantedBy=default.target
`, nil
}

// unitQuote writes a word as systemd reads it.
func unitQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, "\n", `\n`).Replace(s) + `"`
}

// enabled is the link by which a unit of the user's is started with his systemd.
func enabled(path string) string {
	return filepath.Join(filepath.Dir(path), "default.target.wants", filepath.Base(path))
}

func installUnit(path, text string) error {
	link := enabled(path)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.Symlink(path, link); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func removeUnit(path string) error {
	for _, p := range []string{enabled(path), path} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
