package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// sbx inside a container of somebody else's, as a CI job uses it: the root is an
// overlay, there is no /dev/net/tun, no /dev/fuse, no fuse-overlayfs and no
// newuidmap, and parts of /proc are masked. The outer container is one of sbx's
// own. See docs/ci-containers.md.

// unconfined is what every container must be started with to hold sandboxes.
var unconfined = []string{"--security-opt", "seccomp=unconfined"}

// outer runs script in a container that has sbx and, at /inner, a root directory
// with busybox. The script goes on when a command fails; its status is the last's.
func outer(t *testing.T, e *harness.Env, flags []string, script string) harness.Result {
	t.Helper()
	inner := filepath.Join(e.Dir(), "inner")
	if _, err := os.Stat(inner); err != nil {
		busybox, err := harness.Fixtures().Tool(t.Context(), "busybox-static", "bin/busybox")
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(busybox)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(inner, "bin"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(inner, "bin", "busybox"), program, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, a := range []string{"sh", "id", "cat", "ps", "ls", "nslookup"} {
			if err := os.Symlink("busybox", filepath.Join(inner, "bin", a)); err != nil {
				t.Fatal(err)
			}
		}
	}
	args := append([]string{"run", "--rm", "-v", harness.Binary() + ":/bin/sbx:ro", "-v", inner + ":/inner:ro"}, flags...)
	return e.Run(append(args, harness.BB, "sh", "-c", "export SBX_NETD_LINGER=200ms\n"+script)...)
}

// nothingLeft is the end of a script: what a sandbox may not leave in its container.
const nothingLeft = `
for i in $(seq 100); do ps -o comm | grep -q '^sbx' || break; sleep 0.1; done
echo "left: $(ps -o comm | grep -c '^sbx') $(ls "$HOME/.local/share/sbx/containers" | wc -l) $(grep -c merged /proc/mounts)"
`

func TestNested(t *testing.T) {
	e := harness.New(t, harness.BB)
	img, err := harness.Build(t.Context(), harness.BB)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(img, harness.BB, archive); err != nil {
		t.Fatal(err)
	}
	r := outer(t, e, append([]string{"-v", archive + ":/image.tar:ro"}, unconfined...), `
export HOME=/root
sbx doctor >/doctor || exit 1
tr -s ' ' </doctor
sbx load -qi /image.tar || exit 1
echo "== files"
sbx run --rm `+harness.BB+` sh -c 'ls /data; ls /data/opaque; stat -c "%u:%g %n" /data/owned; touch /data/gone; ls /data/gone' 2>/notes
echo "notes: $(grep -c "/proc is that of" /notes) $(grep -c "/sys is that of" /notes) $(grep -c "packet link" /notes) $(wc -l </notes)"
echo "== processes"
sleep 1000 & 
sbx run --rm `+harness.BB+` sh -c 'ps -o args; echo 1000 >/proc/1/oom_score_adj; cat /proc/$(ls /proc | grep -c .)/x /proc/1/environ; ls /sys/class/net' 2>&1 | grep -v ^sbx:
echo "score: $(cat /proc/1/oom_score_adj)"
kill $!
echo "== network"
sbx run --rm `+harness.BB+` nslookup host.sbx.internal 2>/dev/null | grep -c "host.sbx.internal"
for driver in direct stack builtin; do
	sbx run --rm -p 8080:80 --port-driver $driver --name web `+harness.BB+` /probe serve 80 >/dev/null 2>&1 &
	for i in $(seq 300); do
		wget -qO /dev/null http://127.0.0.1:8080/ 2>/dev/null && echo "$driver answers" && break
		sleep 0.1
	done
	kill $!
	wait $!
done
`+nothingLeft)
	if r.Code != 0 {
		t.Fatalf("%v", r)
	}
	out := r.Stdout
	for _, want := range []string{
		"degraded storage-native ", "is on an overlay itself", "Storage driver: copy", "Link driver: packet",
		"Sandboxes can run here.",
		"\nnotes: 1 1 1 3\n",
		"1000:2000 /data/owned\n/data/gone\n",
		"direct answers\n", "stack answers\n", "builtin answers\n",
		"\nscore: 0\n",
		"\nleft: 0 0 0\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%v", want, r)
		}
	}
	files := section(out, "files")
	for name, there := range map[string]bool{"keep": true, "changed": true, "new": true, "old": false, ".wh.gone": false, ".wh..wh..opq": false} {
		if strings.Contains("\n"+files, "\n"+name+"\n") != there {
			t.Errorf("%s: want %v in:\n%s", name, there, files)
		}
	}
	if strings.Contains("\n"+files, "\ngone\n") {
		t.Errorf("a file that the image removed:\n%s", files)
	}
	ps := section(out, "processes")
	if !strings.Contains(ps, "ps -o args") {
		t.Errorf("ps does not show its own sandbox:\n%s", ps)
	}
	for _, hidden := range []string{"sleep 1000", "sbx-monitor", "eth0", "HOME="} {
		if strings.Contains(ps, hidden) {
			t.Errorf("the sandbox sees %q of the outer container:\n%s", hidden, ps)
		}
	}
	if !strings.Contains(ps, "Read-only file system") {
		t.Errorf("/proc can be written to:\n%s", ps)
	}
	if n := strings.TrimSpace(section(out, "network")); !regexp.MustCompile(`^[1-9]`).MatchString(n) {
		t.Errorf("the name of the host: %q", n)
	}
}

// section returns what a script printed after "== name".
func section(out, name string) string {
	_, rest, _ := strings.Cut(out, "== "+name+"\n")
	s, _, _ := strings.Cut(rest, "== ")
	return s
}

// TestNestedVariants: outer containers that give more, or less.
func TestNestedVariants(t *testing.T) {
	e := harness.New(t, harness.BB)
	const job = `
sbx run --rm --rootfs /inner sh -c 'id -u; cat /proc/self/uid_map | while read a b c; do echo "map $a $b $c"; done; nslookup host.sbx.internal | grep -c host.sbx || echo no name'
status=$?
sbx doctor | grep -v "^ok" | tr -s ' '
` + nothingLeft + `exit $status`
	for _, c := range []struct {
		name   string
		flags  []string
		code   int
		out    []string
		notOut []string
		err    []string
	}{
		{name: "an overlay", out: []string{"0\nmap 0 0 1\nmap 1 1 65535\n", "driver: copy", "driver: packet"}},
		{name: "a read-only root, tmpfs for the data", flags: []string{"--read-only", "--tmpfs", "/root:exec", "--tmpfs", "/run", "--tmpfs", "/tmp"},
			out: []string{"0\nmap 0 0 1\nmap 1 1 65535\n"}, notOut: []string{"on an overlay itself"}},
		{name: "a read-only root", flags: []string{"--read-only"}, code: 125, err: []string{"read-only file system", "XDG_DATA_HOME"}},
		{name: "one id", flags: []string{"--userns", "single"}, out: []string{"0\nmap 0 0 1\n", "User namespace: single"}, notOut: []string{"map 1"}},
		{name: "with /dev/net/tun", flags: []string{"-v", "/dev/net/tun:/dev/net/tun"}, out: []string{"Link driver: tap"}},
		{name: "without a network", flags: []string{"--network", "none"}, out: []string{"0\nmap 0 0 1\n"}},
		{name: "no new privileges", flags: []string{"--security-opt", "no-new-privileges"}, out: []string{"0\nmap 0 0 1\nmap 1 1 65535\n"}},
		{name: "ordinary user", flags: []string{"-u", "app"}, out: []string{"0\nmap 0 1000 1\n", "User namespace: single"}, err: []string{"no subordinate"}},
		{name: "ordinary user without capabilities", flags: []string{"-u", "app", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"},
			out: []string{"0\nmap 0 1000 1\n", "User namespace: single"}},
		{name: "unknown user", flags: []string{"-u", "4711", "-e", "HOME=/tmp"}, out: []string{"0\nmap 0 4711 1\n"}},
		{name: "root without CAP_SETPCAP", flags: []string{"--cap-drop", "SETPCAP"}, out: []string{"0\nmap 0 0 1\nmap 1 1 65535\n"}},
		{name: "root with CAP_SETFCAP alone", flags: []string{"--cap-drop", "ALL", "--cap-add", "SETFCAP"}, out: []string{"0\nmap 0 0 1\n", "User namespace: single"}},
		{name: "root without capabilities", flags: []string{"--cap-drop", "ALL"}, code: 125, err: []string{"CAP_SETFCAP"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := outer(t, e, append(c.flags, unconfined...), job)
			r.Want(t, c.code, c.err...)
			if c.code == 0 {
				c.out = append(c.out, "Sandboxes can run here.", "left: 0 0 0\n")
				c.notOut = append(c.notOut, "no name")
			}
			for _, want := range c.out {
				if !strings.Contains(r.Stdout, want) {
					t.Errorf("no %q: %v", want, r)
				}
			}
			for _, no := range c.notOut {
				if strings.Contains(r.Stdout, no) {
					t.Errorf("%q: %v", no, r)
				}
			}
		})
	}
	t.Run("Docker's seccomp profile", func(t *testing.T) {
		r := outer(t, e, nil, "sbx run --rm --rootfs /inner sh -c true")
		r.Want(t, 125, "seccomp", "fix: start the outer container with --security-opt seccomp=unconfined")
	})
	t.Run("a third level", func(t *testing.T) {
		// The /proc of the second level is that of the first, with other process
		// numbers: no ids can be mapped through it.
		r := outer(t, e, append([]string{"--network", "none"}, unconfined...), `
sbx run --rm --security-opt seccomp=unconfined -v /bin/sbx:/bin/sbx -v /inner:/inner --tmpfs /tmp -e HOME=/tmp --rootfs /inner sh -c 'sbx run --rm --rootfs /inner sh -c true'`)
		r.Want(t, 125, "uid_map")
	})
}
