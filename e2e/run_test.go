package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

// TestMainJob is the first sentence of the README: a real server in a real image
// answers on localhost, reaches its own files, and leaves nothing behind.
func TestMainJob(t *testing.T) {
	e := harness.New(t, harness.Nginx)
	port := e.FreePort()
	p := e.Start("run", "--rm", "--publish", fmt.Sprintf("127.0.0.1:%d:80", port), harness.Nginx)
	if got := p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port)); got+"\n" != "<h1>nginx in a sandbox</h1>\n" {
		t.Errorf("page: %q", got)
	}
	if r := p.Stop(); r.Code != 0 {
		t.Errorf("nginx stops well with its image's signal: %v", r)
	}
}

func TestExitCodes(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, c := range []struct {
		name string
		code int
		args []string
	}{
		{"true", 0, []string{harness.BB, "true"}},
		{"false", 1, []string{harness.BB, "false"}},
		{"own status", 50, []string{harness.BB, "/probe", "exit", "50"}},
		{"255", 255, []string{harness.BB, "/probe", "exit", "255"}},
		{"own 125", 125, []string{harness.BB, "/probe", "exit", "125"}},
		{"killed by a signal", 128 + 9, []string{"--init", harness.BB, "sh", "-c", "kill -9 $$"}},
		{"child killed by TERM", 128 + 15, []string{harness.BB, "sh", "-c", "sh -c 'kill -15 $$'; exit $?"}},
		{"not found", 127, []string{harness.BB, "no-such-program"}},
		{"not found, absolute", 127, []string{harness.BB, "/no/such/program"}},
		{"not executable", 126, []string{harness.BB, "/etc/passwd"}},
		{"directory", 126, []string{harness.BB, "/etc"}},
		{"unknown flag", 125, []string{"--no-such-flag", harness.BB, "true"}},
		{"unknown image", 125, []string{"--pull", "never", "e2e/none:1", "true"}},
		{"no image", 125, nil},
		{"unknown user", 125, []string{"-u", "nobody-here", harness.BB, "true"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.In(t)
			if r := e.Run(append([]string{"run", "--rm"}, c.args...)...); r.Code != c.code {
				t.Errorf("want %d: %v", c.code, r)
			} else if c.code >= 125 && c.code < 128 && !strings.HasPrefix(c.name, "own") && strings.TrimSpace(r.Stderr) == "" {
				t.Errorf("no message: %v", r)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	e := harness.New(t, harness.BB)
	t.Run("kept apart", func(t *testing.T) {
		e := e.In(t)
		r := e.Run("run", "--rm", harness.BB, "sh", "-c", "echo out; echo err >&2")
		if r.Code != 0 || r.Stdout != "out\n" || r.Stderr != "err\n" {
			t.Errorf("%v", r)
		}
	})
	t.Run("whole output before the status", func(t *testing.T) {
		e := e.In(t)
		const n = 20 << 20
		r := e.Run("run", "--rm", harness.BB, "/probe", "flood", strconv.Itoa(n))
		for seed, got := range map[uint64]string{1: r.Stdout, 2: r.Stderr} {
			want, _ := probe.Sum(probe.Stream(n, seed))
			if sum, _ := probe.Sum(strings.NewReader(got)); sum != want {
				t.Errorf("stream %d: %s, want %s", seed, sum, want)
			}
		}
	})
	t.Run("stdin", func(t *testing.T) {
		e := e.In(t)
		const n = 20 << 20
		r := e.RunInput(probe.Stream(n, 7), "run", "--rm", "-i", harness.BB, "/probe", "stdin")
		want, _ := probe.Sum(probe.Stream(n, 7))
		if strings.TrimSpace(r.Stdout) != want {
			t.Errorf("want %s: %v", want, r)
		}
	})
	t.Run("stdin only with -i", func(t *testing.T) {
		e := e.In(t)
		r := e.RunInput(strings.NewReader("unseen"), "run", "--rm", harness.BB, "cat")
		if r.Code != 0 || r.Stdout != "" {
			t.Errorf("%v", r)
		}
	})
	t.Run("a writer that dies early", func(t *testing.T) {
		e := e.In(t)
		r := e.RunInput(probe.Stream(1<<20, 1), "run", "--rm", "-i", harness.BB, "true")
		if r.Code != 0 {
			t.Errorf("%v", r)
		}
	})
}

func TestEnvironment(t *testing.T) {
	e := harness.New(t, harness.BB, harness.App)
	file := filepath.Join(e.Dir(), "env")
	if err := os.WriteFile(file, []byte("# comment\nFROM_FILE=a b=c\n\nFROM_HOST\nUNSET_ON_HOST\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Setenv("FROM_HOST=host value", "SECRET=unseen")
	out := e.Must("run", "--rm", "-e", "A=1", "-e", "FROM_HOST", "--env", "EQ=a=b", "--env-file", file, "-e", "FROM_IMAGE=changed", "--hostname", "box", harness.BB, "env")
	got := map[string]string{}
	for line := range strings.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		got[k] = v
	}
	for k, v := range map[string]string{"A": "1", "FROM_HOST": "host value", "EQ": "a=b", "FROM_FILE": "a b=c", "FROM_IMAGE": "changed", "PATH": "/bin:/usr/bin", "HOSTNAME": "box", "HOME": "/root"} {
		if got[k] != v {
			t.Errorf("%s=%q, want %q", k, got[k], v)
		}
	}
	for _, k := range []string{"SECRET", "UNSET_ON_HOST", "XDG_RUNTIME_DIR", "TMPDIR", "USER", "SBX_NETD_LINGER"} {
		if v, ok := got[k]; ok {
			t.Errorf("%s=%q reached the sandbox", k, v)
		}
	}
}

// TestImageConfig: what an image says about itself holds unless the command line differs.
func TestImageConfig(t *testing.T) {
	e := harness.New(t, harness.App)
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"entrypoint and cmd", "entry first second\n", []string{harness.App}},
		{"cmd replaced", "entry other \n", []string{harness.App, "other"}},
		{"entrypoint replaced", "x\n", []string{"--entrypoint", "/bin/echo", harness.App, "x"}},
		{"entrypoint replaced, cmd gone", "\n", []string{"--entrypoint", "/bin/echo", harness.App}},
		{"user", "1000 1000 1000 1000 [1000 2000]\n", []string{"--entrypoint", "/probe", harness.App, "ids"}},
		{"working directory is made", "/home/app/new\n", []string{"--entrypoint", "/bin/pwd", harness.App}},
		{"environment", "blue\n", []string{"--entrypoint", "/bin/sh", harness.App, "-c", "echo $COLOR"}},
		{"volume has the image's files", "keep\n", []string{"--entrypoint", "/bin/cat", harness.App, "/data/keep"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.In(t)
			if got := e.Must(append([]string{"run", "--rm"}, c.args...)...); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestUserAndWorkdir(t *testing.T) {
	e := harness.New(t, harness.BB)
	for user, want := range map[string]string{
		"":          "0 0 0 0 [0]\n",
		"app":       "1000 1000 1000 1000 [1000 2000]\n",
		"app:extra": "1000 1000 2000 2000 [2000]\n",
		"33":        "33 33 33 33 [33]\n",
		"33:1000":   "33 33 1000 1000 [1000]\n",
		"4711:4712": "4711 4711 4712 4712 [4712]\n",
	} {
		args := []string{"run", "--rm"}
		if user != "" {
			args = append(args, "-u", user)
		}
		if got := e.Must(append(args, harness.BB, "/probe", "ids")...); got != want {
			t.Errorf("-u %q: %q, want %q", user, got, want)
		}
	}
	if got := e.Must("run", "--rm", "-w", "/data", harness.BB, "pwd"); got != "/data\n" {
		t.Errorf("-w: %q", got)
	}
	if got := e.Must("run", "--rm", "-w", "/new/dir", harness.BB, "pwd"); got != "/new/dir\n" {
		t.Errorf("-w is made: %q", got)
	}
	if got := e.Must("run", "--rm", "-u", "app", harness.BB, "/suid-probe", "ids"); got != "1000 0 1000 1000 [1000 2000]\n" {
		t.Errorf("setuid: %q", got)
	}
	if got := e.Must("run", "--rm", "-u", "app", "--security-opt", "no-new-privileges", harness.BB, "/suid-probe", "ids"); got != "1000 1000 1000 1000 [1000 2000]\n" {
		t.Errorf("setuid with no-new-privileges: %q", got)
	}
}

// TestSudo: becoming the sandbox's root works, and is only that.
func TestSudo(t *testing.T) {
	e := harness.New(t, harness.Debian)
	got := e.Must("run", "--rm", "-u", "app", harness.Debian, "bash", "-c", "sudo id -u; sudo cat /proc/self/uid_map | wc -l")
	if !strings.HasPrefix(got, "0\n") {
		t.Errorf("%q", got)
	}
}

func TestNames(t *testing.T) {
	e := harness.New(t, harness.BB)
	id := filepath.Join(e.Dir(), "cid")
	if got := e.Must("run", "--rm", "--name", "my-box", "--cidfile", id, "--label", "a=b", "--hostname", "my-host", harness.BB, "hostname"); got != "my-host\n" {
		t.Errorf("hostname: %q", got)
	}
	data, err := os.ReadFile(id)
	if err != nil || len(strings.TrimSpace(string(data))) < 12 {
		t.Errorf("cidfile: %q, %v", data, err)
	}
	e.Fails(125, []string{id}, "run", "--rm", "--cidfile", id, harness.BB, "true")
	p := e.Start("run", "--rm", "--name", "taken", harness.BB, "/probe", "signal")
	p.WaitOut("ready", 20*time.Second)
	e.Fails(125, []string{"taken"}, "run", "--rm", "--name", "taken", harness.BB, "true")
	e.Fails(125, []string{"name"}, "run", "--rm", "--name", "not/good", harness.BB, "true")
	p.Stop()
}

func TestRootFSDirectory(t *testing.T) {
	e := harness.New(t)
	root := filepath.Join(e.Dir(), "rootfs")
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "probe"), self, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := e.Must("run", "--rm", "--rootfs", root, "/bin/probe", "ids"); !strings.HasPrefix(got, "0 0 0 0") {
		t.Errorf("%q", got)
	}
	entries, err := os.ReadDir(root)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory was written to: %v %v", entries, err)
	}
}

func TestDemoImage(t *testing.T) {
	e := harness.NewPrivate(t)
	port := e.FreePort()
	p := e.Start("run", "--rm", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), "demo")
	if got := p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port)); got == "" {
		t.Error("the demo's page is empty")
	}
	p.Stop()
}
