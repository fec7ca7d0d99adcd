package main

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/pflag"
)

// flagValues are offered for flags that take any value.
var flagValues = map[string][]string{
	"security-opt": {"no-new-privileges", "seccomp=unconfined", "seccomp=builtin-32bit", "seccomp="},
	"stop-signal":  signalNames,
	"platform":     {"linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/ppc64le", "linux/riscv64", "linux/s390x"},
	"ulimit":       {"core=", "cpu=", "data=", "fsize=", "locks=", "memlock=", "msgqueue=", "nice=", "nofile=", "nproc=", "rss=", "rtprio=", "rttime=", "sigpending=", "stack="},
	"sysctl":       {"net.core.somaxconn=", "net.ipv4.ip_forward=", "net.ipv4.ip_local_port_range=", "net.ipv4.ip_unprivileged_port_start=", "net.ipv4.tcp_syncookies=", "net.ipv6.conf.all.disable_ipv6=", "kernel.msgmax=", "kernel.sem=", "kernel.shmmax=", "fs.mqueue.msg_max="},
	"add-host":     {"host.docker.internal:host-gateway"},
	"format":       {"json", "table", "{{json .}}"},
	"signal":       signalNames,
}

var signalNames = []string{"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"}

// filterValues are offered for --filter, by the name of the command.
var filterValues = map[string][]string{
	"ps":     {"name=", "id=", "status=", "label=", "ancestor=", "exited=", "health=", "network=", "volume=", "publish=", "expose=", "before=", "since="},
	"images": {"reference=", "label=", "dangling=true", "dangling=false"},
	"events": {"container=", "event=", "image=", "label=", "network=", "scope=local", "type=container", "type=image", "type=network", "type=volume", "volume="},
}

// pathFlags take a file or directory, for which the shell's own completion is best.
var pathFlags = []string{"cidfile", "env-file", "label-file", "input", "output", "volume", "mount"}

// flagOffers are the values of a flag of c.
func flagOffers(c *command, f *pflag.Flag) offers {
	o := offers{words: flagValues[f.Name]}
	if f.Name == "filter" {
		o.words = filterValues[c.Name()]
		switch c.Path() {
		case "sbx image ls":
			o.words = filterValues["images"]
		case "sbx volume ls":
			o.words = []string{"name=", "label="}
		}
	}
	if f.Name == "cap-add" || f.Name == "cap-drop" {
		o.words = capabilities()
	}
	if v, ok := f.Value.(*value); ok && v.choices != nil {
		o.words = v.choices
	}
	if f.Name == "network" {
		o.words = append(networkNames(context.Background()), sandbox.NetworkContainer)
	}
	switch {
	case f.Hidden:
		return offers{}
	case slices.Contains(pathFlags, f.Name):
		o.then = offerFiles
	case f.Name == "rootfs":
		o.then = offerDirs
	case slices.ContainsFunc(o.words, func(s string) bool { return strings.HasSuffix(s, "=") }):
		o.then = offerPart
	}
	return o
}

func capabilities() []string {
	names := []string{"ALL"}
	for _, c := range capability.ListKnown() {
		names = append(names, strings.TrimPrefix(strings.ToUpper(c.String()), "CAP_"))
	}
	return names
}

// completeImages offers the images of the store for the first most arguments;
// any number if most is negative.
func completeImages(most int) completion {
	return func(c *command, in typed) (o offers) {
		if most >= 0 && len(in.args) >= most {
			return o
		}
		for _, n := range imageNames(c) {
			if !slices.Contains(in.args, n) {
				o.words = append(o.words, n)
			}
		}
		return o
	}
}

// completeRunArgs offers images, then files for the command.
func completeRunArgs(c *command, in typed) offers {
	if len(in.args) > 0 || in.flags["rootfs"] {
		return offers{then: offerFiles}
	}
	names := imageNames(c)
	if !slices.Contains(names, image.DemoName) {
		names = append(names, image.DemoName)
	}
	return offers{words: names}
}

// imageNames are the names of the store. A store that cannot be read offers none.
func imageNames(c *command) []string {
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
