package sandbox_test

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
)

func TestBadConfig(t *testing.T) {
	w := newWorld(t)
	for field, edits := range map[string][]func(*sandbox.Config){
		"image":             {func(c *sandbox.Config) { c.RootFS = "" }, func(c *sandbox.Config) { c.Image = "x" }},
		"rootfs":            {func(c *sandbox.Config) { c.RootFS = "/nonexistent" }, func(c *sandbox.Config) { c.RootFS = "/etc/passwd" }},
		"stop timeout":      {func(c *sandbox.Config) { c.StopTimeout = -1 }},
		"mtu":               {func(c *sandbox.Config) { c.MTU = 1 }, func(c *sandbox.Config) { c.MTU = 70000 }},
		"shm size":          {func(c *sandbox.Config) { c.ShmSize = -1 }},
		"pull policy":       {func(c *sandbox.Config) { c.Pull = "sometimes" }},
		"network":           {func(c *sandbox.Config) { c.Networks = sandbox.On(sandbox.NetworkDefault, sandbox.NetworkNone) }, func(c *sandbox.Config) { c.Networks = sandbox.On("", "bridge") }},
		"ip":                {func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{Addr4: netip.MustParseAddr("fd00::1")}} }},
		"ip6":               {func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{Addr6: netip.MustParseAddr("10.0.0.1")}} }},
		"mac address":       {func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}} }},
		"network alias":     {func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{Aliases: []string{"a b"}}} }, func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{Aliases: make([]string, 25)}} }},
		"gateway priority":  {func(c *sandbox.Config) { c.Networks = []sandbox.Attachment{{GatewayPriority: 101}} }},
		"link driver":       {func(c *sandbox.Config) { c.LinkDriver = "veth" }},
		"port driver":       {func(c *sandbox.Config) { c.PortDriver = "iptables" }},
		"storage driver":    {func(c *sandbox.Config) { c.StorageDriver = "btrfs" }},
		"user namespace":    {func(c *sandbox.Config) { c.UserNS = "host" }},
		"name":              {func(c *sandbox.Config) { c.Name = "../x" }, func(c *sandbox.Config) { c.Name = strings.Repeat("x", 129) }, func(c *sandbox.Config) { c.Name = "-a" }},
		"hostname":          {func(c *sandbox.Config) { c.Hostname = "a b" }, func(c *sandbox.Config) { c.Hostname = strings.Repeat("x", 65) }},
		"label":             {func(c *sandbox.Config) { c.Labels = map[string]string{"": "x"} }, func(c *sandbox.Config) { c.Labels = map[string]string{"x": strings.Repeat("x", 1<<20)} }},
		"platform":          {func(c *sandbox.Config) { c.Platform = "a/b/c/d" }},
		"working directory": {func(c *sandbox.Config) { c.WorkDir = "relative" }},
		"stop signal":       {func(c *sandbox.Config) { c.StopSignal = "SIGNOTHING" }},
		"environment":       {func(c *sandbox.Config) { c.Env = []string{"=x"} }, func(c *sandbox.Config) { c.Env = []string{"A=\x00"} }},
		"capability":        {func(c *sandbox.Config) { c.CapAdd = []string{"CAP_NONE"} }},
		"dns":               {func(c *sandbox.Config) { c.DNS = []string{"example.org"} }},
		"host":              {func(c *sandbox.Config) { c.AddHost = []string{"x"} }, func(c *sandbox.Config) { c.AddHost = []string{"x:host-gateway"} }},
		"host access":       {func(c *sandbox.Config) { c.HostAccess = []uint16{0} }},
		"published port":    {func(c *sandbox.Config) { c.Publish = []portfwd.Spec{{Spec: port.Spec{Proto: "sctp", ChildPort: 1}}} }, func(c *sandbox.Config) { c.Publish = []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ChildPort: 70000}}} }},
		"exposed port":      {func(c *sandbox.Config) { c.Expose = []string{"x"} }},
		"sysctl":            {func(c *sandbox.Config) { c.Sysctls = map[string]string{"vm.swappiness": "1"} }},
		"security option":   {func(c *sandbox.Config) { c.SecurityOpt = []string{"apparmor=x"} }, func(c *sandbox.Config) { c.SecurityOpt = []string{"nothing"} }},
		"mount": {
			func(c *sandbox.Config) { c.Mounts = []fsoverlay.Mount{{Type: "nfs", Target: "/x"}} },
			func(c *sandbox.Config) { c.Mounts = []fsoverlay.Mount{{Type: "tmpfs", Target: "x"}} },
			func(c *sandbox.Config) {
				c.Mounts = []fsoverlay.Mount{{Type: "tmpfs", Target: "/x"}, {Type: "tmpfs", Target: "/x/"}}
			},
			func(c *sandbox.Config) { c.Mounts = []fsoverlay.Mount{{Type: "bind", Source: "x", Target: "/x"}} },
			func(c *sandbox.Config) { c.Mounts = []fsoverlay.Mount{{Type: "volume", Source: "../x", Target: "/x"}} },
		},
	} {
		for i, edit := range edits {
			cfg := w.config("true")
			edit(&cfg)
			_, err := w.Create(t.Context(), cfg)
			var ce *sandbox.ConfigError
			if !errors.As(err, &ce) || ce.Field != field {
				t.Errorf("%s %d: %v", field, i, err)
			}
		}
	}
	cfg := w.config()
	if _, err := w.Create(t.Context(), cfg); err == nil || sandbox.FixOf(err) == "" {
		t.Errorf("no command: %v", err)
	}
	cfg = w.config("true")
	cfg.Mounts = []fsoverlay.Mount{{Type: "bind", Source: "/nonexistent/x", Target: "/x"}}
	if _, err := w.Create(t.Context(), cfg); err == nil {
		t.Error("a missing source of a bind mount")
	}
}

func TestBadOptions(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*sandbox.Options){
		"data is a file":     func(o *sandbox.Options) { o.DataDir = file },
		"data of another":    func(o *sandbox.Options) { o.DataDir = "/var/tmp" }, // where we may write
		"runtime is a file":  func(o *sandbox.Options) { o.RuntimeDir = file + "/x" },
		"runtime of another": func(o *sandbox.Options) { o.RuntimeDir = "/run" },
	} {
		o := w.opts
		edit(&o)
		_, err := sandbox.NewEngine(o)
		var de *sandbox.DirError
		if !errors.As(err, &de) {
			t.Errorf("%s: %v", name, err)
		}
	}
	o := w.opts
	o.InitPath = file
	if _, err := sandbox.NewEngine(o); err == nil {
		t.Error("an init binary that cannot be executed")
	}
}

// busyboxImage loads an image of the busybox root.
func (w *world) busyboxImage(ref string, platform v1.Platform) {
	w.Helper()
	root, err := rootfs()
	if err != nil {
		w.Fatal(err)
	}
	layer := filepath.Join(w.dir, "layer.tar")
	if out, err := exec.Command("tar", "-C", root, "--owner=0", "--group=0", "-cf", layer, ".").CombinedOutput(); err != nil {
		w.Fatalf("%v: %s", err, out)
	}
	l, err := tarball.LayerFromFile(layer)
	if err != nil {
		w.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		w.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		w.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = platform.OS, platform.Architecture
	cfg.Config = v1.Config{Entrypoint: []string{"sh", "-c"}, Cmd: []string{"echo $FROM; ls /v | wc -l"},
		Env: []string{"FROM=image", "PATH=/bin"}, Volumes: map[string]struct{}{"/v": {}}, Labels: map[string]string{"a": "b"}, StopSignal: "SIGUSR1"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		w.Fatal(err)
	}
	tag, err := name.NewTag(ref)
	if err != nil {
		w.Fatal(err)
	}
	file := filepath.Join(w.dir, "image.tar")
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		w.Fatal(err)
	}
	store, err := w.Images()
	if err == nil {
		_, err = store.Load(w.Context(), file, image.LoadOptions{})
	}
	if err != nil {
		w.Fatal(err)
	}
}

func TestImage(t *testing.T) {
	w := newWorld(t)
	host := image.DefaultPlatform()
	w.busyboxImage("test:one", v1.Platform{OS: host.OS, Architecture: host.Architecture})
	w.busyboxImage("test:foreign", v1.Platform{OS: "linux", Architecture: "s390x"})
	cfg := sandbox.Config{Image: "test:one", Networks: sandbox.On(sandbox.NetworkNone), Pull: sandbox.PullNever}
	if out, stderr, st := w.output(cfg); out != "image\n0\n" || st.Code != 0 {
		t.Errorf("%q %q %+v", out, stderr, st)
	}
	cfg.Cmd = []string{"echo ready; sleep 1000"}
	s, _ := w.startReady(cfg)
	if s.StopSignal().String() != "user defined signal 1" {
		t.Errorf("stop signal %v", s.StopSignal())
	}
	store, err := w.Images()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Remove(t.Context(), "test:one", false); !errors.Is(err, image.ErrInUse) {
		t.Errorf("image removed under a sandbox: %v", err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	// Of another platform than asked for.
	cfg.Platform = "linux/s390x"
	if _, err := w.Create(t.Context(), cfg); !errors.Is(err, image.ErrPlatform) {
		t.Errorf("platform: %v", err)
	}
	cfg.Image = "test:foreign"
	if s, err := w.Create(t.Context(), cfg); err != nil {
		t.Errorf("platform as asked for: %v", err)
	} else {
		s.Remove(t.Context())
	}
	cfg.Platform = ""
	if s, err := w.Create(t.Context(), cfg); err != nil || !strings.Contains(strings.Join(s.Notes(), " "), "s390x") {
		t.Errorf("another machine's image: %v", err)
	} else {
		s.Remove(t.Context())
	}
	cfg.Image = "nosuch:image"
	if _, err := w.Create(t.Context(), cfg); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("never pulled: %v", err)
	}
	for _, ref := range []string{"test:one", "test:foreign"} {
		if _, err := store.Remove(t.Context(), ref, true); err != nil {
			t.Error(err)
		}
	}
}

// Where user namespaces are forbidden, Diagnose says so and what to do.
func TestDiagnose(t *testing.T) {
	w := newWorld(t)
	run := func(cmd *exec.Cmd) sandbox.Report {
		t.Helper()
		cmd.Env = append(os.Environ(), roleEnv+"=diagnose")
		out, err := cmd.Output()
		var r sandbox.Report
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}
	if r := run(exec.Command("/proc/self/exe", w.opts.DataDir, w.opts.RuntimeDir)); !r.OK || len(r.Choices) < 3 {
		t.Errorf("%+v", r)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(w.opts.DataDir, "storage-auto.json"))
	r := run(exec.Command("unshare", "-Ur", "sh", "-c", `echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"`, "sh", exe, w.opts.DataDir, w.opts.RuntimeDir))
	if r.OK {
		t.Errorf("%+v", r)
	}
	found := false
	for _, c := range r.Checks {
		found = found || c.Fix != "" && strings.Contains(c.Detail+c.Fix, "max_user_namespaces")
	}
	if !found {
		t.Errorf("nothing about user.max_user_namespaces: %+v", r.Checks)
	}
}
