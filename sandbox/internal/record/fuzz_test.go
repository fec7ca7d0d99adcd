package record

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// FuzzRead reads records that anybody may have written: of what is accepted, the same is
// read after it was written again.
func FuzzRead(f *testing.F) {
	dir := f.TempDir()
	if err := errors.Join(WriteConfig(dir, &Config{Image: "demo", Cmd: []string{"a"}, Start: proto.Start{ID: "aa"}}),
		WriteState(dir, &State{Status: Running, MonitorPID: 7, Volumes: map[string]string{"/d": "v"}})); err != nil {
		f.Fatal(err)
	}
	config, cerr := os.ReadFile(filepath.Join(dir, configName))
	state, serr := os.ReadFile(filepath.Join(dir, stateName))
	if err := errors.Join(cerr, serr); err != nil {
		f.Fatal(err)
	}
	f.Add(config, state)
	f.Add([]byte(`{"version":2}`), []byte(`{"version":-1,"status":"running"}`))
	f.Add([]byte(`null`), []byte(`{"version":1,"status":"exited","health":null,"networks":[null]}`))
	f.Fuzz(func(t *testing.T, config, state []byte) {
		if err := errors.Join(os.WriteFile(filepath.Join(dir, configName), config, 0o600), os.WriteFile(filepath.Join(dir, stateName), state, 0o600)); err != nil {
			t.Fatal(err)
		}
		rest := AtRest(dir)
		if c, err := ReadConfig(dir); err == nil {
			if err := WriteConfig(dir, c); err != nil {
				t.Fatal(err)
			}
			if again, err := ReadConfig(dir); err != nil || text(t, again) != text(t, c) {
				t.Fatalf("%+v, then %+v, %v", c, again, err)
			}
		}
		s, err := ReadState(dir)
		if err != nil {
			return
		}
		if rest && s.Alive() {
			t.Fatalf("at rest, and %s", s.Status)
		}
		if err := WriteState(dir, s); err != nil {
			t.Fatal(err)
		}
		if again, err := ReadState(dir); err != nil || text(t, again) != text(t, s) {
			t.Fatalf("%+v, then %+v, %v", s, again, err)
		}
	})
}

func text(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
