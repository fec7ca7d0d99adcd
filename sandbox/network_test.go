package sandbox_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
)

func ports(t testing.TB, specs ...string) []portfwd.Spec {
	t.Helper()
	p, err := portfwd.ParsePublish(specs)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNetworkModes(t *testing.T) {
	w := newWorld(t)
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{sandbox.NetworkNone, sandbox.NetworkHost, sandbox.NetworkDefault, "bridge", ""} {
		cfg := w.config("sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net | wc -l; cat /etc/resolv.conf")
		cfg.Networks = sandbox.On(mode)
		out, stderr, st := w.output(cfg)
		lines := strings.SplitN(out, "\n", 3)
		if st.Code != 0 || len(lines) != 3 || (lines[0] == host) != (mode == sandbox.NetworkHost) {
			t.Errorf("%q: %+v %q %q", mode, st, out, stderr)
			continue
		}
		if net := mode != sandbox.NetworkNone && mode != sandbox.NetworkHost; net && (lines[1] != "2" || !strings.Contains(lines[2], "nameserver")) {
			t.Errorf("%q: %q", mode, out)
		}
	}
}

// A published port answers, also after the network's process was killed, and the
// process that a monitor starts then keeps nothing of that monitor's sandbox.
func TestPublish(t *testing.T) {
	w := newWorld(t)
	for _, tc := range [][2]string{{"native", ""}, {"fuse", "direct"}, {"native", "stack"}, {"native", "builtin"}} {
		storage := tc[0]
		cfg := w.config("sh", "-c", "echo hello >/work/index.html; echo ready; exec httpd -f -p 80 -h /work")
		cfg.Networks, cfg.StorageDriver, cfg.PortDriver = sandbox.On(sandbox.NetworkDefault), storage, tc[1]
		cfg.Publish = ports(t, "127.0.0.1::80")
		s, _ := w.startReady(cfg)
		got := s.Ports()
		if len(got) != 1 || got[0].Spec.ParentPort == 0 || len(s.Info().Networks) != 1 {
			t.Fatalf("%+v", s.Info())
		}
		addr := fmt.Sprintf("127.0.0.1:%d", got[0].Spec.ParentPort)
		answers(t, addr)
		old := find(os.Getpid(), "sbx-netd")
		kill(old...)
		dead(t, old...)
		answers(t, addr)
		fresh := find(os.Getpid(), "sbx-netd")
		if len(fresh) != 1 || fresh[0] == old[0] {
			t.Fatalf("netd %v, before %v", fresh, old)
		}
		caps, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", fresh[0]))
		// One is left, which counts for nothing: the host's network is not that user namespace's.
		if err != nil || !strings.Contains(string(caps), "CapPrm:\t0000000000000400") || !strings.Contains(string(caps), "NoNewPrivs:\t1") {
			t.Errorf("a netd that a monitor started has capabilities: %v\n%s", err, caps)
		}
		// Keeps it alive beyond the end of the sandbox that started it.
		other := w.config("sh", "-c", "echo ready; exec sleep 1000")
		other.Networks = sandbox.On(sandbox.NetworkDefault)
		o, _ := w.startReady(other)
		if err := s.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", fresh[0]))
		if err != nil || strings.Contains(string(mounts), filepath.Join(w.dir, "data/containers")) {
			t.Errorf("%s: netd keeps mounts of a sandbox: %v\n%s", storage, err, mounts)
		}
		if err := o.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("the port is still open")
		}
	}
}

func answers(t testing.TB, addr string) {
	t.Helper()
	var last string
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			last = err.Error()
			continue
		}
		c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		b, err := io.ReadAll(c)
		c.Close()
		if strings.HasSuffix(string(b), "hello\n") {
			return
		}
		last = fmt.Sprintf("%q, %v", b, err)
	}
	t.Fatalf("%s: %s", addr, last)
}

func TestPortInUse(t *testing.T) {
	w := newWorld(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cfg := cfgTrue(w)
	cfg.Publish = ports(t, ln.Addr().String()+":80")
	s := w.create(cfg)
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}
