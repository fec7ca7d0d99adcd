// Package confinetest tests stages by trying what they forbid, and what must go on: each
// in a process that has shed all, one stage or nothing.
package confinetest

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox/internal/confine"
)

const (
	stageEnv = "CONFINE_TEST_STAGE"
	dirEnv   = "CONFINE_TEST_DIR"
)

// A Deed is what a process might do if somebody took it over, or what it has to do.
type Deed struct {
	Name string
	// Stages that forbid it; none: it must go on.
	Stages string
	// Do gets a directory of the user's with a file "secret", in which "own", with a file
	// "file", is the process's.
	Do func(dir string) error
}

// Dir is the one that Deeds get.
func Dir() string { return os.Getenv(dirEnv) }

// refusals are how a deed is refused; any other failure is one of the test.
var refusals = []error{fs.ErrPermission, fs.ErrNotExist, syscall.EROFS, syscall.EXDEV}

// Role is the body of the process: it sheds what it is told and prints which deeds are
// refused.
func Role(stages []confine.Stage, deeds []Deed) error {
	only, dir := os.Getenv(stageEnv), Dir()
	var errs []error
	for _, s := range stages {
		if only == "all" || only == s.Name {
			confine.Shed([]confine.Stage{s}, func(_ string, why error) { errs = append(errs, why) })
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	refused := map[string]string{}
	for _, d := range deeds {
		if err := d.Do(dir); err != nil {
			refused[d.Name] = err.Error()
			if !slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }) {
				refused[d.Name] = "otherwise: " + err.Error()
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(refused)
}

// Run has each stage forbid what it is for and nothing else; without it the same deeds
// are done. command is that of the process.
func Run(t *testing.T, stages []confine.Stage, deeds []Deed, command func() *exec.Cmd) {
	names := []string{"none"}
	for _, s := range stages {
		names = append(names, s.Name)
	}
	for _, stage := range append(names, "all") {
		t.Run(stage, func(t *testing.T) {
			dir := t.TempDir()
			for _, f := range []string{"secret", "own/file"} {
				f = filepath.Join(dir, f)
				if err := errors.Join(os.MkdirAll(filepath.Dir(f), 0o700), os.WriteFile(f, []byte("x"), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := command()
			cmd.Env = append(cmd.Env, stageEnv+"="+stage, dirEnv+"="+dir)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			var refused map[string]string
			if err = errors.Join(err, json.Unmarshal(out, &refused)); err != nil {
				t.Fatalf("%v: %q", err, out)
			}
			for _, d := range deeds {
				forbidden := d.Stages != "" && (stage == "all" || slices.Contains(strings.Fields(d.Stages), stage))
				why, is := refused[d.Name]
				switch {
				case forbidden && !is:
					t.Errorf("it could %s", d.Name)
				case is && (!forbidden || strings.HasPrefix(why, "otherwise")):
					t.Errorf("it could not %s: %s", d.Name, why)
				}
			}
		})
	}
}

// Read reads a file.
func Read(file string) error { _, err := os.ReadFile(file); return err }

// Ignore takes an error of the call itself for a success: it was let in.
func Ignore(err error, allowed ...syscall.Errno) error {
	for _, a := range append(allowed, 0) {
		if errors.Is(err, a) {
			return nil
		}
	}
	return err
}
