package workload

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"

	units "github.com/docker/go-units"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestMergeConfig(t *testing.T) {
	lookup := func(k string) (string, bool) {
		v, ok := map[string]string{"FROM_HOST": "h", "EMPTY": ""}[k]
		return v, ok
	}
	img := v1.Config{
		Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "-v"}, User: "app:app", WorkingDir: "/srv",
		Env:        []string{"PATH=/img/bin:/bin", "LANG=C", "COLOR=red"},
		StopSignal: "SIGQUIT", Labels: map[string]string{"a": "1", "b": "1"},
		Volumes:      map[string]struct{}{"/data/": {}, "/cache": {}, "/data": {}, "/": {}},
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/UDP": {}, "81": {}},
	}
	plain := []string{"PATH=/img/bin:/bin", "LANG=C", "COLOR=red"}
	tests := []struct {
		name string
		img  v1.Config
		o    Overrides
		want Process
	}{
		{"image alone", img, Overrides{}, Process{Args: []string{"/entry", "serve", "-v"}, Env: plain, Cwd: "/srv", User: "app:app",
			StopSignal: syscall.SIGQUIT, Volumes: []string{"/cache", "/data"}, ExposedPorts: []string{"53/udp", "80/tcp", "81/tcp"}, Labels: map[string]string{"a": "1", "b": "1"}}},
		{"cmd", img, Overrides{Cmd: []string{"sh"}}, Process{Args: []string{"/entry", "sh"}}},
		{"entrypoint clears cmd", img, Overrides{Entrypoint: []string{"/bin/sh"}}, Process{Args: []string{"/bin/sh"}}},
		{"entrypoint and cmd", img, Overrides{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "x"}}, Process{Args: []string{"/bin/sh", "-c", "x"}}},
		{"cleared entrypoint", img, Overrides{Entrypoint: []string{}, Cmd: []string{"ls"}}, Process{Args: []string{"ls"}}},
		{"entrypoint of one empty string", img, Overrides{Entrypoint: []string{""}, Cmd: []string{"ls"}}, Process{Args: []string{"ls"}}},
		{"empty image", v1.Config{}, Overrides{Cmd: []string{"ls"}, Hostname: "box", TTY: true}, Process{Args: []string{"ls"}, Cwd: "/",
			Env: []string{"PATH=" + DefaultPath, "HOSTNAME=box", "TERM=xterm"}, StopSignal: syscall.SIGTERM, Labels: map[string]string{}}},
		{"environment", img, Overrides{TTY: true, LookupEnv: lookup, Env: []string{"COLOR=blue", "NEW=a=b", "FROM_HOST", "EMPTY", "LANG", "NEW=c", "TERM=vt100"}},
			Process{Env: []string{"PATH=/img/bin:/bin", "TERM=vt100", "COLOR=blue", "NEW=c", "FROM_HOST=h", "EMPTY="}}},
		{"name alone without an environment", img, Overrides{Env: []string{"COLOR"}}, Process{Env: []string{"PATH=/img/bin:/bin", "LANG=C"}}},
		{"the rest", img, Overrides{WorkDir: "/a/../b", User: "0", StopSignal: "9", Expose: []string{"80", "90/udp"}, Labels: map[string]string{"b": "2"}},
			Process{Cwd: "/b", User: "0", StopSignal: 9, ExposedPorts: []string{"53/udp", "80/tcp", "81/tcp", "90/udp"}, Labels: map[string]string{"a": "1", "b": "2"}}},
		{"relative WORKDIR of an image", v1.Config{Cmd: []string{"a"}, WorkingDir: "../srv"}, Overrides{}, Process{Cwd: "/srv"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := MergeConfig(tt.img, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			g, w := reflect.ValueOf(*got), reflect.ValueOf(tt.want)
			for i := range w.NumField() {
				if !w.Field(i).IsZero() && !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
					t.Errorf("%s = %q, want %q", w.Type().Field(i).Name, g.Field(i), w.Field(i))
				}
			}
		})
	}
	if img.Env[2] != "COLOR=red" || len(img.Env) != 3 {
		t.Error("the image's configuration was changed")
	}
	for name, o := range map[string]Overrides{
		"no command specified": {Entrypoint: []string{}},
		"absolute path":        {WorkDir: "srv"},
		"invalid signal":       {StopSignal: "SIGFOO"},
		"NUL":                  {Cmd: []string{"a\x00"}},
	} {
		if _, err := MergeConfig(img, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%+v: %v, want %q", o, err, name)
		}
	}
}

func TestParseEnvFile(t *testing.T) {
	lookup := func(k string) (string, bool) { return "host " + k, k == "HOME" }
	got, err := ParseEnvFile(strings.NewReader("\ufeffA=1\n\n  # comment\n\tB=\"q\" $A # no comment\nHOME\nMISSING\nC=\nD= x \r\nE=a=b"), "f", lookup)
	want := []string{"A=1", `B="q" $A # no comment`, "HOME=host HOME", "C=", "D= x ", "E=a=b"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	for text, msg := range map[string]string{
		"A=1\n=x":                         `f line 2: no variable name`,
		"A B=1":                           `f line 1: variable name "A B" contains white space`,
		"#\n#\nA=\xff":                    "f line 3: invalid UTF-8",
		"A=\x00":                          "NUL",
		"A=" + strings.Repeat("x", 300e3): "f line 1: longer",
	} {
		if _, err := ParseEnvFile(strings.NewReader(text), "f", nil); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%.20q: %v, want %q", text, err, msg)
		}
	}
	if got, err := ParseLabelFile(strings.NewReader("a\nb=c"), "f"); err != nil || !reflect.DeepEqual(got, []string{"a=", "b=c"}) {
		t.Errorf("labels: %q, %v", got, err)
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add("A=1\n# x\nB\n")
	f.Add("\ufeff =")
	f.Fuzz(func(t *testing.T, text string) {
		env, err := ParseEnvFile(strings.NewReader(text), "f", func(string) (string, bool) { return "v", true })
		if err != nil {
			return
		}
		for _, kv := range env {
			k, _, ok := strings.Cut(kv, "=")
			if !ok || k == "" || strings.ContainsAny(k, " \t\n\x00") {
				t.Fatalf("%q from %q", kv, text)
			}
		}
	})
}

func TestParseCapabilities(t *testing.T) {
	def, err := ParseCapabilities(nil, nil)
	if err != nil || len(def) != 14 || def[0] != "CAP_AUDIT_WRITE" {
		t.Fatalf("default: %v, %v", def, err)
	}
	all, err := ParseCapabilities([]string{"ALL"}, nil)
	if err != nil || len(all) != 41 {
		t.Fatalf("all: %d, %v", len(all), err)
	}
	for _, tt := range []struct {
		add, drop, want []string
	}{
		{nil, []string{"ALL"}, []string{}},
		{[]string{"net_admin"}, []string{"all"}, []string{"CAP_NET_ADMIN"}},
		{[]string{"cap_Sys_Admin", "CHOWN"}, []string{"ALL", "chown"}, []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}},
		{[]string{"CHOWN"}, []string{"CHOWN"}, def}, // add wins, as in Docker
	} {
		got, err := ParseCapabilities(tt.add, tt.drop)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("+%v -%v: %v, %v, want %v", tt.add, tt.drop, got, err, tt.want)
		}
	}
	if got, err := ParseCapabilities([]string{"ALL"}, []string{"SYS_TIME"}); err != nil || len(got) != 40 {
		t.Errorf("all but one: %v, %v", got, err)
	}
	for _, bad := range []string{"", "CAP_", "CAP_CAP_CHOWN", "NONE"} {
		if _, err := ParseCapabilities(nil, []string{bad}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseSecurityOpts(t *testing.T) {
	read := func(name string) ([]byte, error) {
		switch name {
		case "good.json":
			return []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), nil
		case "bad.json":
			return []byte(`{"defaultAction":"NO"}`), nil
		case "empty.json":
			return []byte("\n"), nil
		}
		return nil, fs.ErrNotExist
	}
	got, err := ParseSecurityOpts([]string{"no-new-privileges", "seccomp=good.json", "apparmor=unconfined", "label:disable", "systempaths=unconfined"}, read)
	if err != nil || !reflect.DeepEqual(*got, SecurityOpts{true, `{"defaultAction":"SCMP_ACT_ALLOW"}`, true}) {
		t.Errorf("%+v, %v", got, err)
	}
	for opt, want := range map[string]SecurityOpts{
		"no-new-privileges=false": {}, "no-new-privileges:true": {NoNewPrivs: true},
		"seccomp=unconfined": {Seccomp: "unconfined"}, "seccomp:builtin": {},
	} {
		if got, err := ParseSecurityOpts([]string{opt}, read); err != nil || *got != want {
			t.Errorf("%s: %+v, %v", opt, got, err)
		}
	}
	for opt, msg := range map[string]string{
		"no-new-privileges=maybe": "neither", "seccomp": "value is missing", "seccomp=none.json": "read the seccomp profile", "seccomp=bad.json": `"NO"`,
		"seccomp=empty.json": "is empty", "apparmor=docker-default": "AppArmor", "label=type:x": "SELinux", "systempaths=x": "invalid value", "magic=on": "no such option",
	} {
		if _, err := ParseSecurityOpts([]string{opt}, read); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%s: %v, want %q", opt, err, msg)
		}
	}
	if _, err := ParseSecurityOpts([]string{"seccomp=none.json"}, read); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestParseSysctl(t *testing.T) {
	for s, want := range map[string][2]string{
		"net.ipv4.ip_forward=1":                    {"net.ipv4.ip_forward", "1"},
		"net/ipv4/conf/eth0.100/forwarding=1":      {"net/ipv4/conf/eth0.100/forwarding", "1"},
		"kernel.sem=250 32000 100 128":             {"kernel.sem", "250 32000 100 128"},
		"fs.mqueue.msg_max=20":                     {"fs.mqueue.msg_max", "20"},
		" kernel/shmmax = 18446744073692774399 ":   {"kernel/shmmax", "18446744073692774399"},
		"net.ipv4.tcp_congestion_control=a=b":      {"net.ipv4.tcp_congestion_control", "a=b"},
		"net.ipv4.ip_local_port_range=1024\t65535": {"net.ipv4.ip_local_port_range", "1024\t65535"},
	} {
		if n, v, err := ParseSysctl(s, false); err != nil || n != want[0] || v != want[1] {
			t.Errorf("%q: %q %q %v", s, n, v, err)
		}
	}
	for s, msg := range map[string]string{
		"net.ipv4.ip_forward": "invalid sysctl", "=1": "invalid sysctl", "kernel.hostname=a": "not allowed", "kernel.domainname=a": "does not belong",
		"vm.swappiness=1": "does not belong", "kernel.core_pattern=|/x": "does not belong", "net=1": "does not belong", "netx.a=1": "does not belong",
		"net.ipv4.ip_forward=": "empty", "net.a=1\n2": "control", "net../../kernel/core_pattern=1": "invalid sysctl name", "net/../kernel/core_pattern=1": "invalid sysctl name",
		"net.a b=1": "invalid sysctl name", "kernel.shmmax.x=1": "does not belong", "net.x=" + strings.Repeat("1", 5000): "too long",
	} {
		if _, _, err := ParseSysctl(s, false); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%.40q: %v, want %q", s, err, msg)
		}
	}
	if _, _, err := ParseSysctl("net.core.somaxconn=1", true); err == nil || !strings.Contains(err.Error(), "host's network") {
		t.Error(err)
	}
	if _, _, err := ParseSysctl("kernel.shmmax=1", true); err != nil {
		t.Error(err)
	}
}

func FuzzSysctlFile(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/100.x")
	f.Add("net/../x")
	f.Fuzz(func(t *testing.T, name string) {
		file, err := sysctlFile(name)
		if err == nil && !fs.ValidPath(file) {
			t.Fatalf("%q gives %q", name, file)
		}
	})
}

func TestParseUlimit(t *testing.T) {
	for s, want := range map[string]units.Ulimit{
		"nofile=1024:2048": {Name: "nofile", Soft: 1024, Hard: 2048}, "core=0": {Name: "core"}, "memlock=-1": {Name: "memlock", Soft: -1, Hard: -1},
	} {
		if got, err := ParseUlimit(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "nofile", "nofile=", "files=1", "nofile=2:1", "nofile=1:2:3", "nofile=-5", "nofile=x"} {
		if _, err := ParseUlimit(s); err == nil || !strings.Contains(err.Error(), "invalid ulimit") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{"TERM": 15, "SIGKILL": 9, "hup": 1, "sigusr1": 10, "15": 15, "RTMIN": 34, "RTMIN+3": 37, "SIGRTMAX": 64, "RTMAX-1": 63, " INT ": 2} {
		if got, err := ParseSignal(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0", "-1", "65", "SIGFOO", "RTMIN+99", "SIG"} {
		if got, err := ParseSignal(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestParseLabelAndEnv(t *testing.T) {
	if k, v, err := ParseLabel("a.b=c=d"); k != "a.b" || v != "c=d" || err != nil {
		t.Error(k, v, err)
	}
	if k, v, err := ParseLabel("a"); k != "a" || v != "" || err != nil {
		t.Error(k, v, err)
	}
	for _, s := range []string{"", "=x", "a b=c"} {
		if _, _, err := ParseLabel(s); err == nil {
			t.Errorf("label %q was accepted", s)
		}
	}
	for s, ok := range map[string]bool{"A=1": true, "A": true, "A=": true, "": false, "=1": false, "A=\x00": false} {
		if _, err := ParseEnv(s); (err == nil) != ok {
			t.Errorf("env %q: %v", s, err)
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	hexID := regexp.MustCompile(`^[0-9a-f]{64}$`)
	name := regexp.MustCompile(`^[a-z]+_[a-z]+[0-9]?$`)
	for i := range 2000 {
		id := NewID()
		if !hexID.MatchString(id) || seen[id] || regexp.MustCompile(`^[0-9]{12}`).MatchString(id) {
			t.Fatal(id)
		}
		seen[id] = true
		if n := RandomName(i % 2); !name.MatchString(n) || (i%2 == 1) != (n[len(n)-1] <= '9') {
			t.Fatal(n)
		}
	}
}

func TestApplySysctls(t *testing.T) {
	root := newRoot(t)
	out := mustRun(t, setup{Root: root, Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "123456", "net/core/somaxconn": "77", "fs.mqueue.msg_max": "9"},
		Spec: Spec{Args: []string{"/bin/cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/shmmax", "/proc/sys/net/core/somaxconn", "/proc/sys/fs/mqueue/msg_max"}}})
	if out != "1\n123456\n77\n9\n" {
		t.Errorf("%q", out)
	}
	for name, msg := range map[string]string{"net.ipv4.nonesuch": "no such setting", "vm.swappiness": "not allowed"} {
		r := run(t, setup{Root: root, Sysctls: map[string]string{name: "1"}, Spec: Spec{Args: []string{"true"}}})
		if r.err == nil || !strings.Contains(explain(r.err), msg) {
			t.Errorf("%s: %v", name, r.err)
		}
	}
	r := run(t, setup{Root: root, Sysctls: map[string]string{"net.ipv4.ip_forward": "many"}, Spec: Spec{Args: []string{"true"}}})
	if !errors.Is(r.err, syscall.EINVAL) {
		t.Error(r.err)
	}
}
