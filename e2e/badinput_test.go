package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/rootless-sbx/sbx/e2e/fixture"
	"github.com/rootless-sbx/sbx/e2e/harness"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestRegistryFailures(t *testing.T) {
	reg := registry(t)
	ref, err := reg.Push(t.Context(), build(t, harness.BB), "e2e/bb:1")
	if err != nil {
		t.Fatal(err)
	}
	path := ref[strings.Index(ref, "/"):]
	for name, edit := range map[string]func(string, []byte) []byte{
		"blob changed": func(p string, b []byte) []byte {
			if strings.Contains(p, "/blobs/") && len(b) > 100 {
				b[len(b)/2] ^= 1
			}
			return b
		},
		"blob cut": func(p string, b []byte) []byte {
			if strings.Contains(p, "/blobs/") && len(b) > 100 {
				return b[:len(b)/2]
			}
			return b
		},
		"manifest is no manifest": func(p string, b []byte) []byte {
			if strings.Contains(p, "/manifests/") {
				return []byte("{}")
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.NewPrivate(t)
			tamper, err := fixture.StartTamper(reg.Addr, edit)
			if err != nil {
				t.Fatal(err)
			}
			r := e.Fails(125, nil, "pull", tamper.Addr+path)
			if err := tamper.Close(); err != nil {
				t.Error(err)
			}
			if len(r.Stderr) == 0 {
				t.Error("no message")
			}
			e.Fails(125, nil, "run", "--rm", "--pull", "never", tamper.Addr+path, "true")
			if left := layersLeft(e); len(left) != 0 {
				t.Errorf("layers of a broken image: %q", left)
			}
		})
	}
	t.Run("down", func(t *testing.T) {
		e := harness.NewPrivate(t)
		port := e.FreePort()
		e.Fails(125, []string{"127.0.0.1:" + itoa(port), "refused"}, "pull", "127.0.0.1:"+itoa(port)+"/e2e/bb:1")
	})
	t.Run("not a reference", func(t *testing.T) {
		e := harness.NewPrivate(t)
		for _, bad := range []string{"", "UPPER/case", "a b", "x:y:z", "-x/y", "x@sha256:12"} {
			e.Fails(125, nil, "pull", "--", bad)
		}
	})
}

func TestBrokenArchives(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.tar")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, good); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(data)
	flipped[len(flipped)/2] ^= 0x10
	for name, content := range map[string][]byte{
		"cut":     data[:len(data)*2/3],
		"flipped": flipped,
		"empty":   nil,
		"text":    []byte("this is not an archive\n"),
		"zeroes":  make([]byte, 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.NewPrivate(t)
			path := filepath.Join(e.Dir(), "image.tar")
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
			e.Fails(125, []string{"sbx: "}, "load", "-i", path)
			if out := e.Must("images", "-q"); out != "" {
				t.Errorf("a broken archive left images: %q", out)
			}
		})
	}
	e := harness.NewPrivate(t)
	e.Fails(125, []string{"no such file"}, "load", "-i", "/no/such/file")
}

// TestHostileLayers: no entry of a layer leaves the root of its image.
func TestHostileLayers(t *testing.T) {
	base := build(t, harness.BB)
	for name, entries := range map[string][]tar.Header{
		"dot dot":         {{Typeflag: tar.TypeReg, Name: "../../../../../../../../../../../../../OUT/escape", Mode: 0o644}},
		"absolute":        {{Typeflag: tar.TypeReg, Name: "OUT/escape", Mode: 0o644}},
		"symlinked":       {{Typeflag: tar.TypeSymlink, Name: "evil", Linkname: "OUT"}, {Typeflag: tar.TypeReg, Name: "evil/escape", Mode: 0o644}},
		"relative link":   {{Typeflag: tar.TypeSymlink, Name: "evil", Linkname: "../../../../../../../../../../../../OUT"}, {Typeflag: tar.TypeReg, Name: "evil/escape", Mode: 0o644}},
		"hard link":       {{Typeflag: tar.TypeLink, Name: "stolen", Linkname: "OUT/secret"}},
		"hard link up":    {{Typeflag: tar.TypeLink, Name: "stolen", Linkname: "../../../../../../../../../../../OUT/secret"}},
		"whiteout beyond": {{Typeflag: tar.TypeSymlink, Name: "evil", Linkname: "OUT"}, {Typeflag: tar.TypeReg, Name: "evil/.wh.secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := harness.NewPrivate(t)
			out := filepath.Join(e.Dir(), "outside")
			if err := os.Mkdir(out, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(out, "secret"), []byte("secret\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			tw := tar.NewWriter(&buf)
			for _, h := range entries {
				h.Name = strings.ReplaceAll(h.Name, "OUT", out)
				h.Linkname = strings.ReplaceAll(h.Linkname, "OUT", out)
				if err := tw.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
			}
			if err := tw.Close(); err != nil {
				t.Fatal(err)
			}
			img, err := mutate.AppendLayers(base, static.NewLayer(buf.Bytes(), types.DockerUncompressedLayer))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(e.Dir(), "image.tar")
			if err := fixture.SaveDocker(img, "e2e/evil:1", path); err != nil {
				t.Fatal(err)
			}
			// Refused at load, refused at run, or kept inside: all are right.
			if r := e.Run("load", "-i", path); r.Code == 0 {
				if r := e.Run("run", "--rm", "e2e/evil:1", "sh", "-c", "cat /stolen 2>/dev/null; true"); strings.Contains(r.Stdout, "secret") {
					t.Errorf("the sandbox reads a file of the host: %v", r)
				} else if r.Code != 0 {
					r.Want(t, 125)
				}
			} else {
				r.Want(t, 125)
			}
			if names, err := os.ReadDir(out); err != nil || len(names) != 1 {
				t.Errorf("outside the image: %v %v", names, err)
			}
		})
	}
}

func TestUnknownLayerType(t *testing.T) {
	e := harness.NewPrivate(t)
	img, err := mutate.Append(build(t, harness.BB), mutate.Addendum{Layer: static.NewLayer([]byte("what is this?"), types.MediaType("application/x-unknown"))})
	if err != nil {
		t.Fatal(err)
	}
	reg := registry(t)
	ref, err := reg.Push(t.Context(), img, "e2e/odd:1")
	if err != nil {
		t.Fatal(err)
	}
	e.Fails(125, []string{"application/x-unknown"}, "pull", ref)
}

// TestFullDisk: unpacking onto a full disk says so and leaves nothing half done.
func TestFullDisk(t *testing.T) {
	e := harness.NewPrivate(t)
	path := filepath.Join(e.Dir(), "image.tar")
	if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(e.Data(), 0o755); err != nil {
		t.Fatal(err)
	}
	e.InNamespace("mount -t tmpfs -o size=4m tmpfs " + filepath.Dir(e.Data()))
	e.Fails(125, []string{"no space left"}, "load", "-i", path)
}

func TestDirectories(t *testing.T) {
	e := harness.New(t, harness.BB)
	t.Run("read-only home", func(t *testing.T) {
		e := harness.NewPrivate(t)
		home := filepath.Join(e.Dir(), "ro")
		if err := os.Mkdir(home, 0o555); err != nil {
			t.Fatal(err)
		}
		e.Setenv("HOME="+home, "XDG_DATA_HOME")
		e.Fails(125, []string{home, "XDG_DATA_HOME"}, "images")
	})
	t.Run("no XDG_RUNTIME_DIR", func(t *testing.T) {
		e := harness.New(t, harness.BB)
		e.Setenv("XDG_RUNTIME_DIR")
		if got := e.Must("run", "--rm", harness.BB, "echo", "ok"); got != "ok\n" {
			t.Errorf("%q", got)
		}
		// The stand-in below TMPDIR stays for the next sbx; it is removed once nobody uses it.
		harness.Eventually(t, 10*time.Second, func() error {
			if pids := e.Role("sbx-netd"); len(pids) > 0 {
				return fmt.Errorf("still there: %v", pids)
			}
			return nil
		})
		if err := os.RemoveAll(filepath.Join(e.Tmp, "sbx-"+itoa(os.Getuid()))); err != nil {
			t.Error(err)
		}
	})
	t.Run("XDG_RUNTIME_DIR is a symlink", func(t *testing.T) {
		e := e.In(t)
		link := filepath.Join(e.Dir(), "run-link")
		if err := os.Symlink(e.Runtime, link); err != nil {
			t.Fatal(err)
		}
		e.Setenv("XDG_RUNTIME_DIR=" + link)
		if got := e.Must("run", "--rm", harness.BB, "echo", "ok"); got != "ok\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("open to others", func(t *testing.T) {
		e := harness.NewPrivate(t)
		for _, dir := range []string{e.Data(), filepath.Join(e.Runtime, "sbx")} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o2777); err != nil { // for a group, and for all
				t.Fatal(err)
			}
			e.Must("images")
			if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("%s: %v %v", dir, st.Mode(), err)
			}
		}
	})
	t.Run("of another user", func(t *testing.T) {
		e := harness.NewPrivate(t)
		shared := filepath.Join(e.Dir(), "shared")
		if err := os.Mkdir(shared, 0o777|os.ModeSticky); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(shared, 0o777|os.ModeSticky); err != nil {
			t.Fatal(err)
		}
		mine := filepath.Join(e.Dir(), "mine")
		if err := os.Mkdir(mine, 0o755); err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct{ script, why string }{
			"directory":            {"mkdir -m 777 %s", "belongs to user"},
			"link to ours":         {"ln -s " + mine + " %s", "link made by user"},
			"link to a directory":  {"mkdir -m 777 there; ln -s there %s", "link made by user"},
			"link to what is none": {"ln -s nothing %s", "sbx"},
		} {
			dir := filepath.Join(shared, "sbx")
			asOther(t, shared, fmt.Sprintf(c.script, "sbx"))
			for _, variable := range []string{"XDG_DATA_HOME", "XDG_RUNTIME_DIR"} {
				old := e.Environ()
				e.Setenv(variable + "=" + shared)
				r := e.Fails(125, []string{dir, c.why, "set " + variable}, "images")
				if strings.Contains(r.Stderr, "permission denied") {
					t.Errorf("%s: says how, not why: %v", what, r)
				}
				e.Fails(1, nil, "doctor")
				e.Setenv(old...)
			}
			asOther(t, shared, "rm -rf sbx there")
		}
		if st, err := os.Stat(mine); err != nil || st.Mode().Perm() != 0o755 {
			t.Errorf("a directory of ours that another has linked to was changed: %v %v", st.Mode(), err)
		}
		// Who could put another directory in its place is told of.
		if err := os.Chmod(shared, 0o777); err != nil {
			t.Fatal(err)
		}
		e.Setenv("XDG_DATA_HOME=" + shared)
		if got := e.Must("doctor"); !strings.Contains(got, shared+" has mode 0777") || !strings.Contains(got, "chmod o-w "+shared) {
			t.Errorf("%s", got)
		}
	})
}

// asOther runs a script as one of our subordinate ids, which outside is a user like any.
func asOther(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("unshare", "--user", "--map-auto", "--map-root-user", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// nodes is a /dev without the named devices, as in a careful CI container.
func nodes(missing string) string {
	script := "mkdir $TMPDIR/dev; mount -t tmpfs tmpfs $TMPDIR/dev; cd $TMPDIR/dev; mkdir net pts shm;"
	for _, n := range []string{"null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun"} {
		if !strings.Contains(missing, n) {
			script += " touch " + n + "; mount --bind /dev/" + n + " " + n + ";"
		}
	}
	return script + " mount --rbind $TMPDIR/dev /dev; cd /; umount -l $TMPDIR/dev; rmdir $TMPDIR/dev"
}

// TestMissingDevices: sbx goes on with what there is.
func TestMissingDevices(t *testing.T) {
	for _, c := range []struct{ name, missing, flag, driver string }{
		{"no tun", "net/tun", "--link-driver", "tap"},
		{"no fuse", "fuse", "--storage-driver", "fuse"},
		{"neither", "net/tun fuse", "--link-driver", "tap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := harness.NewPrivate(t)
			path := filepath.Join(e.Dir(), "image.tar")
			if err := fixture.SaveDocker(build(t, harness.BB), harness.BB, path); err != nil {
				t.Fatal(err)
			}
			e.InNamespace(nodes(c.missing))
			e.Must("load", "-i", path)
			port := e.FreePort()
			p := e.Start("run", "--rm", "-p", "127.0.0.1:"+itoa(port)+":80", harness.BB, "/probe", "serve", "80")
			p.WaitGet("http://127.0.0.1:" + itoa(port) + "/")
			p.Stop()
			e.Fails(125, []string{c.driver}, "run", "--rm", c.flag, c.driver, harness.BB, "true")
		})
	}
}

// TestNoSubordinateIDs: without newuidmap the one id has to do.
func TestNoSubordinateIDs(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.InNamespaceAsUser("for f in /etc/subuid /etc/subgid /usr/bin/newuidmap /usr/bin/newgidmap; do mount --bind /dev/null $f; done")
	got := e.Must("run", "--rm", harness.BB, "awk", "{print $3}", "/proc/self/uid_map")
	if got != "1\n" {
		t.Errorf("%q", got)
	}
}

func TestUserNamespacesForbidden(t *testing.T) {
	e := harness.NewPrivate(t)
	e.InNamespace("echo 0 >/proc/sys/user/max_user_namespaces")
	e.Fails(125, []string{"user", "max_user_namespaces"}, "run", "--rm", "demo")
	if r := e.Run("doctor"); !strings.Contains(r.Stdout, "max_user_namespaces") {
		t.Errorf("%v", r)
	}
}
