package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// License is a file of a module's that its users are to be given.
type License struct {
	File string
	IDs  []string // SPDX's; none for a notice
}

var legal = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying|notice|patents)([.-].*)?$`)

// allowed are licences of what a program under Apache-2.0 may be linked with by giving
// their texts along; under MPL-2.0 also by saying where the source is, which the list of
// parts does.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0"}

// choices are modules that leave the choice of one of several licences.
var choices = map[string]string{
	"kernel.org/pub/linux/libs/security/libcap/psx": "BSD-3-Clause", // or GPL-2.0
}

// findLicenses looks at the top of a module's source.
func (m *Module) findLicenses() error {
	entries, err := os.ReadDir(m.Dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !legal.MatchString(e.Name()) || slices.Contains([]string{".go", ".docs"}, filepath.Ext(e.Name())) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.Dir, e.Name()))
		if err != nil {
			return err
		}
		l := License{File: e.Name()}
		for _, found := range licensecheck.Scan(text).Match {
			if !slices.Contains(l.IDs, found.ID) {
				l.IDs = append(l.IDs, found.ID)
			}
		}
		slices.Sort(l.IDs)
		m.Licenses = append(m.Licenses, l)
	}
	ids := m.ids()
	if len(ids) == 0 {
		return fmt.Errorf("%s: no licence that is known in %s", m.Path, m.Dir)
	}
	for _, id := range ids {
		if !slices.Contains(allowed, id) {
			return fmt.Errorf("%s: licence %s; allowed are %s", m.Path, id, strings.Join(allowed, ", "))
		}
	}
	return nil
}

// ids are all that hold for the module.
func (m *Module) ids() (ids []string) {
	if id, ok := choices[m.Path]; ok {
		return []string{id}
	}
	for _, l := range m.Licenses {
		for _, id := range l.IDs {
			// Go's PATENTS beside its licence, a grant and no licence of its own.
			if id != "GooglePatentClause" && id != "GooglePatentsFile" && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return ids
}

func (m *Module) expression() string { return strings.Join(m.ids(), " AND ") }

// copyLicenses puts the files below dir.
func (m *Module) copyLicenses(dir string) error {
	to := filepath.Join(dir, filepath.FromSlash(m.Path))
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, l := range m.Licenses {
		b, err := os.ReadFile(filepath.Join(m.Dir, l.File))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, l.File), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
