package fsoverlay

import (
	"errors"
	"reflect"
	"strings"
	"testing"
)

func TestParseVolume(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Mount
		err  string
	}{
		{"/data", Mount{Type: TypeVolume, Target: "/data", Anonymous: true}, ""},
		{"/data/:ro", Mount{Type: TypeVolume, Target: "/data", Anonymous: true, ReadOnly: true}, ""},
		{"db:/var/lib/db", Mount{Type: TypeVolume, Source: "db", Target: "/var/lib/db"}, ""},
		{"db:/db:ro,nocopy", Mount{Type: TypeVolume, Source: "db", Target: "/db", ReadOnly: true, NoCopy: true}, ""},
		{"/src:/dst", Mount{Type: TypeBind, Source: "/src", Target: "/dst", CreateSource: true}, ""},
		{"/src//x/..:/dst/./y:z,ro", Mount{Type: TypeBind, Source: "/src", Target: "/dst/y", CreateSource: true, ReadOnly: true}, ""},
		{"./rel:/dst:Z", Mount{Type: TypeBind, Source: "/cwd/rel", Target: "/dst", CreateSource: true}, ""},
		{".:/dst", Mount{Type: TypeBind, Source: "/cwd", Target: "/dst", CreateSource: true}, ""},
		{"../x:/dst:rslave,rw", Mount{Type: TypeBind, Source: "/x", Target: "/dst", CreateSource: true, Propagation: "rslave"}, ""},
		{"/src:/dst:allow=read+write+create,Z", Mount{Type: TypeBind, Source: "/src", Target: "/dst", CreateSource: true, Allow: MayRead | MayWrite | MayCreate}, ""},
		{"/src:/dst:ro,allow=exec+read", Mount{Type: TypeBind, Source: "/src", Target: "/dst", CreateSource: true, ReadOnly: true, Allow: MayRead | MayExec}, ""},
		{"db:/dst:allow=remove", Mount{Type: TypeVolume, Source: "db", Target: "/dst", Allow: MayRemove}, ""},
		{"/dst:allow=read", Mount{Type: TypeVolume, Target: "/dst", Anonymous: true, Allow: MayRead}, ""},
		{"/dst:allow=reed", Mount{}, `unknown word "reed" in allow=; use words of read+write+`},
		{"db:/dst:allow=", Mount{}, `unknown word ""`},
		{"db:/dst:allow=read,allow=write", Mount{}, "twice"},
		{"db:/dst:allow", Mount{}, `unknown option "allow"`},
		{"db:/dst:ro,allow=read+write+mkdir", Mount{}, "read-only and allow=write+mkdir contradict each other"},
		{"db:/proc/stat:allow=read", Mount{}, "outside /proc"},
		{"", Mount{}, "empty part"},
		{":/dst", Mount{}, "empty part"},
		{"/src:", Mount{}, "empty part"},
		{"a/b:/dst", Mount{}, "volume name"},
		{"db:relative", Mount{}, "absolute"},
		{"db:/", Mount{}, "root directory"},
		{"db:/x/..", Mount{}, "root directory"},
		{"db:/x:rw,ro", Mount{}, "twice"},
		{"db:/x:private", Mount{}, "host paths"},
		{"/a:/b:private,rslave", Mount{}, "twice"},
		{"/a:/b:nocopy", Mount{}, "for volumes"},
		{"/a:/b:frob", Mount{}, `unknown option "frob"`},
		{"/a:/b:ro:rw", Mount{}, "colons"},
		{"/a:/b\x00", Mount{}, "NUL"},
		{"/a:/" + strings.Repeat("x", 5000), Mount{}, "too long"},
	} {
		check(t, c.in, c.want, c.err)(ParseVolume(c.in, "/cwd"))
	}
}

func check(t *testing.T, in string, want Mount, wantErr string) func(Mount, error) {
	t.Helper()
	return func(got Mount, err error) {
		t.Helper()
		if wantErr != "" {
			var pe *ParseError
			if !errors.As(err, &pe) || !strings.Contains(pe.Msg, wantErr) {
				t.Errorf("%.40q: %v; want %q", in, err, wantErr)
			}
			return
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%.40q: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Mount
		err  string
	}{
		{"type=bind,source=/a:b,target=/t", Mount{Type: TypeBind, Source: "/a:b", Target: "/t"}, ""},
		{`type=bind,"src=/a,b",dst=/t,ro`, Mount{Type: TypeBind, Source: "/a,b", Target: "/t", ReadOnly: true}, ""},
		{"type=bind,src=rel,destination=/t,readonly=false", Mount{Type: TypeBind, Source: "/cwd/rel", Target: "/t"}, ""},
		{"type=bind,src=/a,dst=/t,bind-propagation=rshared,bind-recursive=disabled",
			Mount{Type: TypeBind, Source: "/a", Target: "/t", Propagation: "rshared", NonRecursive: true}, ""},
		{"type=bind,src=/a,dst=/t,ro,bind-recursive=writable", Mount{Type: TypeBind, Source: "/a", Target: "/t", ReadOnly: true, SubmountsWritable: true}, ""},
		{"dst=/t", Mount{Type: TypeVolume, Target: "/t", Anonymous: true}, ""},
		{"src=db,dst=/t,volume-nocopy,volume-label=a=b,volume-label=c,volume-subpath=x/y",
			Mount{Type: TypeVolume, Source: "db", Target: "/t", NoCopy: true, Labels: map[string]string{"a": "b", "c": ""}, Subpath: "x/y"}, ""},
		{"type=tmpfs,dst=/t,tmpfs-size=64m,tmpfs-mode=1700",
			Mount{Type: TypeTmpfs, Target: "/t", Attrs: tmpfsAttrs, Size: 64 << 20, Mode: 0o1700, ModeSet: true}, ""},
		{"type=bind,src=/a,dst=/t,allow=write+special+symlink+remove+exec+read", Mount{Type: TypeBind, Source: "/a", Target: "/t",
			Allow: MayRead | MayWrite | MaySpecial | MaySymlink | MayRemove | MayExec}, ""},
		{"allow=mkdir,src=db,dst=/t", Mount{Type: TypeVolume, Source: "db", Target: "/t", Allow: MayMkdir}, ""},
		{"type=bind,src=/a,dst=/t,allow", Mount{}, "allow wants a value"},
		{"type=bind,src=/a,dst=/t,allow=", Mount{}, "allow wants a value"},
		{"type=bind,src=/a,dst=/t,allow=read+", Mount{}, `unknown word ""`},
		{"type=bind,src=/a,dst=/t,allow=all", Mount{}, `unknown word "all"`},
		{"type=bind,src=/a,dst=/t,allow=exec+write", Mount{}, "needs read"},
		{"type=tmpfs,dst=/t,allow=read", Mount{}, "bind mounts and volumes"},
		{"type=bind,src=/a,dst=/t,ro,bind-recursive=writable,allow=read", Mount{}, "leave bind-recursive=writable out"},
		{"", Mount{}, "not comma-separated"},
		{"type=bind,src=/a", Mount{}, "target is missing"},
		{"type=bind,dst=/t", Mount{}, "source is missing"},
		{"type=tmpfs,src=/a,dst=/t", Mount{}, "no source"},
		{"type=image,dst=/t", Mount{}, "unknown type"},
		{"type=bind,src=/a,dst=/t,tmpfs-size=1", Mount{}, "type=tmpfs"},
		{"type=bind,src=/a,dst=/t,dst=/u", Mount{}, "twice"},
		{"type=bind,src=/a,dst=/t,frob=1", Mount{}, "unknown key"},
		{"type=bind,src=/a,dst=/t,ro=maybe", Mount{}, "true or false"},
		{"type=bind,src=/a,dst=/t,bind-recursive=writable", Mount{}, "read-only"},
		{"type=volume,src=a/b,dst=/t", Mount{}, "volume name"},
		{"type=tmpfs,dst=/t,tmpfs-mode=9", Mount{}, "octal"},
		{"type=tmpfs,dst=/t\ntype=bind", Mount{}, "one line"},
		{"src=db,dst=/t,volume-driver=nfs", Mount{}, "local"},
	} {
		check(t, c.in, c.want, c.err)(ParseMount(c.in, "/cwd"))
	}
}

func TestParseTmpfs(t *testing.T) {
	for _, c := range []struct {
		in   string
		want Mount
		err  string
	}{
		{"/run", Mount{Type: TypeTmpfs, Target: "/run", Attrs: tmpfsAttrs}, ""},
		{"/run:rw,exec,size=64k,mode=1777,uid=5,nr_inodes=1k", Mount{Type: TypeTmpfs, Target: "/run", Attrs: NoSuid | NoDev,
			Size: 64 << 10, Mode: 0o1777, ModeSet: true, Options: []string{"uid=5", "nr_inodes=1k"}}, ""},
		{"/run:ro,size=50%", Mount{Type: TypeTmpfs, Target: "/run", Attrs: tmpfsAttrs, ReadOnly: true, Options: []string{"size=50%"}}, ""},
		{"run", Mount{}, "absolute"},
		{"/", Mount{}, "root directory"},
		{"/run:frob", Mount{}, "unknown option"},
		{"/run:size=x", Mount{}, "number of bytes"},
		{"/run:size=101%", Mount{}, "100%"},
		{"/run:uid=-1", Mount{}, "not a number"},
		{"/run:huge=yes", Mount{}, "huge"},
		{"/run:mpol=bind", Mount{}, "unknown option"},
	} {
		check(t, c.in, c.want, c.err)(ParseTmpfs(c.in))
		if c.err != "" {
			continue
		}
		text := c.want.Target + ":" + c.want.TmpfsOptions()
		check(t, text, c.want, "")(ParseTmpfs(text))
	}
	m := Mount{Type: TypeTmpfs, Attrs: NoSuid | StrictAtime, ReadOnly: true, Size: 1 << 10, Mode: 0o700, ModeSet: true, Options: []string{"uid=5"}}
	if got := m.TmpfsOptions(); got != "ro,dev,exec,strictatime,size=1024,mode=700,uid=5" {
		t.Errorf("%q", got)
	}
}

// What a parser accepts must make a plan.
func fuzzPlan(t *testing.T, m Mount, err error) {
	if err != nil {
		var pe *ParseError
		if !errors.As(err, &pe) || pe.Msg == "" {
			t.Fatalf("%v", err)
		}
		return
	}
	m.DataDir = "/vol"
	if m.Type == TypeBind && !strings.HasPrefix(m.Source, "/") {
		t.Fatalf("source %q", m.Source)
	}
	p, err := BuildPlan(PlanConfig{Root: "/root", Mounts: []Mount{m}})
	if strings.HasPrefix(m.Target+"/", "/proc/") {
		return
	}
	if err != nil {
		t.Fatalf("%+v: %v", m, err)
	}
	for _, op := range p {
		if strings.ContainsRune(op.Target+op.Source, 0) || strings.Contains(op.Target, "/../") {
			t.Fatalf("%+v", op)
		}
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/a", "a1:/b:ro", "./x:/y:z,rslave", "/a:ro", "::", "a:b:c:d", "/a:/b:allow=read+write+create,ro"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseVolume(s, "/cwd")
		fuzzPlan(t, m, err)
	})
}

func FuzzParseMount(f *testing.F) {
	for _, s := range []string{"type=bind,src=/a,dst=/b", `"dst=/a""b",ro`, "type=tmpfs,dst=/x,tmpfs-size=1g", "dst=/x,volume-label=a", "src=/a,dst=/b,type=bind,allow=read+mkdir+exec"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMount(s, "/cwd")
		fuzzPlan(t, m, err)
	})
}

func FuzzParseTmpfs(f *testing.F) {
	for _, s := range []string{"/a", "/a:size=1m,mode=700", "/a:uid=1,,gid=2", "/a:huge=never"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseTmpfs(s)
		fuzzPlan(t, m, err)
	})
}

func FuzzParseAddHost(f *testing.F) {
	for _, s := range []string{"a:1.2.3.4", "a=::1", "a:[::1]", "a:host-gateway", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := HostsFile(HostsConfig{Extra: []string{s}})
		if err == nil && strings.Count(string(b), "\n") != 7 {
			t.Fatalf("%q makes\n%s", s, b)
		}
	})
}
