package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/console"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
)

// pullEvents are those of an image with a configuration and two layers, one of
// which was there.
func pullEvents() []image.Event {
	a, b := "sha256:"+strings.Repeat("a", 64), "sha256:"+strings.Repeat("b", 64)
	return []image.Event{
		{Layer: "docker.io/library/debian:12", Phase: image.PhaseResolve},
		{Layer: a, Phase: image.PhaseWait, Total: 1000},
		{Layer: b, Phase: image.PhaseWait, Total: 3000},
		{Layer: a, Phase: image.PhaseExists, Done: 1000, Total: 1000},
		{Layer: b, Phase: image.PhaseDownload, Total: 3000},
		{Layer: b, Phase: image.PhaseDownload, Done: 1000, Total: 3000},
		{Layer: b, Phase: image.PhaseRetry, Err: errors.New("reset")},
		{Layer: b, Phase: image.PhaseDownload, Done: 2000, Total: 3000},
		{Layer: b, Phase: image.PhaseDone, Done: 3000, Total: 3000},
	}
}

func feed(p *progress) {
	for _, e := range pullEvents() {
		p.event(e)
	}
	p.close()
}

func TestProgressLines(t *testing.T) {
	var b bytes.Buffer
	feed(&progress{w: &b, now: time.Now, blobs: map[string]*blobState{}})
	want := `Pulling docker.io/library/debian:12
aaaaaaaaaaaa: Already exists
bbbbbbbbbbbb: Downloading 3kB
bbbbbbbbbbbb: trying again: reset
bbbbbbbbbbbb: Complete
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	b.Reset()
	feed(&progress{w: &b, quiet: true, now: time.Now, blobs: map[string]*blobState{}})
	if b.Len() != 0 {
		t.Errorf("quiet: %q", b.String())
	}
}

func TestProgressBar(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := &progress{w: &b, width: func() int { return 100 }, blobs: map[string]*blobState{}, now: func() time.Time {
		now = now.Add(time.Second)
		return now
	}}
	feed(p)
	got := b.String()
	for _, want := range []string{
		"\rPulling docker.io/library/debian:12 [=======>                      ]  25% 1kB/4kB\x1b[K",
		"\r\x1b[Kbbbbbbbbbbbb: trying again: reset\n",
		" 75% 3kB/4kB ",
		"B/s\x1b[K",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if !strings.HasSuffix(got, "\r\x1b[K") || strings.Count(got, "\n") != 1 {
		t.Errorf("the bar stays: %q", got)
	}
	for width := range 200 {
		if text := p.text(width, now); utf8.RuneCountInString(text) > width {
			t.Errorf("%d columns wide for %d: %q", utf8.RuneCountInString(text), width, text)
		}
	}
}

func TestProgressBarIsNotRedrawnAllTheTime(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	p := &progress{w: &b, width: func() int { return 80 }, blobs: map[string]*blobState{}, now: func() time.Time { return now }}
	for range 1000 {
		now = now.Add(time.Millisecond)
		p.event(image.Event{Layer: "sha256:a", Phase: image.PhaseDownload, Done: 1, Total: 2})
	}
	if n := strings.Count(b.String(), "\r"); n < 5 || n > 11 {
		t.Errorf("drawn %d times in a second", n)
	}
}

func TestTerminalWriter(t *testing.T) {
	name := filepath.Join(t.TempDir(), "out")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &terminal{f: f}
	for _, raw := range []bool{false, true} {
		w.raw.Store(raw)
		if n, err := w.Write([]byte("a\nb\n")); n != 4 || err != nil {
			t.Errorf("wrote %d, %v", n, err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil || string(got) != "a\nb\na\r\nb\r\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWarnings(t *testing.T) {
	var b bytes.Buffer
	log := newLogger(&b, false)
	log.Info("not for users")
	log.With("name", "web").Warn("left over", "err", errors.New("one\ntwo"))
	if want := "sbx: warning: left over: name=web err=one; two\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	b.Reset()
	newLogger(&b, true).Debug("detail")
	if !strings.Contains(b.String(), "detail") {
		t.Errorf("debug: %q", b.String())
	}
}

func TestReport(t *testing.T) {
	r := &sandbox.Report{OK: false, Choices: []sandbox.Choice{{What: "storage driver", Chosen: "copy", Why: "no fuse"}}}
	r.Checks = []sandbox.Check{{Name: "kernel", Status: "ok", Detail: "fine"}, {Name: "tun", Status: "missing", Detail: "gone", Fix: "do\nthis"}}
	var b bytes.Buffer
	if err := printReport(&b, r, false); err != nil {
		t.Fatal(err)
	}
	want := `ok        kernel  fine
missing   tun     gone
                  fix: do
                       this

Storage driver:   copy (no fuse)

Sandboxes cannot run here until what is missing is fixed.
`
	if b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
	b.Reset()
	if err := printReport(&b, r, true); err != nil || !strings.Contains(b.String(), "\x1b[31mmissing \x1b[0m") {
		t.Errorf("colours: %q %v", b.String(), err)
	}
}

func TestColour(t *testing.T) {
	pty := newPty(t)
	for _, tc := range []struct {
		no, force, term string
		terminal, want  bool
	}{
		{"", "", "xterm", true, true},
		{"", "", "xterm", false, false},
		{"", "", "dumb", true, false},
		{"1", "", "xterm", true, false},
		{"", "1", "xterm", false, true},
		{"", "0", "xterm", false, false},
		{"1", "1", "xterm", true, false},
	} {
		t.Setenv("NO_COLOR", tc.no)
		t.Setenv("CLICOLOR_FORCE", tc.force)
		t.Setenv("TERM", tc.term)
		f := pty
		if !tc.terminal {
			var err error
			if f, err = os.Open(os.DevNull); err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		if got := useColour(f); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// newPty returns the user's end of a terminal; its other end closes with the test.
func newPty(t *testing.T) *os.File {
	t.Helper()
	master, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestHungUp(t *testing.T) {
	master, name, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(name, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if hungUp(int(f.Fd())) {
		t.Error("an open terminal counts as closed")
	}
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	if !hungUp(int(f.Fd())) {
		t.Error("a closed terminal counts as open")
	}
}

func TestUnread(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if unread(int(w.Fd())) {
		t.Error("a pipe with a reader counts as broken")
	}
	r.Close()
	if !unread(int(w.Fd())) {
		t.Error("a pipe without a reader counts as read")
	}
}

func TestCaughtSignals(t *testing.T) {
	got := map[syscall.Signal]bool{}
	for _, s := range caught(every...) {
		got[s.(syscall.Signal)] = true
	}
	for s, want := range map[syscall.Signal]bool{
		syscall.SIGINT: true, syscall.SIGTERM: true, syscall.SIGUSR1: true, syscall.SIGWINCH: true, syscall.SIGTSTP: true, syscall.SIGPIPE: true, 34: true, 64: true,
		syscall.SIGKILL: false, syscall.SIGSTOP: false, syscall.SIGCHLD: false, syscall.SIGURG: false, syscall.SIGTTOU: false, 32: false, 33: false,
	} {
		if got[s] != want {
			t.Errorf("%v caught: %v", s, got[s])
		}
	}
}

func TestCIDFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cid")
	c, err := newCIDFile(name)
	if err == nil {
		err = c.close()
	}
	if _, serr := os.Stat(name); err != nil || !errors.Is(serr, os.ErrNotExist) {
		t.Errorf("without a sandbox the file stays: %v, %v", err, serr)
	}
	if c, err = newCIDFile(name); err == nil {
		err = errors.Join(c.write("0123"), c.close())
	}
	if b, rerr := os.ReadFile(name); err != nil || rerr != nil || string(b) != "0123" {
		t.Errorf("%q %v %v", b, err, rerr)
	}
	if _, err = newCIDFile(name); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("an existing file: %v", err)
	}
}

// TestLostOutput: what cannot be written, as on a full disk, is no success.
func TestLostOutput(t *testing.T) {
	for _, v := range []string{"XDG_DATA_HOME", "XDG_RUNTIME_DIR"} {
		t.Setenv(v, t.TempDir())
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, line := range []string{
		"help", "run --help", "network", "version", "completion bash",
		"ps", "images", "network ls", "network ls -q", "network ls --format {{.Name}}", "network inspect default", "volume ls", "system df", "system df -v",
	} {
		err := newRoot(&terminal{f: os.Stderr}).execute(t.Context(), strings.Fields(line), streams{in: os.Stdin, out: full, err: os.Stderr})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
