package security

import (
	"slices"
	"testing"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// an attempt, made by /probe try.
type attempt struct {
	name string
	try  []string
	// flags of sbx run.
	flags []string
	// refused lists the answers of which one is expected. "ok" says that it may do so,
	// and that it is what happens outside that counts.
	refused []string
	// open lists the flags with which it succeeds; host says that it does so on the
	// host. Neither: it cannot be let through safely, or the kernel has no such thing.
	open []string
	host bool
}

func words(s ...string) []string { return append([]string{}, s...) }

var (
	eperm    = words("EPERM")
	everyCap = words("--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined")
	asItIs   = words()
	bare     = words("--security-opt", "seccomp=unconfined")
	admin    = words("--cap-add", "SYS_ADMIN")
)

// TestCatalogue makes each attempt with the defaults, or the flags it names.
func TestCatalogue(t *testing.T) {
	e := harness.New(t, harness.BB)
	o := newOutside(t, e)
	seen := map[string]bool{}
	for _, a := range slices.Concat(callCatalogue, mountCatalogue, procCatalogue, deviceCatalogue, processCatalogue, fileCatalogue, socketCatalogue, abuseCatalogue) {
		if seen[a.name] {
			t.Errorf("two attempts are called %q", a.name)
		}
		seen[a.name] = true
		t.Run(a.name, func(t *testing.T) {
			if got := o.run(t, a.flags, a.try); !slices.Contains(a.refused, got) {
				t.Errorf("%v: got %s, want one of %v", a.try, got, a.refused)
			}
			o.unchanged(t)
			reached := o.reached.Load()
			if a.open != nil {
				if got := o.run(t, a.open, a.try); got != "ok" {
					t.Errorf("%v cannot succeed, even with %v: %s", a.try, a.open, got)
				}
			}
			if a.host {
				if got := o.onHost(t, a.try); got != "ok" {
					t.Errorf("%v cannot succeed, even on the host: %s", a.try, got)
				}
			}
			if o.reached.Load() != reached { // it was let in
				o.before = o.look(t)
			}
		})
	}
	if len(seen) < 60 {
		t.Errorf("%d attempts", len(seen))
	}
}
