package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/pflag"
)

// Each command has a page that says everything that its help says, and that man and
// mandoc have nothing to say about, where they are.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if _, errs, code := sbx(t, "__manual", dir, "2026-11-21"); code != 0 {
		t.Fatal(errs)
	}
	var pages []string
	everyCommand(newRoot(&terminal{f: os.Stderr}), func(c *command) {
		page := filepath.Join(dir, pageName(c)+".1")
		text, err := os.ReadFile(page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		roff := md2man.Render(text)
		if err := os.WriteFile(page, roff, 0o644); err != nil {
			t.Fatal(err)
		}
		pages = append(pages, page)
		plain := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fI`, "", `\fP`, "").Replace(string(roff))
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(plain, "--"+f.Name) {
				t.Errorf("%s does not have --%s", page, f.Name)
			}
		})
		for _, s := range c.visible() {
			if !strings.Contains(plain, pageName(s)+"(1)") {
				t.Errorf("%s does not name %s", page, pageName(s))
			}
		}
		if !bytes.HasPrefix(bytes.TrimSpace(roff), []byte(".nh\n.TH \"SBX")) {
			t.Errorf("%s begins with %.40q", page, roff)
		}
	})
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2*len(pages) {
		t.Errorf("%d files for %d commands, %v", len(entries), len(pages), err)
	}
	if prog, err := exec.LookPath("mandoc"); err == nil { // make setup installs it
		if out, err := exec.Command(prog, append([]string{"-Tlint", "-Wwarning"}, pages...)...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("mandoc: %v\n%s", err, out)
		}
	}
	if prog, err := exec.LookPath("man"); err == nil {
		var errs bytes.Buffer
		cmd := exec.Command(prog, "--warnings=all", "-l", filepath.Join(dir, "sbx-run.1"))
		cmd.Stderr = &errs
		if out, err := cmd.Output(); err != nil || errs.Len() > 0 || !bytes.Contains(out, []byte("--publish")) {
			t.Errorf("man: %v\n%s", err, errs.String())
		}
	}
}
