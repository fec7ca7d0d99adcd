package events

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
	"golang.org/x/sys/unix"
)

// TestMain lets a test start writers that it can kill: role, directory.
func TestMain(m *testing.M) {
	if role := os.Getenv("SBX_TEST_EVENTS"); role != "" {
		writer(role, os.Args[1])
	}
	os.Exit(m.Run())
}

// writer adds events for ever, and says which it has added.
func writer(role, dir string) {
	j := &Journal{Dir: dir, MaxSize: 64 << 10, MaxFiles: 1 << 20}
	if role == "full" { // a disk that takes some of an event
		signal.Ignore(unix.SIGXFSZ)
		lim := unix.Rlimit{Cur: 1000, Max: 1000}
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &lim); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		for i := range 20 {
			j.Add(New(Container, Start, strconv.Itoa(i), "image", "full"))
		}
		os.Exit(0)
	}
	pad := strings.Repeat("x", 8000) // over more than one page
	for i := 0; ; i++ {
		j.Add(New(Container, Start, role, "name", strconv.Itoa(i), "label", pad))
		fmt.Println(i)
	}
}

func start(t *testing.T, role, dir string) (*exec.Cmd, io.Reader) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, dir)
	cmd.Env = append(os.Environ(), "SBX_TEST_EVENTS="+role)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out
}

func read(t *testing.T, j *Journal, o ReadOptions) (list []*Event) {
	t.Helper()
	if err := j.Read(t.Context(), o, func(e *Event) error {
		list = append(list, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

func TestKeys(t *testing.T) {
	j := &Journal{Dir: t.TempDir() + "/events"}
	if got := read(t, j, ReadOptions{}); len(got) != 0 {
		t.Fatalf("no journal has %d events", len(got))
	}
	before := time.Now()
	j.Add(New(Container, Die, "abc", "image", "demo", "exitCode", "3"), New(Image, Tag, "sha256:1", "name", "x"), New(Volume, Create, "v"))
	got := read(t, j, ReadOptions{})
	if len(got) != 3 {
		t.Fatalf("%d events", len(got))
	}
	e := got[0]
	if e.Status != "die" || e.ID != "abc" || e.From != "demo" || e.Type != "container" || e.Action != "die" || e.Actor.ID != "abc" ||
		e.Actor.Attributes["exitCode"] != "3" || e.Scope != "local" || e.Time != e.TimeNano/1e9 || time.Unix(0, e.TimeNano).Before(before) {
		t.Errorf("%+v", e)
	}
	if e := got[1]; e.Status != "tag" || e.ID != "sha256:1" || e.From != "" {
		t.Errorf("%+v", e)
	}
	if e := got[2]; e.Status != "" || e.ID != "" || e.Actor.ID != "v" {
		t.Errorf("%+v", e)
	}
	since, until := time.Unix(0, got[1].TimeNano), time.Unix(0, got[1].TimeNano)
	if got := read(t, j, ReadOptions{Since: since, Until: until}); len(got) == 0 || got[0].Action != "tag" {
		t.Errorf("since and until: %v", got)
	}
}

func TestLongEvent(t *testing.T) {
	j := &Journal{Dir: t.TempDir()}
	big := strings.Repeat("x", 2*maxLine)
	j.Add(New(Container, ExecCreate+": "+big, "abc", "image", "demo", "name", big, "label", big))
	j.Add(New(Container, Start, "abc"))
	got := read(t, j, ReadOptions{})
	if len(got) != 2 || got[0].Actor.Attributes["image"] != "demo" || got[0].Actor.Attributes["label"] != "" || len(got[0].Action) > 256 {
		t.Fatalf("%d events", len(got))
	}
}

// Fifty at once, beside a reader, and many files.
func TestConcurrentWriters(t *testing.T) {
	const writers, each = 50, 40
	lockPatience = time.Minute // or a slow machine's writers no longer wait for each other
	t.Cleanup(func() { lockPatience = 2 * time.Second })
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	all := errors.New("all")
	followed := make(chan error, 1)
	seen := 0
	reader := &Journal{Dir: dir}
	go func() {
		followed <- reader.Read(ctx, ReadOptions{Follow: true}, func(*Event) error {
			if seen++; seen == writers*each {
				return all
			}
			return nil
		})
	}()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			j := &Journal{Dir: dir, MaxSize: 4 << 10, MaxFiles: 1 << 20}
			for i := range each {
				if err := j.add([]*Event{New(Container, Start, strconv.Itoa(w), "name", strconv.Itoa(i))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := <-followed; !errors.Is(err, all) {
		t.Errorf("the follower saw %d: %v", seen, err)
	}
	cancel()
	next, last := map[string]int{}, int64(0)
	for _, e := range read(t, reader, ReadOptions{}) {
		if n, _ := strconv.Atoi(e.Actor.Attributes["name"]); n != next[e.Actor.ID] {
			t.Fatalf("writer %s: event %d where %d is due", e.Actor.ID, n, next[e.Actor.ID])
		}
		next[e.Actor.ID]++
		if e.TimeNano < last {
			t.Fatal("times go back")
		}
		last = e.TimeNano
	}
	if len(next) != writers {
		t.Errorf("events of %d writers", len(next))
	}
}

func TestRotation(t *testing.T) {
	j := &Journal{Dir: t.TempDir(), MaxSize: 2 << 10, MaxFiles: 3}
	for i := range 200 {
		j.Add(New(Container, Start, "abc", "name", strconv.Itoa(i)))
	}
	seqs, err := seqfile.List(j.Dir)
	if err != nil || len(seqs) != 3 {
		t.Fatalf("files %v, %v", seqs, err)
	}
	for _, seq := range seqs {
		if fi, err := os.Stat(seqfile.Name(j.Dir, seq)); err != nil || fi.Size() > 2<<10 {
			t.Errorf("file %d: %v, %v", seq, fi.Size(), err)
		}
	}
	got := read(t, j, ReadOptions{})
	for i, e := range got {
		if want := strconv.Itoa(200 - len(got) + i); e.Actor.Attributes["name"] != want {
			t.Fatalf("event %d is %s, want %s", i, e.Actor.Attributes["name"], want)
		}
	}
}

// What a killed writer said it had added is there, and those after it too.
func TestKilledWriters(t *testing.T) {
	dir := t.TempDir()
	added := map[string]int{}
	for round := range 10 {
		role := "w" + strconv.Itoa(round)
		cmd, out := start(t, role, dir)
		lines := bufio.NewScanner(out)
		for n := 1 + rand.IntN(20); n > 0 && lines.Scan(); n-- {
		}
		cmd.Process.Kill()
		for lines.Scan() {
		}
		cmd.Wait()
		added[role], _ = strconv.Atoi(lines.Text())
	}
	// A line that was cut short in its middle.
	seqs, err := seqfile.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(seqfile.Name(dir, seqs[len(seqs)-1]), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, `{"Type":"container","Act`)
	f.Close()
	j := &Journal{Dir: dir}
	j.Add(New(Container, Stop, "last"))
	next := map[string]int{}
	list := read(t, j, ReadOptions{})
	for _, e := range list {
		if n, _ := strconv.Atoi(e.Actor.Attributes["name"]); n != next[e.Actor.ID] {
			t.Fatalf("writer %s: event %d where %d is due", e.Actor.ID, n, next[e.Actor.ID])
		}
		next[e.Actor.ID]++
	}
	for role, n := range added {
		if next[role] < n {
			t.Errorf("writer %s said it had added %d events, and %d are there", role, n, next[role])
		}
	}
	if e := list[len(list)-1]; e.Actor.ID != "last" {
		t.Errorf("the last event is %+v", e)
	}
}

// Nobody fails, and what comes later is there.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	cmd, out := start(t, "full", dir)
	text, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	j := &Journal{Dir: dir}
	before := len(read(t, j, ReadOptions{}))
	j.Add(New(Container, Stop, "last"))
	got := read(t, j, ReadOptions{})
	if before == 0 || before == 20 || len(got) != before+1 || got[before].Actor.ID != "last" {
		t.Errorf("%d events before, %d after there was room again", before, len(got))
	}
	if err := (&Journal{Dir: "/dev/null/events"}).add([]*Event{New(Container, Stop, "x")}); err == nil {
		t.Error("no error from a journal that cannot be made")
	}
}

func TestFollow(t *testing.T) {
	j := &Journal{Dir: t.TempDir() + "/new"}
	j.Add(New(Container, Create, "old"))
	got := make(chan string, 10)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- j.Read(ctx, ReadOptions{Follow: true, New: true}, func(e *Event) error {
			got <- e.Actor.ID
			return nil
		})
	}()
	// Until the reader is there, what is added may be old.
	for seen := ""; seen == ""; {
		j.Add(New(Container, Create, "new"))
		select {
		case seen = <-got:
			if seen != "new" {
				t.Fatalf("got %q", seen)
			}
		case <-time.After(time.Millisecond):
		}
	}
	enough := errors.New("enough")
	cancel(enough)
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("got %v, want the context's cause", err)
	}
	// An end in the future, and one in the past.
	for _, until := range []time.Time{time.Now().Add(20 * time.Millisecond), time.Now().Add(-time.Hour)} {
		if err := j.Read(t.Context(), ReadOptions{Follow: true, Until: until}, func(*Event) error { return nil }); err != nil {
			t.Errorf("until %s: %v", until, err)
		}
	}
	if err := j.Read(t.Context(), ReadOptions{Follow: true}, func(*Event) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v, want fn's error", err)
	}
}

// A lock that is never given back holds nobody up for ever.
func TestStuckLock(t *testing.T) {
	j := &Journal{Dir: t.TempDir()}
	unlock, err := j.lock()
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	lockPatience = 10 * time.Millisecond
	t.Cleanup(func() { lockPatience = 2 * time.Second })
	j.Add(New(Container, Stop, "late"))
	if got := read(t, j, ReadOptions{}); len(got) != 1 {
		t.Errorf("%d events", len(got))
	}
}

func BenchmarkAdd(b *testing.B) {
	j := &Journal{Dir: b.TempDir()}
	for b.Loop() {
		j.Add(New(Container, Start, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "image", "docker.io/library/nginx", "name", "web"))
	}
}
