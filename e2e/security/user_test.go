package security

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

// refusedTo are the answers another user gets.
var refusedTo = words("EACCES", "EPERM")

// TestOtherUser: another user of the host can read, list, connect to and signal nothing
// of a sandbox and of the processes around it.
func TestOtherUser(t *testing.T) {
	e := harness.New(t, harness.BB)
	other := newOther(t, e)
	e.AtEnd("volume", "rm", "-f", "box")
	e.AtEnd("rm", "-f", "box")
	// What somebody has made by hand is closed before anything is put there.
	runtime := filepath.Join(e.Runtime, "sbx") // loading the image has made it
	for _, dir := range []string{e.Data(), runtime} {
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.Chmod(dir, 0o755))
	}
	e.Setenv("SECRET=" + canaryText)
	before := abstractSockets(t)
	id := strings.TrimSpace(e.Must("run", "-d", "--init", "--name", "box", "-e", "SECRET", "-v", "box:/v", harness.BB, "sleep", "1000"))
	if now := abstractSockets(t); now != before {
		t.Errorf("abstract sockets of ours, which anybody can connect to: %s, before %s", now, before)
	}
	for _, dir := range []string{e.Data(), runtime} {
		st, err := os.Stat(dir)
		must(t, err)
		if st.Mode().Perm() != 0o700 {
			t.Errorf("%s has the mode %v", dir, st.Mode())
		}
	}
	// The runtime directory of a session is closed by its maker; ours must be without.
	for _, dir := range []string{filepath.Dir(e.Data()), e.Runtime} {
		must(t, os.Chmod(dir, 0o755))
	}

	box := filepath.Join(e.Data(), "containers", id)
	monitor, netd := filepath.Join(runtime, "box", id[:12]+".sock"), filepath.Join(runtime, "net/default")
	t.Run("files", func(t *testing.T) {
		must(t, os.WriteFile(filepath.Join(e.Data(), "volumes/box/_data/file"), []byte("x"), 0o666))
		for _, try := range [][]string{
			{"list", filepath.Dir(box)}, {"list", box}, {"read", box + "/config.json"}, {"read", box + "/state.json"}, {"list", box + "/log"},
			{"list", e.Data() + "/images"}, {"list", e.Data() + "/volumes"}, {"read", e.Data() + "/volumes/box/_data/file"}, {"list", e.Data() + "/events"},
			{"list", filepath.Dir(monitor)}, {"request", monitor},
			{"list", filepath.Dir(netd)}, {"read", netd + "/state.json"}, {"request", netd + "/sock"},
			{"create", runtime + "/evil"}, {"create", e.Data() + "/evil"},
		} {
			if got := other.try(t, try...); !slices.Contains(refusedTo, got) {
				t.Errorf("%v: %s", try, got)
			}
			if got := ourselves(t, try); got != "ok" {
				t.Errorf("%v as ourselves: %s", try, got)
			}
		}
		must(t, os.Remove(runtime+"/evil"))
		must(t, os.Remove(e.Data()+"/evil"))
	})

	// Were the directories open, the ends would ask who the other is.
	t.Run("open sockets", func(t *testing.T) {
		sockets := []string{monitor, netd + "/sock"}
		for path, mode := range map[string]os.FileMode{runtime: 0o711, filepath.Dir(monitor): 0o711, filepath.Dir(netd): 0o711, netd: 0o711, sockets[0]: 0o666, sockets[1]: 0o666} {
			st, err := os.Stat(path)
			must(t, err)
			must(t, os.Chmod(path, mode))
			t.Cleanup(func() { must(t, os.Chmod(path, st.Mode().Perm())) })
		}
		for _, s := range sockets {
			if got := other.try(t, "request", s); got != "ECONNRESET" {
				t.Errorf("%s: %s", s, got)
			}
			if got := ourselves(t, words("request", s)); got != "ok" {
				t.Errorf("%s as ourselves: %s", s, got)
			}
		}
	})

	t.Run("processes", func(t *testing.T) {
		init := strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Pid}}", "box"))
		workload, err := os.ReadFile("/proc/" + init + "/task/" + init + "/children")
		must(t, err)
		pids := map[string]string{"init": init, "workload": strings.TrimSpace(string(workload))}
		for _, role := range []string{"sbx-monitor", "sbx-netd"} {
			found := e.Role(role)
			if len(found) != 1 {
				t.Fatalf("%d processes are %s", len(found), role)
			}
			pids[role] = fmt.Sprint(found[0])
		}
		for who, pid := range pids {
			for _, what := range []string{
				"kill", "attach", "vm_read", "fd_get", "prlimit", "affinity", "oom_adj",
				"proc_mem", "proc_root", "proc_cwd", "proc_fd", "proc_ns", "proc_maps", "proc_env",
			} {
				if got := other.try(t, what, pid); !slices.Contains(refusedTo, got) {
					t.Errorf("%s %s: %s", what, who, got)
				}
			}
			if line, _ := other.run(t, nil, "cat", "/proc/"+pid+"/cmdline"); line == "" || strings.Contains(line, canaryText) {
				t.Errorf("the command line of %s, which all can read: %q", who, line)
			}
		}
	})

	t.Run("commands", func(t *testing.T) {
		mine := []string{"XDG_DATA_HOME=" + filepath.Dir(e.Data()), "XDG_RUNTIME_DIR=" + e.Runtime}
		his := other.home(t, e)
		for _, args := range [][]string{
			{"ps", "-a"}, {"logs", "box"}, {"exec", "box", "true"}, {"inspect", "box"}, {"kill", "box"}, {"rm", "-f", id}, {"attach", "box"},
			{"cp", "box:/etc/passwd", "-"}, {"images"}, {"run", "--rm", harness.BB, "true"}, {"volume", "ls"}, {"network", "inspect", "bridge"}, {"events", "--until", "1s"},
		} {
			for name, env := range map[string][]string{"both": mine, "data": slices.Concat(his, mine[:1]), "runtime": slices.Concat(his, mine[1:])} {
				out, code := other.run(t, env, append([]string{harness.Binary()}, args...)...)
				if code == 0 || !strings.Contains(out, "it belongs to user ") || args[0] != "rm" && strings.Contains(out, id[:12]) {
					t.Errorf("%v with %s of ours: status %d: %s", args, name, code, out)
				}
			}
		}
		if out := other.must(t, his, harness.Binary(), "ps", "-aq"); out != "" {
			t.Errorf("in his own he sees %q", out)
		}
	})
	if r := e.Run("exec", "box", "true"); r.Code != 0 {
		t.Errorf("it does not live: %v", r)
	}
}

// ourselves makes the attempt as the sandbox's own user: what another cannot do must be there to be done.
func ourselves(t *testing.T, try []string) string { return (&outside{}).onHost(t, try) }

// abstractSockets lists those of our user.
func abstractSockets(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ss", "-Hxae").CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v: %s", err, out)
	}
	var mine []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], "@") && slices.Contains(f, fmt.Sprintf("uid:%d", os.Getuid())) {
			mine = append(mine, f[4])
		}
	}
	slices.Sort(mine)
	return strings.Join(mine, " ")
}

// TestSquatting: without XDG_RUNTIME_DIR sbx keeps its sockets below /tmp, where anybody can
// make a directory of that name before. It is refused, whatever is in it.
func TestSquatting(t *testing.T) {
	e := harness.New(t, harness.BB)
	other := newOther(t, e)
	tmp := filepath.Join(e.Dir(), "tmp1777")
	must(t, os.Mkdir(tmp, 0o700))
	must(t, os.Chmod(tmp, 0o777|os.ModeSticky))
	ours := filepath.Join(e.Dir(), "ours")
	must(t, os.Mkdir(ours, 0o755))
	dir := filepath.Join(tmp, fmt.Sprintf("sbx-%d", os.Getuid()))
	e.Setenv("TMPDIR="+tmp, "XDG_RUNTIME_DIR")
	for what, c := range map[string]struct{ script, why string }{
		"directory":           {"mkdir -m 777 $0", "it belongs to user"},
		"network's directory": {"mkdir -m 777 $0 $0/net $0/net/default $0/box", "it belongs to user"},
		"link to ours":        {"ln -s " + ours + " $0", "it is a link made by user"},
		"link to his":         {"mkdir -m 777 $0.d; ln -s $0.d $0", "it is a link made by user"},
		"file":                {"echo >$0", "it belongs to user"},
	} {
		other.must(t, nil, "sh", "-ec", c.script, dir)
		for _, args := range [][]string{{"run", "--rm", harness.BB, "true"}, {"run", "-d", harness.BB, "true"}, {"images"}} {
			r := e.Fails(125, []string{dir, c.why, "set XDG_RUNTIME_DIR"}, args...)
			if r.Stdout != "" {
				t.Errorf("%s: %v", what, r)
			}
		}
		if left := other.must(t, nil, "find", dir, "!", "-type", "d", "!", "-type", "l", "-size", "+1"); left != "" {
			t.Errorf("%s: somebody has put there: %s", what, left)
		}
		other.must(t, nil, "rm", "-rf", dir, dir+".d")
	}
	st, err := os.Stat(ours)
	must(t, err)
	if entries, err := os.ReadDir(ours); err != nil || len(entries) > 0 || st.Mode().Perm() != 0o755 {
		t.Errorf("our directory was used: %v %v %v", entries, st.Mode(), err)
	}
}

// TestOtherUsersPorts: a sandbox reaches what another user's sandbox publishes on the host's
// loopback only where its own user opens that port.
func TestOtherUsersPorts(t *testing.T) {
	e := harness.New(t, harness.BB)
	other := newOther(t, e)
	port := fmt.Sprint(e.FreePort())
	e.AtEnd("rm", "-f", "box")
	e.Must("run", "-d", "--name", "box", "-p", "127.0.0.1:"+port+":80", harness.BB, "/probe", "serve", "80")
	harness.Eventually(t, 10*time.Second, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return err
		}
		return c.Close()
	})
	img, err := harness.Build(t.Context(), harness.BB)
	must(t, err)
	image := filepath.Join(e.Dir(), "image.tar")
	must(t, fixture.SaveDocker(img, harness.BB, image))
	must(t, os.Chmod(image, 0o644))
	his := other.home(t, e)
	other.must(t, his, harness.Binary(), "load", "-i", image)
	for _, c := range []struct {
		flags string
		want  string
	}{{"", "ECONNREFUSED"}, {"--host-access " + port, "ok"}} {
		args := append([]string{harness.Binary(), "run", "--rm"}, strings.Fields(c.flags)...)
		args = append(args, harness.BB, "/probe", "try", "tcp", "host.sbx.internal:"+port)
		// Notes of sbx's own may come before or after it.
		if out := other.must(t, his, args...); !slices.Contains(strings.Split(out, "\n"), c.want) {
			t.Errorf("%q: %s, want %s", c.flags, out, c.want)
		}
	}
}
