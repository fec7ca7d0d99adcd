// Sbom writes what a release says of its parts: for a binary of Go, which itself knows
// the modules that it was linked from, a list in CycloneDX's format and a directory with
// the licences and notices of each.
//
//	go run ./internal/sbom BINARY VERSION OUT
//
// OUT/sbom.cdx.json and OUT/licenses/MODULE/ are the same for the same binary. A module
// whose licence is not known, or not among those that docs/dependencies.md allows, is an
// error: a release is not made by accident.
package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Module is one that a binary was linked from.
type Module struct {
	Path, Version, Sum string
	Dir                string // of its source
	Licenses           []License
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: sbom BINARY VERSION OUT")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(binary, version, out string) error {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return err
	}
	mods, err := modules(info)
	if err != nil {
		return err
	}
	for _, m := range mods {
		if err := m.copyLicenses(filepath.Join(out, "licenses")); err != nil {
			return err
		}
	}
	sum, err := digest(binary)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(document(info, version, sum, mods), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "sbom.cdx.json"), append(b, '\n'), 0o644)
}

// modules are those of the binary, Go's standard library first, with their licences.
func modules(info *buildinfo.BuildInfo) ([]*Module, error) {
	root, err := goTool("env", "GOROOT")
	if err != nil {
		return nil, err
	}
	version, _, _ := strings.Cut(strings.TrimPrefix(info.GoVersion, "go"), " ")
	mods := []*Module{{Path: "std", Version: version, Dir: strings.TrimSpace(string(root))}}
	names := []string{"list", "-m", "-json"}
	for _, d := range info.Deps {
		if d.Replace != nil {
			return nil, fmt.Errorf("%s is replaced by %s", d.Path, d.Replace.Path)
		}
		names = append(names, d.Path)
		mods = append(mods, &Module{Path: d.Path, Version: d.Version, Sum: d.Sum})
	}
	list, err := goTool(names...)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(list))
	for _, m := range mods[1:] {
		var have struct{ Path, Version, Dir string }
		if err := dec.Decode(&have); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Path, err)
		}
		if have.Path != m.Path || have.Version != m.Version || have.Dir == "" {
			return nil, fmt.Errorf("the binary has %s %s, this checkout %s %s: build it here", m.Path, m.Version, have.Path, have.Version)
		}
		m.Dir = have.Dir
	}
	var errs []error
	for _, m := range mods {
		errs = append(errs, m.findLicenses())
	}
	return mods, errors.Join(errs...)
}

// goTool runs the Go that this program was started with.
func goTool(args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", args[0], err)
	}
	return out, nil
}

func digest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// What follows is the part of CycloneDX 1.6 that is needed.
type bom struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Licenses   []licensed `json:"licenses"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

type licensed struct {
	Expression string `json:"expression"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref string   `json:"ref"`
	On  []string `json:"dependsOn"`
}

func document(info *buildinfo.BuildInfo, version, sum string, mods []*Module) *bom {
	main := component{
		Type: "application", Name: path.Base(info.Path), Version: version, PURL: purl(info.Main.Path, version),
		Hashes: []hash{{"SHA-256", sum}}, Licenses: []licensed{{"Apache-2.0"}},
	}
	main.Ref = main.PURL
	for _, s := range info.Settings {
		if s.Key == "GOARCH" || s.Key == "GOOS" || s.Key == "-tags" || s.Key == "CGO_ENABLED" {
			main.Properties = append(main.Properties, property{"build:" + s.Key, s.Value})
		}
	}
	b := &bom{Format: "CycloneDX", Spec: "1.6", Version: 1, Metadata: metadata{main}}
	on := dependency{Ref: main.Ref}
	for _, m := range mods {
		c := component{Type: "library", Name: m.Path, Version: m.Version, PURL: purl(m.Path, m.Version), Licenses: []licensed{{m.expression()}}}
		if c.Ref = c.PURL; m.Sum != "" {
			c.Properties = []property{{"go:sum", m.Sum}}
		}
		b.Components = append(b.Components, c)
		on.On = append(on.On, c.Ref)
	}
	slices.Sort(on.On)
	b.Dependencies = []dependency{on}
	return b
}

// purl is a package URL, by which advisories name a module.
func purl(module, version string) string {
	return "pkg:golang/" + module + "@" + strings.ReplaceAll(version, "+", "%2B")
}
