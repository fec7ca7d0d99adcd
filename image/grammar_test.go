package image

import (
	"regexp"
	"strings"
	"testing"
)

// The grammar of Docker's reference package and of the index's directories.
var grammar = []struct {
	name string
	re   *regexp.Regexp
	got  func(string) bool
}{
	{"hex id", regexp.MustCompile(`^[0-9a-f]{64}$`), isHexID},
	{"map key", regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`), validMapKey},
	{"tag", regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`), validTag},
	{"path", regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`), validPath},
	{"domain", regexp.MustCompile(`^(?:(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9])(?:\.(?:[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9-]*[A-Za-z0-9]))*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?$`), validDomain},
}

func checkGrammar(t *testing.T, s string) {
	t.Helper()
	for _, g := range grammar {
		if got, want := g.got(s), g.re.MatchString(s); got != want {
			t.Errorf("%s %q: %v, want %v", g.name, s, got, want)
		}
	}
}

// TestGrammar tries every word of up to five letters that the grammar tells apart.
func TestGrammar(t *testing.T) {
	for _, s := range []string{strings.Repeat("a", 63), strings.Repeat("0", 64), strings.Repeat("f", 64), strings.Repeat("F", 64),
		strings.Repeat("a", 65), strings.Repeat("a", 127), strings.Repeat("a", 128), strings.Repeat("a", 129), "é", "a\n", "a:123456", "[::1]:5000", "[1:G]"} {
		checkGrammar(t, s)
	}
	const letters = "aZ0._-/:[]"
	var walk func(s string)
	walk = func(s string) {
		checkGrammar(t, s)
		if len(s) < 5 && !t.Failed() {
			for i := range len(letters) {
				walk(s + letters[i:i+1])
			}
		}
	}
	walk("")
}

func FuzzGrammar(f *testing.F) {
	f.Add("registry.example:5000")
	f.Add("a__b-c/d.e_f---g")
	f.Fuzz(checkGrammar)
}
