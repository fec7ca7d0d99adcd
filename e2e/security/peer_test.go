package security

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestPeer makes the attempts that need no flags in another program that runs
// containers without root, and prints those that end otherwise than in sbx.
//
//	SBX_SECURITY_PEER=podman go test -v -run TestPeer ./e2e/security
func TestPeer(t *testing.T) {
	name := os.Getenv("SBX_SECURITY_PEER")
	line, ok := peers[name]
	if !ok {
		t.Skip("SBX_SECURITY_PEER names none: podman, docker, bwrap, runc")
	}
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	root := filepath.Join(e.Dir(), "root")
	for _, d := range []string{"proc", "sys", "dev", "tmp", "etc", "bin", "data", "work"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	self, err := os.Executable()
	must(t, err)
	data, err := os.ReadFile(self)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "probe"), data, 0o755))
	if name == "podman" { // its process that holds the user namespace
		t.Cleanup(func() {
			exec.Command("podman", "--cgroup-manager", "cgroupfs", "--root", e.Dir()+"/p", "--runroot", e.Dir()+"/pr", "system", "migrate").Run()
		})
	}
	equal, all := 0, 0
	for _, a := range slices.Concat(callCatalogue, mountCatalogue, procCatalogue, deviceCatalogue, processCatalogue, fileCatalogue, socketCatalogue, abuseCatalogue) {
		if len(a.flags) > 0 {
			continue
		}
		all++
		got := runPeer(t, line(t, e.Dir(), root, append([]string{"/probe", "try"}, o.words(a.try)...)))
		if got != "ok" && !errnoName.MatchString(got) {
			t.Fatalf("%s does not run it: %s", name, got)
		}
		if slices.Contains(a.refused, got) || got != "ok" {
			equal++
			continue
		}
		fmt.Printf("%s: %s: %s, in sbx %v\n", name, a.name, got, a.refused)
		o.before = o.look(t)
	}
	fmt.Printf("%s: %d of %d attempts are refused as in sbx\n", name, equal, all)
}

var errnoName = regexp.MustCompile(`^E[A-Z0-9]+$`)

// peers make the command line that runs a program in a root, with the defaults.
var peers = map[string]func(t *testing.T, dir, root string, args []string) *exec.Cmd{
	"podman": func(t *testing.T, dir, root string, args []string) *exec.Cmd {
		return exec.Command("podman", append([]string{"--runtime", "runc", "--cgroup-manager", "cgroupfs", "--root", dir + "/p", "--runroot", dir + "/pr", "run", "--rm",
			"--network", "slirp4netns", "--rootfs", root}, args...)...)
	},
	"docker": func(t *testing.T, dir, root string, args []string) *exec.Cmd {
		const image = "sbx-peer" // of the daemon that DOCKER_HOST names
		if exec.Command("docker", "image", "inspect", image).Run() != nil {
			archive := filepath.Join(dir, "root.tar")
			for _, line := range [][]string{{"tar", "-C", root, "-cf", archive, "."}, {"docker", "import", archive, image}} {
				if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
					t.Fatalf("%v: %v: %s", line, err, out)
				}
			}
			t.Cleanup(func() { exec.Command("docker", "rmi", image).Run() })
		}
		return exec.Command("docker", append([]string{"run", "--rm", image}, args...)...)
	},
	"bwrap": func(t *testing.T, dir, root string, args []string) *exec.Cmd {
		return exec.Command("bwrap", append([]string{"--unshare-all", "--die-with-parent", "--new-session", "--bind", root, "/", "--proc", "/proc", "--dev", "/dev"}, args...)...)
	},
	"runc": func(t *testing.T, dir, root string, args []string) *exec.Cmd {
		bundle := filepath.Join(dir, "bundle")
		must(t, os.MkdirAll(bundle, 0o755))
		if _, err := os.Stat(bundle + "/config.json"); err != nil {
			out, err := exec.Command("runc", "spec", "--rootless", "--bundle", bundle).CombinedOutput()
			if err != nil {
				t.Fatalf("runc spec: %v: %s", err, out)
			}
		}
		text, err := os.ReadFile(bundle + "/config.json")
		must(t, err)
		var spec map[string]any
		must(t, json.Unmarshal(text, &spec))
		spec["root"] = map[string]any{"path": root}
		spec["process"].(map[string]any)["args"], spec["process"].(map[string]any)["terminal"] = args, false
		text, err = json.Marshal(spec)
		must(t, err)
		must(t, os.WriteFile(bundle+"/config.json", text, 0o644))
		return exec.Command("runc", "--root", dir+"/c", "run", "--bundle", bundle, "probe")
	},
}

func runPeer(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if out.Len() == 0 {
		return strings.TrimSpace(fmt.Sprint(err, " ", errs.String()))
	}
	return lastLine(out.String())
}
