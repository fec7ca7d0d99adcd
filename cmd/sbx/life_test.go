package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

func TestDetachKeys(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_": "\x00\x1b\x1c\x1d\x1e\x1f", "CTRL-A,b": "\x01b",
	} {
		if got, err := parseDetachKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-ab", "ctrl-1", "ab", "a,,b", ","} {
		if got, err := parseDetachKeys(in); err == nil {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// What is typed arrives, whatever parts of the keys are in it and however it comes.
func TestDetachReader(t *testing.T) {
	for _, tc := range []struct {
		keys, in, want string
		detached       bool
	}{
		{"pq", "hello", "hello", false},
		{"pq", "hellopq", "hello", true},
		{"pq", "pppq", "pp", true},
		{"pq", "papq after", "pa", true},
		{"pq", "p", "p", false},
		{"ppq", "pppq", "p", true},
		{"", "pq", "pq", false},
		{"a", "a", "", true},
	} {
		for _, size := range []int{1, 2, 100} {
			r, d := newDetachReader(iotest{strings.NewReader(tc.in), size}, []byte(tc.keys))
			got, err := io.ReadAll(r)
			if err != nil || string(got) != tc.want || d.is() != tc.detached {
				t.Errorf("%q in %q, %d at a time: %q, %v, %v", tc.keys, tc.in, size, got, d.is(), err)
			}
		}
	}
}

// iotest reads a few bytes at a time.
type iotest struct {
	r io.Reader
	n int
}

func (r iotest) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), r.n)]) }

func TestParseTime(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"":                            {},
		"10m":                         now.Add(-10 * time.Minute),
		"1700000000":                  time.Unix(1700000000, 0),
		"1700000000.25":               time.Unix(1700000000, 250e6),
		"2026-01-02T03:04:05Z":        time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02T03:04:05.6+01:00": time.Date(2026, 1, 2, 2, 4, 5, 6e8, time.UTC),
		"2026-01-02T03:04:05":         time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local),
		"2026-01-02":                  time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseTime("--since", in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"yesterday", "2026-13-01", "10", "x.5"} {
		if got, err := parseTime("--since", in, now); err == nil && in != "10" {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestParseTail(t *testing.T) {
	for in, want := range map[string]int{"all": 0, "": 0, "5": 5, "0": -1, "-1": 0} {
		if got, err := parseTail(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	if _, err := parseTail("many"); err == nil {
		t.Error("many")
	}
}

// A long line in pieces has one time; streams do not mix.
func TestLogPrinter(t *testing.T) {
	var out, errs bytes.Buffer
	p := logPrinter{out: &out, err: &errs, timestamps: true, within: map[string]bool{}}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)
	for _, r := range []sandbox.LogRecord{
		{Stream: "stdout", Time: at, Log: []byte("one "), Partial: true},
		{Stream: "stderr", Time: at, Log: []byte("oops\n")},
		{Stream: "stdout", Time: at, Log: []byte("line\n")},
		{Stream: "stdout", Time: at, Log: []byte("two\n")},
	} {
		if err := p.print(&r); err != nil {
			t.Fatal(err)
		}
	}
	const stamp = "2026-01-02T03:04:05.600000000Z "
	if got := out.String(); got != stamp+"one line\n"+stamp+"two\n" {
		t.Errorf("stdout: %q", got)
	}
	if got := errs.String(); got != stamp+"oops\n" {
		t.Errorf("stderr: %q", got)
	}
}

func boxes() []sandbox.Inspection {
	now := time.Now()
	box := func(id, name, status string, age time.Duration) sandbox.Inspection {
		in := sandbox.Inspection{ID: id, Name: "/" + name, Created: now.Add(-age)}
		in.State.Status, in.State.Running = status, status == "running"
		in.State.StartedAt = in.Created
		return in
	}
	a := box("aaaa", "web", "running", time.Minute)
	a.Config.Labels, a.Config.Image, a.Image = map[string]string{"k": "v", "x": ""}, "app:latest", "sha256:1234"
	a.NetworkSettings.Ports = map[string][]sandbox.PortBinding{"80/tcp": {{HostIP: "0.0.0.0", HostPort: "8080"}, {HostIP: "::", HostPort: "8080"}}, "53/udp": nil}
	a.State.Health = &sandbox.Health{Status: "healthy"}
	b := box("bbbb", "web2", "exited", time.Hour)
	b.State.ExitCode, b.State.FinishedAt = 3, now.Add(-2*time.Minute)
	c := box("cccc", "db", "created", 2*time.Hour)
	c.Config.ExposedPorts = map[string]struct{}{"53/udp": {}}
	return []sandbox.Inspection{a, b, c}
}

func TestBoxFilters(t *testing.T) {
	for _, tc := range []struct {
		filters string
		all     bool
		want    string
	}{
		{"", false, "web"},
		{"", true, "web web2 db"},
		{"name=web", true, "web web2"},
		{"name=^/web$", true, "web"},
		{"name=web name=db", true, "web web2 db"},
		{"name=web status=exited", true, "web2"},
		{"exited=3", true, "web2"},
		{"exited=0", true, ""},
		{"label=k", true, "web"},
		{"label=k=v label=x", true, "web"},
		{"label=k=w", true, ""},
		{"id=bb", true, "web2"},
		{"ancestor=app", true, "web"},
		{"ancestor=12", true, "web"},
		{"before=web", true, "web2 db"},
		{"since=db", true, "web web2"},
		{"since=db", false, "web"},
		{"before=nothing", true, ""},
		{"ancestor=app:latest", true, "web"},
		{"ancestor=app:1", true, ""},
		{"publish=70-90", true, "web"},
		{"publish=81-90/tcp", true, ""},
		{"publish=53/udp", true, ""},
		{"expose=53/udp", true, "db"},
		{"expose=53", true, ""},
		{"is-task=false", true, "web web2 db"},
		{"is-task=true", true, ""},
		{"isolation=default", false, "web"},
		{"health=healthy", true, "web"},
		{"health=none", true, "web2 db"},
		{"publish=80", true, "web"},
	} {
		f, err := parseBoxFilters(strings.Fields(tc.filters))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, in := range f.apply(boxes(), tc.all) {
			names = append(names, boxName(&in))
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.filters, got, tc.want)
		}
	}
	for _, bad := range []string{"name", "name=", "name=(", "status=fine", "exited=x", "color=red", "publish=x", "expose=9-1", "is-task=2"} {
		if _, err := parseBoxFilters([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestBoxRow(t *testing.T) {
	list := boxes()
	list[0].Path, list[0].Args = "sh", []string{"-c", "echo a \"very\" long command"}
	rows := []boxRow{newBoxRow(&list[0], false), newBoxRow(&list[1], false), newBoxRow(&list[2], false)}
	if got, want := rows[0].Command, `"sh -c echo a \"very\"…"`; got != want {
		t.Errorf("command %s, want %s", got, want)
	}
	if got, want := rows[0].Ports, "0.0.0.0:8080->80/tcp, 53/udp, [::]:8080->80/tcp"; got != want {
		t.Errorf("ports %q, want %q", got, want)
	}
	for i, want := range []string{"Up About a minute (healthy)", "Exited (3) 2 minutes ago", "Created"} {
		if rows[i].Status != want {
			t.Errorf("status %q, want %q", rows[i].Status, want)
		}
	}
	if rows[0].Label("k") != "v" || rows[0].Labels != "k=v,x=" {
		t.Errorf("labels %q", rows[0].Labels)
	}
}
