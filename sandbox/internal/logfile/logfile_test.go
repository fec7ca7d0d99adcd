package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, dir string, cfg Config) *Writer {
	t.Helper()
	w, err := Open(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// read returns the records that there are.
func read(t *testing.T, dir string, o ReadOptions) []Record {
	t.Helper()
	var out []Record
	if err := Read(t.Context(), dir, o, func(r *Record) error {
		out = append(out, *r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func text(recs []Record, stream string) string {
	var b strings.Builder
	for _, r := range recs {
		if r.Stream == stream {
			b.Write(r.Log)
		}
	}
	return b.String()
}

func TestEveryByteInOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	w := open(t, dir, Config{MaxSize: 100 << 10, MaxFiles: 1000})
	want := map[string]*bytes.Buffer{"stdout": {}, "stderr": {}}
	streams := map[string]*Stream{"stdout": w.Stream("stdout"), "stderr": w.Stream("stderr")}
	for range 500 {
		name := []string{"stdout", "stderr"}[rnd.IntN(2)]
		b := make([]byte, rnd.IntN(1<<rnd.IntN(16)))
		for i := range b {
			if b[i] = byte(rnd.Uint32()); rnd.IntN(4) > 0 {
				b[i] = "ab\n <>&\"é"[rnd.IntN(9)]
			}
		}
		want[name].Write(b)
		if n, err := streams[name].Write(b); n != len(b) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	for _, s := range streams {
		s.Close()
	}
	w.Close()
	recs := read(t, dir, ReadOptions{})
	for name, b := range want {
		if text(recs, name) != b.String() {
			t.Errorf("%s differs from what was written", name)
		}
	}
	for _, r := range recs {
		if len(r.Log) > maxPiece || bytes.IndexByte(r.Log, '\n') >= 0 && bytes.IndexByte(r.Log, '\n') != len(r.Log)-1 {
			t.Fatalf("record of %d bytes is no line or piece", len(r.Log))
		}
	}
}

func TestLongLine(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{MaxFiles: 10})
	line := strings.Repeat("0123456789abcdé", 1<<20) + "\n" // 16 MiB
	fmt.Fprint(w.Stream("stdout"), "first\n", line)
	w.Close()
	recs := read(t, dir, ReadOptions{})
	if text(recs, "stdout") != "first\n"+line {
		t.Fatal("line differs")
	}
	for i, r := range recs[1:] {
		if last := i == len(recs)-2; r.Partial == last {
			t.Fatalf("piece %d of %d has partial %v", i, len(recs)-1, r.Partial)
		}
	}
	// The file holds text, not base64: characters are not cut.
	b, err := os.ReadFile(seqfile.Name(dir, 1))
	if err != nil || bytes.Contains(b, []byte(`"b64"`)) {
		t.Errorf("a character was cut (%v)", err)
	}
	if got := text(read(t, dir, ReadOptions{Tail: 1}), "stdout"); got != line {
		t.Errorf("tail 1 is %d bytes, want %d", len(got), len(line))
	}
}

func TestTail(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{MaxSize: 2000, MaxFiles: 5})
	s := w.Stream("stdout")
	const lines = 57
	for i := range lines {
		fmt.Fprintf(s, "line %d\n", i)
	}
	s.Close()
	w.Close()
	for _, n := range []int{1, 2, 17, 18, 19, 56, 57, 58, 1000} {
		recs := read(t, dir, ReadOptions{Tail: n})
		if want := min(n, lines); len(recs) != want {
			t.Errorf("tail %d gives %d records, want %d", n, len(recs), want)
			continue
		}
		if want := fmt.Sprintf("line %d\n", lines-min(n, lines)); string(recs[0].Log) != want {
			t.Errorf("tail %d begins with %q, want %q", n, recs[0].Log, want)
		}
	}
	if recs := read(t, dir, ReadOptions{Tail: -1}); len(recs) != 0 {
		t.Errorf("tail -1 gives %d records", len(recs))
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{MaxSize: 1 << 10, MaxFiles: 3})
	s := w.Stream("stderr")
	for i := range 1000 {
		fmt.Fprintf(s, "%d\n", i)
	}
	w.Close()
	seqs, err := seqfile.List(dir)
	if err != nil || len(seqs) != 3 {
		t.Fatalf("files %v, %v; want 3", seqs, err)
	}
	for _, seq := range seqs {
		fi, err := os.Stat(seqfile.Name(dir, seq))
		if err != nil || fi.Size() > 1<<10 {
			t.Errorf("file %d: %v, %v", seq, fi.Size(), err)
		}
	}
	recs := read(t, dir, ReadOptions{})
	for i, r := range recs {
		if want := fmt.Sprintf("%d\n", 1000-len(recs)+i); string(r.Log) != want {
			t.Fatalf("record %d is %q, want %q", i, r.Log, want)
		}
	}
}

func TestSinceUntil(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{})
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := w.Stream("stdout")
	// The clock is set back between 3 and 4.
	for i, sec := range []int{1, 2, 3, 0, 4} {
		w.now = func() time.Time { return t0.Add(time.Duration(sec) * time.Second) }
		fmt.Fprintf(s, "%d\n", i)
	}
	w.Close()
	got := text(read(t, dir, ReadOptions{Since: t0.Add(time.Second), Until: t0.Add(3 * time.Second)}), "stdout")
	if got != "0\n1\n2\n" {
		t.Errorf("got %q", got)
	}
}

func TestPrompt(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{})
	s := w.Stream("stdout")
	got := make(chan Record, 10)
	done := make(chan error, 1)
	go func() {
		done <- Read(t.Context(), dir, ReadOptions{Follow: true}, func(r *Record) error {
			got <- *r
			return nil
		})
	}()
	fmt.Fprint(s, "Password: ")
	if r := <-got; string(r.Log) != "Password: " || !r.Partial {
		t.Errorf("prompt: %q, partial %v", r.Log, r.Partial)
	}
	fmt.Fprint(s, "x\n")
	if r := <-got; string(r.Log) != "x\n" || r.Partial {
		t.Errorf("rest: %q, partial %v", r.Log, r.Partial)
	}
	s.Close()
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFollowOverRotation(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{MaxSize: 2 << 10, MaxFiles: 1 << 20})
	var got strings.Builder
	done := make(chan error, 1)
	go func() {
		done <- Read(t.Context(), dir, ReadOptions{Follow: true}, func(r *Record) error {
			got.Write(r.Log)
			return nil
		})
	}()
	var want strings.Builder
	s := w.Stream("stdout")
	for i := range 3000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		fmt.Fprint(s, line)
	}
	s.Close()
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got.String() != want.String() {
		t.Error("what was followed differs from what was written")
	}
}

func TestFollowEnds(t *testing.T) {
	dir := t.TempDir()
	if err := Read(t.Context(), dir, ReadOptions{Follow: true}, func(*Record) error { return nil }); err != nil {
		t.Errorf("an empty log without a writer: %v", err)
	}
	w := open(t, dir, Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	time.AfterFunc(20*time.Millisecond, func() { cancel(enough) })
	if err := Read(ctx, dir, ReadOptions{Follow: true}, func(*Record) error { return nil }); !errors.Is(err, enough) {
		t.Errorf("got %v, want the context's cause", err)
	}
	fmt.Fprint(w.Stream("stdout"), "x\n")
	for _, d := range []time.Duration{0, 20 * time.Millisecond} { // nothing more is written
		var got string
		if err := Read(t.Context(), dir, ReadOptions{Follow: true, Until: time.Now().Add(d)}, func(r *Record) error { got += string(r.Log); return nil }); err != nil || got != "x\n" {
			t.Errorf("until %v from now: %q, %v", d, got, err)
		}
	}
	if err := Read(t.Context(), dir, ReadOptions{Follow: true}, func(*Record) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("got %v, want fn's error", err)
	}
}

func TestTornRecord(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{})
	fmt.Fprint(w.Stream("stdout"), "whole\n")
	w.Close()
	f, err := os.OpenFile(seqfile.Name(dir, 1), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `{"log":"tor`)
	f.Close()
	if got := text(read(t, dir, ReadOptions{}), "stdout"); got != "whole\n" {
		t.Errorf("before repair: %q", got)
	}
	if got := text(read(t, dir, ReadOptions{Tail: 1}), "stdout"); got != "whole\n" {
		t.Errorf("tail before repair: %q", got)
	}
	w = open(t, dir, Config{})
	fmt.Fprint(w.Stream("stdout"), "next\n")
	w.Close()
	if got := text(read(t, dir, ReadOptions{}), "stdout"); got != "whole\nnext\n" {
		t.Errorf("after repair: %q", got)
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	w := open(t, dir, Config{})
	s := w.Stream("stdout")
	fmt.Fprint(s, "before\n")
	// A file that cannot grow stands for a full disk.
	good := w.file
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	w.file = full
	fmt.Fprint(s, "lost\n", "lost, too\n")
	w.file = good
	fmt.Fprint(s, "after\n")
	w.Close()
	recs := read(t, dir, ReadOptions{})
	if got := text(recs, "stdout"); got != "before\nafter\n" {
		t.Errorf("got %q", got)
	}
	if got := text(recs, StreamNotice); !strings.HasPrefix(got, "15 bytes ") {
		t.Errorf("notice is %q", got)
	}
	if n := w.Lost(); n != 15 {
		t.Errorf("%d bytes lost", n)
	}
	// What is lost at the end is told at the end.
	w = open(t, dir, Config{})
	good, w.file = w.file, full
	fmt.Fprint(w.Stream("stdout"), "the end\n")
	w.file = good
	w.Close()
	recs = read(t, dir, ReadOptions{})
	if last := recs[len(recs)-1]; last.Stream != StreamNotice || !strings.HasPrefix(string(last.Log), "8 bytes ") {
		t.Errorf("last: %+v", last)
	}
}

func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, Config{})
	_, err := Open(dir, Config{})
	var pe *fs.PathError
	if !errors.As(err, &pe) || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a second writer: %v", err)
	}
}

func TestNoLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if recs := read(t, dir, ReadOptions{Tail: 3}); len(recs) != 0 {
		t.Errorf("%d records", len(recs))
	}
}

// FuzzRead reads a file that anybody may have written.
func FuzzRead(f *testing.F) {
	f.Add([]byte("{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-21T10:00:00Z\"}\n"), 1)
	f.Add([]byte("x\n\n{}\n{\"partial\":true}\n{"), 2)
	f.Fuzz(func(t *testing.T, b []byte, lines int) {
		dir := t.TempDir()
		if err := os.WriteFile(seqfile.Name(dir, 1), b, 0o600); err != nil {
			t.Fatal(err)
		}
		all := read(t, dir, ReadOptions{})
		if n := len(read(t, dir, ReadOptions{Tail: lines})); n > len(all) {
			t.Errorf("tail %d has %d records of %d", lines, n, len(all))
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	w, err := Open(b.TempDir(), Config{})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	s := w.Stream("stdout")
	// It ends within a line, as the reads of a pipe do.
	chunk := bytes.Repeat([]byte("a line of a program's output, as long as such lines are\n"), 1000)[20:55990]
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		s.Write(chunk)
	}
}
