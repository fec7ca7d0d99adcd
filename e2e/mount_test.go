package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

var storageDrivers = []string{"native", "fuse", "copy"}

// TestImageTree: what the layers say is what the sandbox sees, with every driver.
func TestImageTree(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range storageDrivers {
		t.Run(driver, func(t *testing.T) {
			e := e.In(t)
			script := strings.Join([]string{
				"cd /data",
				"test ! -e gone && echo whiteout",
				"cat changed", "stat -c %a changed",
				"ls opaque",
				"cat file-to-dir/inside", "cat dir-to-file",
				"stat -c %h first",
				"for l in link dangling absolute; do readlink $l; done",
				"stat -c '%u %g %a' owned",
				"test -p fifo && echo fifo",
				"ls | grep -c newline",
				"stat -c %a /suid-probe",
				"stat -c %a /tmp",
			}, "\n")
			want := "whiteout\nafter\n600\nnew\nnow a directory\nnow a file\n2\nkeep\n/nowhere\n/etc/passwd\n1000 2000 600\nfifo\n1\n4755\n1777\n"
			got := e.Must("run", "--rm", "--storage-driver", driver, harness.BB, "sh", "-c", script)
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// TestWritableLayer: what one sandbox writes, no other sees.
func TestWritableLayer(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range storageDrivers {
		t.Run(driver, func(t *testing.T) {
			e := e.In(t)
			args := []string{"run", "--rm", "--storage-driver", driver, harness.BB, "sh", "-c"}
			got := e.Must(append(args, "echo x >/data/keep; rm /data/changed; mkdir -p /data/opaque/sub; mv /data/first /data/third; chown 5:6 /data/owned; cat /data/keep; ls /data/third")...)
			if got != "x\n/data/third\n" {
				t.Errorf("%q", got)
			}
			if got := e.Must(append(args, "cat /data/keep /data/changed; ls /data/opaque; stat -c %u /data/owned")...); got != "keep\nafter\nnew\n1000\n" {
				t.Errorf("the image changed: %q", got)
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range storageDrivers {
		r := e.Run("run", "--rm", "--storage-driver", driver, "--read-only", "--tmpfs", "/scratch:size=1m,mode=1777", harness.BB, "sh", "-c",
			"echo x >/data/keep && exit 9; rm /data/keep && exit 9; echo ok >/scratch/f && cat /scratch/f && stat -c %a /scratch && echo y >/dev/shm/f && dd if=/dev/zero of=/scratch/big bs=1M count=3 2>/dev/null && exit 9; exit 0")
		if r.Code != 0 || r.Stdout != "ok\n1777\n" || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("%s: %v", driver, r)
		}
	}
}

func TestVolumes(t *testing.T) {
	e := harness.New(t, harness.BB)
	host := filepath.Join(e.Dir(), "host")
	if err := os.MkdirAll(filepath.Join(host, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("bind", func(t *testing.T) {
		e := e.In(t)
		if got := e.Must("run", "--rm", "-v", host+":/mnt", harness.BB, "sh", "-c", "cat /mnt/file; echo back >/mnt/new; stat -c %u /mnt/file"); got != "from the host\n0\n" {
			t.Errorf("%q", got)
		}
		if data, err := os.ReadFile(filepath.Join(host, "new")); err != nil || string(data) != "back\n" {
			t.Errorf("%q %v", data, err)
		}
	})
	for _, flag := range [][]string{{"-v", host + ":/mnt:ro"}, {"--mount", "type=bind,source=" + host + ",target=/mnt,readonly"}} {
		r := e.Run(append(append([]string{"run", "--rm"}, flag...), harness.BB, "sh", "-c", "cat /mnt/file; touch /mnt/x")...)
		if r.Code != 1 || r.Stdout != "from the host\n" || !strings.Contains(r.Stderr, "Read-only") {
			t.Errorf("%v: %v", flag, r)
		}
	}
	t.Run("bind a file", func(t *testing.T) {
		e := e.In(t)
		if got := e.Must("run", "--rm", "-v", filepath.Join(host, "file")+":/etc/new/file:ro", harness.BB, "cat", "/etc/new/file"); got != "from the host\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("named volume keeps and is filled from the image", func(t *testing.T) {
		e := e.In(t)
		vol := "e2e-" + filepath.Base(e.Dir())
		if got := e.Must("run", "--rm", "-v", vol+":/data", harness.BB, "sh", "-c", "cat /data/keep; echo kept >/data/keep"); got != "keep\n" {
			t.Errorf("%q", got)
		}
		if got := e.Must("run", "--rm", "-v", vol+":/elsewhere", harness.BB, "cat", "/elsewhere/keep"); got != "kept\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("tmpfs", func(t *testing.T) {
		e := e.In(t)
		if got := e.Must("run", "--rm", "--mount", "type=tmpfs,target=/t,tmpfs-size=1m", harness.BB, "sh", "-c", "grep ' /t ' /proc/mounts | cut -d' ' -f3"); got != "tmpfs\n" {
			t.Errorf("%q", got)
		}
	})
	e.Fails(125, []string{"/no/such/dir"}, "run", "--rm", "--mount", "type=bind,source=/no/such/dir,target=/x", harness.BB, "true")
	e.Fails(125, []string{"volume"}, "run", "--rm", "-v", "a:b:c:d", harness.BB, "true")
	e.Fails(125, []string{"mount"}, "run", "--rm", "--mount", "type=bogus,target=/x", harness.BB, "true")
	e.Fails(125, []string{"mount"}, "run", "--rm", "--mount", "type=bind,source=/tmp", harness.BB, "true")
}

func TestUserNamespaceModes(t *testing.T) {
	e := harness.New(t, harness.BB)
	for mode, want := range map[string]string{"auto": "65537", "single": "1"} {
		got := e.Must("run", "--rm", "--userns", mode, harness.BB, "awk", "{n+=$3} END{print n}", "/proc/self/uid_map")
		if strings.TrimSpace(got) != want {
			t.Errorf("%s: %q ids, want %s", mode, got, want)
		}
	}
	host := e.Home
	got := e.Must("run", "--rm", "--userns", "keep-id", "-v", host+":/home/me", harness.BB, "sh", "-c", "id -u; stat -c %u /home/me")
	lines := strings.Fields(got)
	if len(lines) != 2 || lines[0] != lines[1] || lines[0] == "0" {
		t.Errorf("keep-id: %q", got)
	}
	e.Fails(125, []string{"bogus"}, "run", "--rm", "--userns", "bogus", harness.BB, "true")
}

// TestSingleID: without subordinate ids an image still runs, setuid bits, foreign
// owners and all.
func TestSingleID(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range storageDrivers {
		if got := e.Must("run", "--rm", "--userns", "single", "--storage-driver", driver, harness.BB, "sh", "-c", "cat /data/owned /data/keep; id -u; echo x >/data/new; ls /data/opaque"); got != "owned\nkeep\n0\nnew\n" {
			t.Errorf("%s: %q", driver, got)
		}
	}
}
