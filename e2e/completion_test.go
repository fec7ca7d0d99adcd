package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// line is a command line whose last word is at the cursor, and what must be offered.
type line struct{ text, want string }

// TestCompletion asks real shells for every command that takes a sandbox, an image or a
// volume, whatever commands there are.
func TestCompletion(t *testing.T) {
	e := harness.New(t, harness.BB)
	id := detached(t, e, "alpha", harness.BB, "sleep", "1000")
	e.Must("create", "--name", "beta", harness.BB)
	e.AtEnd("rm", "-f", "beta")
	e.Must("volume", "create", "gamma")
	e.AtEnd("volume", "rm", "gamma")

	var lines []line
	var walk func(group string)
	walk = func(group string) {
		ask := append([]string{"__complete"}, append(strings.Fields(group)[1:], "")...)
		for _, offer := range strings.Split(e.Must(ask...), "\n") {
			name, _, described := strings.Cut(offer, "\t")
			if !described {
				continue
			}
			command := group + " " + name
			usage, _, _ := strings.Cut(e.Must(append(strings.Fields(command)[1:], "--help")...), "\n")
			usage = strings.TrimPrefix(usage, "Usage: "+command)
			if name == "unpause" || name == "container" {
				continue // for one that is paused, which takes a cgroup; and all of them again
			}
			if strings.HasSuffix(usage, " COMMAND") && !strings.Contains(usage, "SANDBOX") {
				walk(command)
				continue
			}
			for what, want := range map[string]string{"SANDBOX": "beta", "IMAGE": harness.BB, "VOLUME": "gamma"} {
				if first := regexp.MustCompile(`[A-Z]{4,}`).FindString(strings.Replace(usage, "[OPTIONS]", "", 1)); first == what {
					if what == "SANDBOX" && !slices.Contains([]string{"start", "rm", "rename", "restart", "logs", "diff", "commit", "export", "cp", "inspect"}, name) {
						want = "alpha" // one that runs
					}
					if name == "cp" {
						want += ":" // a path follows
					}
					lines = append(lines, line{command + " ", want})
				}
			}
		}
	}
	walk("sbx")
	if len(lines) < 20 {
		t.Fatalf("commands: %v", lines)
	}
	lines = append(lines,
		line{"sbx stop " + id[:4], id[:12]}, line{"sbx inspect alp", "alpha"}, line{"sbx inspect bet", "beta"},
		line{"sbx ps --filter sta", "status="}, line{"sbx events --filter type=v", "type=volume"}, line{"sbx kill -s SIGU", "SIGUSR1"},
		line{"sbx sys", "system"}, line{"sbx system d", "df"}, line{"sbx run --netw", "--network"}, line{"sbx help ev", "events"},
	)
	for shell, script := range map[string]string{
		"bash": `source <(sbx completion bash)
complete_line() {
	COMP_LINE=$1 COMP_POINT=${#1} COMP_TYPE=9
	read -ra COMP_WORDS <<<"$1"
	[[ $1 != *" " ]] || COMP_WORDS+=("")
	COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
	_sbx sbx
	echo "${COMPREPLY[*]}"
}
while IFS= read -r l; do complete_line "$l" 2>/dev/null; done`,
		"fish": `sbx completion fish | source
while read -l l; echo (complete -C "$l" | string split -f1 \t); end`,
		// In place of what _describe shows, the words: up to a colon that is not escaped.
		"zsh": `autoload -Uz compinit && compinit -u -D
source <(sbx completion zsh)
_describe() {
	local -a offered=("${(@)described//\\:/@}")
	offered=("${(@)offered%%:*}")
	print -r -- "${offered[@]//@/:}"
}
while IFS= read -r l; do
	words=(${(z)l}); [[ $l != *" " ]] || words+=("")
	CURRENT=$#words PREFIX=$words[-1]; _sbx | tr '\n' ' '; echo
done`,
	} {
		if _, err := exec.LookPath(shell); err != nil {
			t.Logf("%s is not installed: make setup does it", shell)
			continue
		}
		t.Run(shell, func(t *testing.T) {
			cmd := exec.Command(shell, "-c", script)
			cmd.Env = append(e.Environ(), "PATH="+filepath.Dir(harness.Binary())+":/usr/bin:/bin")
			lines := lines
			if shell != "bash" { // the answers are the same, and it is slow
				lines = lines[len(lines)-15:]
			}
			var in strings.Builder
			for _, l := range lines {
				fmt.Fprintln(&in, l.text)
			}
			cmd.Stdin = strings.NewReader(in.String())
			out, err := cmd.CombinedOutput()
			answers := strings.Split(string(out), "\n")
			if err != nil || len(answers) != len(lines)+1 {
				t.Fatalf("%d answers to %d lines, %v\n%s", len(answers)-1, len(lines), err, out)
			}
			for i, l := range lines {
				if !slices.Contains(strings.Fields(answers[i]), l.want) {
					t.Errorf("%q: no %q in %q", l.text, l.want, answers[i])
				}
			}
		})
	}
}
