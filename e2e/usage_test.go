package e2e

import (
	"strings"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestDiskUsage fills each kind of storage and gives it back.
func TestDiskUsage(t *testing.T) {
	e := harness.NewPrivate(t)
	const format = "{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}} {{.Reclaimable}}"
	if got := e.Must("system", "df", "--format", format); got != "Images 0 0 0B 0B\nContainers 0 0 0B 0B\nLocal Volumes 0 0 0B 0B\n" {
		t.Errorf("nothing: %q", got)
	}
	detached(t, e, "web", "-v", "store:/d", "demo")
	e.Must("create", "--name", "idle", "demo")
	e.AtEnd("rm", "-f", "idle")
	e.Must("volume", "create", "spare")
	e.AtEnd("volume", "rm", "-f", "spare")
	rows := strings.Split(e.Must("system", "df", "--format", format), "\n")
	for i, want := range []string{"Images 1 1 ", "Containers 2 1 ", "Local Volumes 2 1 "} {
		if !strings.HasPrefix(rows[i], want) || strings.Contains(rows[i], " 0B 0B") {
			t.Errorf("row %q, want %q", rows[i], want)
		}
	}
	if !strings.HasSuffix(rows[0], "MB 0B (0%)") || !strings.HasSuffix(rows[2], "(50%)") {
		t.Errorf("reclaimable: %q", rows)
	}
	table := e.Must("system", "df", "-v")
	for _, want := range []string{"Images space usage:\n\nREPOSITORY", "UNIQUE SIZE   CONTAINERS\ndemo ", "\nContainers space usage:\n\nCONTAINER ID", "\nLocal Volumes space usage:\n\nVOLUME NAME   LINKS   SIZE\nspare         0 ", "\nstore         1 "} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if got := e.Must("ps", "-s"); !strings.Contains(got, "NAMES   SIZE\n") || !strings.Contains(got, "B (virtual ") {
		t.Errorf("ps -s: %s", got)
	}
	if got := e.Must("ps", "--format", "{{.Size}}"); !strings.Contains(got, "B (virtual ") {
		t.Errorf("ps: %s", got)
	}
	e.Must("stop", "web")
	if got := e.Must("volume", "prune", "-f", "-a"); !strings.HasPrefix(got, "Deleted Volumes:\nspare\n\nTotal reclaimed space: ") || strings.HasSuffix(got, " 0B\n") {
		t.Errorf("volume prune: %q", got)
	}
	if got := e.Must("image", "prune", "-f", "-a"); got != "Total reclaimed space: 0B\n" {
		t.Errorf("image prune: %q", got)
	}
	if got := e.Must("system", "prune", "-f", "-a"); !strings.Contains(got, "Deleted Containers:\n") || !strings.Contains(got, "\nDeleted Images:\nUntagged: demo\nDeleted: sha256:") || !strings.HasSuffix(got, "MB\n") {
		t.Errorf("system prune: %q", got)
	}
	e.Must("volume", "rm", "store")
}
