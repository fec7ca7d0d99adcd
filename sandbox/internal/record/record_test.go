package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	if Exists(dir) {
		t.Error("exists")
	}
	if _, err := ReadState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no state: %v", err)
	}
	c := &Config{Created: time.Unix(1e9, 5).UTC(), Image: "demo", Start: proto.Start{ID: "aa", Life: proto.Life{Keep: true}}}
	s := &State{Status: Running, StartedAt: time.Unix(2e9, 7).UTC(), Started: proto.Started{PID: 7}, Volumes: map[string]string{"/data": "v"}}
	if err := errors.Join(WriteConfig(dir, c), WriteState(dir, s)); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadConfig(dir); err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := ReadState(dir); err != nil || !reflect.DeepEqual(got, s) {
		t.Errorf("%+v, %v", got, err)
	}
	if !Exists(dir) || !s.Alive() {
		t.Error("it lives")
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestAtRest(t *testing.T) {
	dir := t.TempDir()
	if AtRest(dir) {
		t.Error("without a state")
	}
	for status, want := range map[string]bool{Created: true, Exited: true, Running: false, Paused: false, Restarting: false} {
		if err := WriteState(dir, &State{Status: status}); err != nil {
			t.Fatal(err)
		}
		if got := AtRest(dir); got != want {
			t.Errorf("%s: %v", status, got)
		}
	}
}

// Files that a crash or another version has left.
func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, stateName)
	var newer *VersionError
	for text, check := range map[string]func(error) bool{
		"":                               func(err error) bool { return errors.Is(err, fs.ErrNotExist) },
		"{":                              func(err error) bool { return err != nil && strings.Contains(err.Error(), path) },
		`{"version":99,"status":"fine"}`: func(err error) bool { return errors.As(err, &newer) && newer.Version == 99 },
		`{}`:                             func(err error) bool { return errors.As(err, &newer) },
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadState(dir); !check(err) {
			t.Errorf("%q: %v", text, err)
		}
	}
	os.Remove(path)
	if err := os.Symlink("/etc/passwd", path); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadState(dir); err == nil {
		t.Error("a link was followed")
	}
}

// A reader sees one version or the other, whole.
func TestReadWhileWritten(t *testing.T) {
	dir := t.TempDir()
	if err := WriteState(dir, &State{Status: Created}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := range 200 {
				if err := WriteState(dir, &State{Status: Running, Error: strings.Repeat("x", i)}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 400 {
		if _, err := ReadState(dir); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
}
