package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

const (
	mit = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.`
	gpl = `This program is free software: you can redistribute it and/or modify it under the terms of the GNU General Public License as published by the Free Software Foundation, either version 3 of the License, or (at your option) any later version.

This program is distributed in the hope that it will be useful, but WITHOUT ANY WARRANTY; without even the implied warranty of MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE. See the GNU General Public License for more details.

You should have received a copy of the GNU General Public License along with this program. If not, see <https://www.gnu.org/licenses/>.`
)

// A release is refused for a module that may not be given away in it.
func TestLicenses(t *testing.T) {
	for name, tc := range map[string]struct {
		module string
		files  map[string]string
		want   string // "" for a refusal
	}{
		"mit":             {files: map[string]string{"LICENSE.txt": mit, "NOTICE": "x", "license.go": gpl}, want: "MIT"},
		"gpl":             {files: map[string]string{"COPYING": gpl}},
		"both":            {files: map[string]string{"LICENSE": mit, "LICENSE.more": gpl}},
		"none":            {files: map[string]string{"README": mit}},
		"unknown":         {files: map[string]string{"LICENSE": "You may look at it on Sundays."}},
		"of the manual":   {files: map[string]string{"LICENSE": mit, "LICENSE.docs": gpl}, want: "MIT"},
		"leaves a choice": {module: "kernel.org/pub/linux/libs/security/libcap/psx", files: map[string]string{"License": gpl}, want: "BSD-3-Clause"},
	} {
		t.Run(name, func(t *testing.T) {
			m := &Module{Path: tc.module, Version: "v1.0.0", Dir: t.TempDir()}
			if m.Path == "" {
				m.Path = "example.com/m"
			}
			for f, text := range tc.files {
				if err := os.WriteFile(filepath.Join(m.Dir, f), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := m.findLicenses()
			if (err == nil) != (tc.want != "") {
				t.Fatalf("%+v, %v", m.Licenses, err)
			}
			if err != nil {
				return
			}
			if got := m.expression(); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
			out := t.TempDir()
			if err := m.copyLicenses(out); err != nil {
				t.Fatal(err)
			}
			for _, l := range m.Licenses {
				if b, err := os.ReadFile(filepath.Join(out, m.Path, l.File)); err != nil || string(b) != tc.files[l.File] {
					t.Errorf("%s: %q, %v", l.File, b, err)
				}
			}
		})
	}
}

func TestDocument(t *testing.T) {
	info := &debug.BuildInfo{Path: "example.com/a/cmd/a", Main: debug.Module{Path: "example.com/a"}, Settings: []debug.BuildSetting{{Key: "GOARCH", Value: "arm64"}, {Key: "vcs", Value: "git"}}}
	mods := []*Module{{Path: "example.com/m", Version: "v29.0.0+incompatible", Sum: "h1:x", Licenses: []License{{"LICENSE", []string{"MIT"}}, {"NOTICE", nil}}}}
	b, err := json.Marshal(document(info, "v1.2.3", "00ff", mods))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"purl":"pkg:golang/example.com/a@v1.2.3"`, `"name":"a"`, `"content":"00ff"`, `{"name":"build:GOARCH","value":"arm64"}`,
		`"purl":"pkg:golang/example.com/m@v29.0.0%2Bincompatible"`, `"licenses":[{"expression":"MIT"}]`, `{"name":"go:sum","value":"h1:x"}`,
		`"dependsOn":["pkg:golang/example.com/m@v29.0.0%2Bincompatible"]`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if strings.Contains(string(b), "vcs") {
		t.Errorf("%s", b)
	}
}
