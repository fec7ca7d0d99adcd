package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/pflag"
)

// parseRun takes a command line of sbx run as main would, up to the configuration.
func parseRun(t *testing.T, args ...string) (sandbox.Config, error) {
	t.Helper()
	o := &runOptions{}
	var cfg sandbox.Config
	root := &command{Use: "sbx"}
	c := &command{Use: "run", OptionsFirst: true, RunE: func(_ *command, args []string) (err error) {
		cfg, err = o.config(args)
		return err
	}}
	o.define(c)
	root.add(c)
	prepare(root, &globals{})
	var out bytes.Buffer
	err := root.execute(t.Context(), append([]string{"run"}, args...), streams{in: os.Stdin, out: &out, err: &out})
	if out.Len() > 0 {
		t.Errorf("%q printed %q", args, out.String())
	}
	return cfg, err
}

func write(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRunFlags(t *testing.T) {
	t.Setenv("FROM_HOST", "passed")
	env1, env2 := write(t, "A=1\nB=1\nFROM_HOST\n"), write(t, "B=2\n")
	labels := write(t, "one=1\nbare\n")
	get := func(f func(sandbox.Config) any) func(sandbox.Config) any { return f }
	for _, tc := range []struct {
		name string
		args []string
		get  func(sandbox.Config) any
		want any
	}{
		{"image and command", []string{"img", "ls", "-l"}, get(func(c sandbox.Config) any { return append([]string{c.Image}, c.Cmd...) }), []string{"img", "ls", "-l"}},
		{"flags stop at the image", []string{"img", "-it", "--rm", "--bogus"}, get(func(c sandbox.Config) any { return c.Cmd }), []string{"-it", "--rm", "--bogus"}},
		{"double dash before the image", []string{"--rm", "--", "img", "-x"}, get(func(c sandbox.Config) any { return append([]string{c.Image}, c.Cmd...) }), []string{"img", "-x"}},
		{"double dash of the command", []string{"img", "--", "-x"}, get(func(c sandbox.Config) any { return c.Cmd }), []string{"--", "-x"}},
		{"combined short flags", []string{"-itp", "8080:80", "img"}, get(func(c sandbox.Config) any { return []any{c.TTY, c.Publish[0].ParentPort, c.Publish[0].ChildPort} }), []any{true, 8080, 80}},
		{"short flag with its value attached", []string{"-p8080:80", "-eA=1", "-w/x", "img"}, get(func(c sandbox.Config) any { return []any{c.Publish[0].ParentPort, c.Env[0], c.WorkDir} }), []any{8080, "A=1", "/x"}},
		{"long flag with =", []string{"--env=A=b=c", "--user=1:2", "img"}, get(func(c sandbox.Config) any { return []any{c.Env[0], c.User} }), []any{"A=b=c", "1:2"}},
		{"bool with =", []string{"--read-only=false", "--init=true", "img"}, get(func(c sandbox.Config) any { return []any{c.ReadOnly, c.Init} }), []any{false, true}},
		{"commas belong to the value", []string{"-e", "A=1,2", "-l", "k=a,b", "img"}, get(func(c sandbox.Config) any { return []any{c.Env, c.Labels["k"]} }), []any{[]string{"A=1,2"}, "a,b"}},
		{"files first, flags win", []string{"-e", "B=3", "--env-file", env1, "--env-file", env2, "img"}, get(func(c sandbox.Config) any { return c.Env }), []string{"A=1", "B=1", "FROM_HOST=passed", "B=2", "B=3"}},
		{"name only", []string{"-e", "FROM_HOST", "img"}, get(func(c sandbox.Config) any { v, ok := c.LookupEnv("FROM_HOST"); return []any{c.Env, v, ok} }), []any{[]string{"FROM_HOST"}, "passed", true}},
		{"labels", []string{"--label-file", labels, "-l", "one=2", "-l", "two", "img"}, get(func(c sandbox.Config) any { return c.Labels }), map[string]string{"one": "2", "bare": "", "two": ""}},
		{"no entrypoint flag", []string{"img"}, get(func(c sandbox.Config) any { return c.Entrypoint }), []string(nil)},
		{"entrypoint cleared", []string{"--entrypoint", "", "img"}, get(func(c sandbox.Config) any { return c.Entrypoint }), []string{}},
		{"entrypoint", []string{"--entrypoint=/bin/sh -c", "img"}, get(func(c sandbox.Config) any { return c.Entrypoint }), []string{"/bin/sh -c"}},
		{"hostname is -h", []string{"-h", "box", "img"}, get(func(c sandbox.Config) any { return c.Hostname }), "box"},
		{"network", []string{"--network", "none", "img"}, get(func(c sandbox.Config) any { return c.Networks[0].Network }), "none"},
		{"net", []string{"--net=host", "img"}, get(func(c sandbox.Config) any { return c.Networks[0].Network }), "host"},
		{"bridge", []string{"--net", "bridge", "img"}, get(func(c sandbox.Config) any { return c.Networks[0].Network }), "bridge"},
		{"another's network", []string{"--net", "container:x", "img"}, get(func(c sandbox.Config) any { return c.Networks[0].Network }), "container:x"},
		{"the same network twice", []string{"--net", "none", "--network", "none", "img"}, get(func(c sandbox.Config) any { return c.Networks[0].Network }), "none"},
		{"dns-opt", []string{"--dns-opt", "ndots:1", "--dns-option", "rotate", "img"}, get(func(c sandbox.Config) any { return c.DNSOptions }), []string{"ndots:1", "rotate"}},
		{"host access", []string{"--host-access", "80,8000-8002", "--host-access", "80", "img"}, get(func(c sandbox.Config) any { return c.HostAccess }), []uint16{80, 8000, 8001, 8002}},
		{"metadata access", []string{"--metadata-access", "img"}, get(func(c sandbox.Config) any { return c.MetadataAccess }), true},
		{"shm size", []string{"--shm-size", "1g", "img"}, get(func(c sandbox.Config) any { return c.ShmSize }), int64(1 << 30)},
		{"ulimit", []string{"--ulimit", "nofile=10:20", "img"}, get(func(c sandbox.Config) any { return []int64{c.Ulimits[0].Soft, c.Ulimits[0].Hard} }), []int64{10, 20}},
		{"sysctl", []string{"--sysctl", "net.core.somaxconn=5", "img"}, get(func(c sandbox.Config) any { return c.Sysctls }), map[string]string{"net.core.somaxconn": "5"}},
		{"stop timeout", []string{"img"}, get(func(c sandbox.Config) any { return c.StopTimeout }), 10 * time.Second},
		{"stop timeout 0 is not the default", []string{"--stop-timeout=0", "img"}, get(func(c sandbox.Config) any { return c.StopTimeout > 0 && c.StopTimeout < time.Millisecond }), true},
		{"stop timeout never", []string{"--stop-timeout", "-1", "img"}, get(func(c sandbox.Config) any { return c.StopTimeout > 1000*time.Hour }), true},
		{"stop timeout beyond int64", []string{"--stop-timeout", "9223372036854775807", "img"}, get(func(c sandbox.Config) any { return c.StopTimeout > 1000*time.Hour }), true},
		{"rootfs takes no image", []string{"--rootfs", "/r", "sh", "-c", "x"}, get(func(c sandbox.Config) any { return []any{c.Image, c.RootFS, c.Cmd} }), []any{"", "/r", []string{"sh", "-c", "x"}}},
		{"mounts in order", []string{"--tmpfs", "/t", "-v", "/a:/b:ro", "img"}, get(func(c sandbox.Config) any { return []any{len(c.Mounts), c.Mounts[0].Target, c.Mounts[0].ReadOnly} }), []any{2, "/b", true}},
		{"kept", []string{"img"}, get(func(c sandbox.Config) any { return c.Keep }), true},
		{"not kept", []string{"--rm", "img"}, get(func(c sandbox.Config) any { return c.Keep }), false},
		{"restart", []string{"--restart", "on-failure:3", "img"}, get(func(c sandbox.Config) any { return c.Restart }), sandbox.RestartPolicy{Name: "on-failure", Max: 3}},
		{"log", []string{"--log-driver=journald", "--log-opt", "max-size=1m", "--log-opt", "max-file=2", "img"}, get(func(c sandbox.Config) any { return c.Log }), sandbox.LogConfig{Driver: "json-file", MaxSize: 1 << 20, MaxFiles: 2}},
		{"health", []string{"--health-cmd", "x y", "--health-interval=2s", "--health-retries", "4", "img"}, get(func(c sandbox.Config) any { return *c.Health }), sandbox.HealthConfig{Test: []string{"CMD-SHELL", "x y"}, Interval: 2 * time.Second, Retries: 4}},
		{"no health", []string{"--no-healthcheck", "img"}, get(func(c sandbox.Config) any { return c.Health.Test }), []string{"NONE"}},
		{"harmless docker flags", []string{"--restart=no", "--detach=false", "--privileged=false", "--ipc", "private", "--no-healthcheck", "--oom-score-adj", "0", "img"}, get(func(c sandbox.Config) any { return c.Image }), "img"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := parseRun(t, tc.args...)
			if err != nil {
				t.Fatalf("%q: %v", tc.args, err)
			}
			if got := tc.get(cfg); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%q: got %#v, want %#v", tc.args, got, tc.want)
			}
		})
	}
}

func TestRunFlagErrors(t *testing.T) {
	for _, tc := range []struct {
		args      []string
		what, fix string // parts of the two lines
	}{
		{nil, "sbx run needs an image", "demo"},
		{[]string{"--rm"}, "sbx run needs an image", "demo"},
		{[]string{"--volum", "/a:/b", "img"}, "unknown flag --volum", "did you mean --volume?"},
		{[]string{"--pub", "80", "img"}, "unknown flag --pub", "did you mean --publish?"},
		{[]string{"--zzzzzz", "img"}, "unknown flag --zzzzzz", "see sbx run --help"},
		{[]string{"-itz", "img"}, "unknown flag -z", "see sbx run --help"},
		{[]string{"-rm", "img"}, "unknown flag -r", "did you mean --rm?"},
		{[]string{"-e"}, "--env needs a value", "NAME=VALUE"},
		{[]string{"--name"}, "--name needs a value", "NAME"},
		{[]string{"-e", "=x", "img"}, `--env "=x": no name`, "NAME=VALUE"},
		{[]string{"--env-file", "/does/not/exist", "img"}, "--env-file: open /does/not/exist: no such file", ""},
		{[]string{"-l", "=x", "img"}, "no key", "KEY=VALUE"},
		{[]string{"--rm=maybe", "img"}, `--rm "maybe": want true or false`, ""},
		{[]string{"--stop-timeout", "1s", "img"}, `--stop-timeout "1s": want a whole number`, ""},
		{[]string{"--pull", "sometimes", "img"}, "want missing, always or never", ""},
		{[]string{"--userns", "host", "img"}, "want auto, single or keep-id", ""},
		{[]string{"--link-driver", "veth", "img"}, "want tap or packet", ""},
		{[]string{"--port-driver", "slirp", "img"}, "want direct, stack or builtin", ""},
		{[]string{"--storage-driver", "btrfs", "img"}, "want native, fuse or copy", ""},
		{[]string{"-a", "stdlog", "img"}, "want stdin, stdout or stderr", ""},
		{[]string{"--platform", "a/b/c/d", "img"}, "--platform", ""},
		{[]string{"--host-access", "0", "img"}, `"0" is not a port`, ""},
		{[]string{"--host-access", "80-70", "img"}, `"80-70" is not a port`, ""},
		{[]string{"--host-access", "65536", "img"}, `"65536" is not a port`, ""},
		{[]string{"--host-access", "1-65535", "img"}, "more than 1024 ports", ""},
		{[]string{"-p", "99999:80", "img"}, "--publish", ""},
		{[]string{"-p", "a:b:c:d", "img"}, "--publish", ""},
		{[]string{"-v", "relative", "img"}, "--volume", ""},
		{[]string{"--mount", "nonsense", "img"}, "--mount", ""},
		{[]string{"--tmpfs", "relative", "img"}, "--tmpfs", ""},
		{[]string{"--ulimit", "x", "img"}, "--ulimit", "nofile=1024:2048"},
		{[]string{"--sysctl", "x", "img"}, "has no value", "somaxconn"},
		{[]string{"--shm-size", "0", "img"}, "is not a size", "64m"},
		{[]string{"-m", "1x", "img"}, "--memory \"1x\": want a size as 512m", ""},
		{[]string{"--memory-swap", "-2", "img"}, "--memory-swap \"-2\": want a size", ""},
		{[]string{"--cpus", "1e9", "img"}, "--cpus \"1e9\": want a number of processors as 1.5", ""},
		{[]string{"--pids-limit", "many", "img"}, "--pids-limit \"many\": want a whole number", ""},
		{[]string{"--device-read-bps", "sda:1mb", "img"}, "want a device below /dev", ""},
		{[]string{"--device-write-bps", "/dev/sda:0", "img"}, "a positive number of bytes", ""},
		{[]string{"--device-read-iops", "/dev/sda:1k", "img"}, "a positive number", ""},
		{[]string{"--blkio-weight-device", "/dev/sda:9", "img"}, "a weight from 10 to 1000", ""},
		{[]string{"--memory-swappiness", "3", "img"}, "--memory-swappiness is not supported: cgroup v2", ""},
		{[]string{"--privileged", "img"}, "--privileged is not supported", "--cap-add"},
		{[]string{"--restart", "always:3", "img"}, `--restart "always:3" is no policy`, "on-failure:3"},
		{[]string{"--restart", "on-failure:x", "img"}, "is no policy", ""},
		{[]string{"--log-driver", "syslog", "img"}, "want json-file, none, local or journald", ""},
		{[]string{"--log-opt", "mode=x", "img"}, "there is no such option", "max-size"},
		{[]string{"--health-cmd", "x", "--no-healthcheck", "img"}, "contradict", ""},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			_, err := parseRun(t, tc.args...)
			if err == nil {
				t.Fatal("no error")
			}
			if code := exitCode(err); code != 125 {
				t.Errorf("exit code %d, want 125", code)
			}
			var b bytes.Buffer
			printError(&b, err)
			what, fix, _ := strings.Cut(b.String(), "\n")
			if !strings.HasPrefix(what, "sbx: ") || !strings.Contains(what, tc.what) {
				t.Errorf("got %q, want %q in it", what, tc.what)
			}
			if tc.fix != "" && (!strings.HasPrefix(fix, "fix: ") || !strings.Contains(fix, tc.fix)) {
				t.Errorf("got %q, want a fix with %q in it", fix, tc.fix)
			}
		})
	}
}

// dockerRunFlags are those of docker run 28 with their arity; b is a switch.
const dockerRunFlags = `add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile
cpu-count cpu-percent cpu-period cpu-quota cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach:b detach-keys
device device-cgroup-rule device-read-bps device-read-iops device-write-bps device-write-iops disable-content-trust:b dns dns-option
dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval health-retries health-start-interval
health-start-period health-timeout hostname init:b interactive:b io-maxbandwidth io-maxiops ip ip6 ipc isolation label label-file link
link-local-ip log-driver log-opt mac-address memory memory-reservation memory-swap memory-swappiness mount name network network-alias
no-healthcheck:b oom-kill-disable:b oom-score-adj pid pids-limit platform privileged:b publish publish-all:b pull quiet:b read-only:b
restart rm:b runtime security-opt shm-size sig-proxy:b stop-signal stop-timeout storage-opt sysctl tmpfs tty:b ulimit use-api-socket:b
user userns uts volume volume-driver volumes-from workdir`

func TestDockerFlagsKeepTheirArity(t *testing.T) {
	c := &command{}
	new(runOptions).define(c)
	for _, f := range strings.Fields(dockerRunFlags) {
		name, boolean := strings.CutSuffix(f, ":b")
		got := c.Flags().Lookup(name)
		if got == nil {
			t.Errorf("docker run's --%s is unknown", name)
			continue
		}
		if (got.NoOptDefVal != "") != boolean {
			t.Errorf("--%s: a switch: %v, docker's: %v", name, !boolean, boolean)
		}
	}
	for short, long := range map[string]string{
		"a": "attach", "c": "cpu-shares", "d": "detach", "e": "env", "h": "hostname", "i": "interactive", "l": "label", "m": "memory",
		"p": "publish", "P": "publish-all", "q": "quiet", "t": "tty", "u": "user", "v": "volume", "w": "workdir",
	} {
		if f := c.Flags().ShorthandLookup(short); f == nil || f.Name != long {
			t.Errorf("-%s is not --%s", short, long)
		}
	}
}

func TestUnsupportedFlagsSayWhy(t *testing.T) {
	for _, u := range unsupportedFlags() {
		v := "x"
		if u.boolean {
			v = "true"
		}
		if slices.Contains(u.harmless, v) {
			continue
		}
		_, err := parseRun(t, "--"+u.name+"="+v, "img")
		var un *usage
		if !errors.As(err, &un) || !strings.Contains(un.msg, "not supported: ") || u.why == "" {
			t.Errorf("--%s: %v", u.name, err)
		}
	}
}

// Every flag that is shown has a text and belongs to a group.
func TestFlagsAreDescribed(t *testing.T) {
	c := &command{}
	new(runOptions).define(c)
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		arg, text := pflag.UnquoteUsage(f)
		if text == "" || len(f.Annotations[groupKey]) != 1 || f.NoOptDefVal == "" && strings.ToUpper(arg) != arg {
			t.Errorf("--%s: argument %q, text %q, group %v", f.Name, arg, text, f.Annotations[groupKey])
		}
	})
}
