package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox"
)

func TestCompletionScripts(t *testing.T) {
	for _, shell := range shellNames {
		out, errs, code := sbx(t, "completion", shell)
		if code != 0 || errs != "" || !strings.Contains(out, "sbx") {
			t.Errorf("%s: %d %q", shell, code, errs)
		}
		prog, err := exec.LookPath(shell)
		if err != nil && shell != "bash" {
			continue // bash is everywhere; the others are checked where they are
		}
		cmd := exec.Command(prog, "-n", "/dev/stdin")
		cmd.Stdin = strings.NewReader(out)
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, msg)
		}
	}
}

func TestCompletion(t *testing.T) {
	newStore(t, "debian:12", "app:latest")
	for _, tc := range []struct {
		line string
		want string // the offers, without their descriptions
		then string
	}{
		{"ru", "run", ":none"},
		{"-", "--version --help --debug", ":none"},
		{"-D ru", "run", ":none"},
		{"image --", "--help", ":none"},
		{"bogus ", "", ":none"},
		{"run --netw", "--network --network-alias", ":none"},
		{"run --rm --r", "--restart --rootfs --read-only", ":none"},
		{"run -e A=1 --env", "--env --env-file", ":none"},
		{"run --network ", "bridge host none container:", ":none"},
		{"run --network=n", "--network=none", ":none"},
		{"run --net=n", "--net=none", ":none"},
		{"run -ita ", "stdin stdout stderr", ":none"},
		{"run --pull ", "missing always never", ":none"},
		{"run --userns ", "auto single keep-id", ":none"},
		{"run --storage-driver ", "native fuse copy", ":none"},
		{"run --link-driver ", "tap packet", ":none"},
		{"run --port-driver ", "direct stack builtin", ":none"},
		{"run --cap-add SYS_A", "SYS_ADMIN", ":none"},
		{"run --sysctl net.core", "net.core.somaxconn=", ":nospace"},
		{"run --env-file ", "", ":files"},
		{"run --rootfs ", "", ":dirs"},
		{"run ", "app debian:12 demo", ":none"},
		{"run -it --rm ", "app debian:12 demo", ":none"},
		{"run -p8080:80 -- de", "debian:12 demo", ":none"},
		{"run -e A=1 debian:12 ", "", ":files"},
		{"run debian:12 --", "", ":files"},
		{"run --rootfs /x ", "", ":files"},
		{"run --memory ", "", ":none"},
		{"run --bogus=", "", ":none"},
		{"load ", "", ":files"},
		{"doctor ", "", ":none"},
		{"rmi ", "app debian:12", ":none"},
		{"rmi app ", "debian:12", ":none"},
		{"rmi app -", "--no-prune --force --help", ":none"},
		{"tag ", "app debian:12", ":none"},
		{"image inspect ", "app debian:12", ":none"},
		{"completion ", "bash zsh fish", ":none"},
		{"completion zsh ", "", ":none"},
		{"help image p", "prune pull", ":none"},
		{"help bogus ", "", ":none"},
		{"images --format ", "json table {{json .}}", ":none"},
	} {
		words := strings.Split(tc.line, " ")
		out, errs, code := sbx(t, append([]string{"__complete"}, words...)...)
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		last := len(lines) - 1
		var got []string
		for _, l := range lines[:last] {
			offer, _, _ := strings.Cut(l, "\t")
			got = append(got, offer)
		}
		if g := strings.Join(got, " "); code != 0 || errs != "" || g != tc.want || lines[last] != tc.then {
			t.Errorf("%q: %d %q %s %q, want %q %s", tc.line, code, g, lines[last], errs, tc.want, tc.then)
		}
	}
}

// TestMain lets this program be sbx and its workers, and a shell run it as sbx.
func TestMain(m *testing.M) {
	sandbox.MaybeInit()
	if os.Getenv(asSBX) != "" {
		os.Exit(run(os.Args[1:]))
	}
	os.Exit(m.Run())
}

const asSBX = "SBX_TEST_AS_SBX"

// bash splits its words at = and :, and puts together again what is typed.
func TestCompletionInBash(t *testing.T) {
	newStore(t, "debian:12")
	t.Setenv(asSBX, "1")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		words []string // as bash splits them
		want  string
	}{
		{[]string{"ver"}, "version"},
		{[]string{"image", "ins"}, "inspect"},
		{[]string{"run", "--net", "="}, "bridge host none container:"},
		{[]string{"run", "--network", "=", "n"}, "none"},
		{[]string{"run", "-p", "8080", ":", "80", "--network", "no"}, "none"},
		{[]string{"run", "debian"}, "debian:12"},
		{[]string{"run", "debian", ":"}, "12"},
		{[]string{"run", "debian", ":", "1"}, "12"},
		{[]string{"rmi", ""}, "debian:12"},
		{[]string{"bogus", ""}, ""},
	} {
		script := `source <("$0" completion bash)
COMP_WORDS=("$0" "$@"); COMP_CWORD=$#
_sbx "$0"
echo "${COMPREPLY[*]}"`
		cmd := exec.Command("bash", append([]string{"-c", script, self}, tc.words...)...)
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSuffix(string(out), "\n"); err != nil || got != tc.want {
			t.Errorf("%q: %q, %v, want %q", tc.words, got, err, tc.want)
		}
	}
}
