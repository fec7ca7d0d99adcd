package main

import (
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var shells = map[string]func(*cobra.Command, io.Writer) error{
	"bash":       func(c *cobra.Command, w io.Writer) error { return c.GenBashCompletionV2(w, true) },
	"zsh":        func(c *cobra.Command, w io.Writer) error { return c.GenZshCompletion(w) },
	"fish":       func(c *cobra.Command, w io.Writer) error { return c.GenFishCompletion(w, true) },
	"powershell": func(c *cobra.Command, w io.Writer) error { return c.GenPowerShellCompletionWithDesc(w) },
}

var shellNames = []string{"bash", "zsh", "fish", "powershell"}

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script of a shell",
		Long:  "SHELL is bash, zsh, fish or powershell.",
		Example: `  source <(sbx completion bash)   # ~/.bashrc; needs the package bash-completion
  source <(sbx completion zsh)    # ~/.zshrc, after compinit
  sbx completion fish | source    # ~/.config/fish/config.fish`,
		ValidArgs: shellNames,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && shells[args[0]] != nil {
				return shells[args[0]](c.Root(), c.OutOrStdout())
			}
			return &usage{msg: "sbx completion needs the name of a shell: " + strings.Join(shellNames, ", "), fix: "source <(sbx completion bash)"}
		},
	}
}

// flagValues are offered for flags that take any value.
var flagValues = map[string][]string{
	"security-opt": {"no-new-privileges", "seccomp=unconfined", "seccomp="},
	"stop-signal":  {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"},
	"platform":     {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x"},
	"ulimit":       {"core=", "cpu=", "data=", "fsize=", "locks=", "memlock=", "msgqueue=", "nice=", "nofile=", "nproc=", "rss=", "rtprio=", "rttime=", "sigpending=", "stack="},
	"sysctl":       {"net.core.somaxconn=", "net.ipv4.ip_forward=", "net.ipv4.ip_local_port_range=", "net.ipv4.ip_unprivileged_port_start=", "net.ipv4.tcp_syncookies=", "net.ipv6.conf.all.disable_ipv6=", "kernel.msgmax=", "kernel.sem=", "kernel.shmmax=", "fs.mqueue.msg_max="},
	"add-host":     {"host.docker.internal:host-gateway"},
	"format":       {"json", "table ", "{{json .}}"},
	"filter":       {"reference=", "label=", "dangling=true", "dangling=false"},
}

// pathFlags take a file or directory, for which the shell's own completion is best.
var pathFlags = []string{"cidfile", "env-file", "label-file", "input", "volume", "mount"}

// completeFlags offers the values of all flags of c that have any to offer.
func completeFlags(c *cobra.Command) {
	c.Flags().VisitAll(func(f *pflag.Flag) {
		known := flagValues[f.Name]
		if f.Name == "cap-add" || f.Name == "cap-drop" {
			known = capabilities()
		}
		if v, ok := f.Value.(*value); ok && v.choices != nil {
			known = v.choices
		}
		mode := cobra.ShellCompDirectiveNoFileComp
		switch {
		case f.Value.Type() == "bool" || f.Hidden:
			return
		case slices.Contains(pathFlags, f.Name):
			mode = cobra.ShellCompDirectiveDefault
		case f.Name == "rootfs":
			mode = cobra.ShellCompDirectiveFilterDirs
		}
		if slices.ContainsFunc(known, func(s string) bool { return strings.HasSuffix(s, "=") }) {
			mode |= cobra.ShellCompDirectiveNoSpace
		}
		must(c.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(known, mode)))
	})
}

func capabilities() []string {
	names := []string{"ALL"}
	for _, c := range capability.ListKnown() {
		names = append(names, strings.TrimPrefix(strings.ToUpper(c.String()), "CAP_"))
	}
	return names
}

// must is for what can only fail if the commands are put together wrongly.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// completeImages offers the images of the store for the first most arguments;
// any number if most is negative.
func completeImages(most int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most >= 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, n := range imageNames(c) {
			if !slices.Contains(args, n) {
				names = append(names, n)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeRunArgs offers images, then files for the command.
func completeRunArgs(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || c.Flags().Changed("rootfs") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names := imageNames(c)
	if !slices.Contains(names, image.DemoName) {
		names = append(names, image.DemoName)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// imageNames are the names of the store. A store that cannot be read offers none.
func imageNames(c *cobra.Command) []string {
	e, err := sandbox.NewEngine(sandbox.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil
	}
	store, err := e.Images()
	if err != nil {
		return nil
	}
	imgs, err := store.List(c.Context())
	if err != nil {
		return nil
	}
	var names []string
	for _, img := range imgs {
		for _, n := range img.Names {
			names = append(names, strings.TrimSuffix(n, ":latest"))
		}
	}
	return names
}
