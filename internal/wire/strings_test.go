package wire

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestStrings(t *testing.T) {
	for _, want := range []Strings{nil, {}, {"a", "ä", ""}, {"a", "\xff\xfe", `{"bytes":"eA=="}`, "\xc3"}} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Strings
		if err := json.Unmarshal(b, &got); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q came as %q by %s: %v", want, got, b, err)
		}
	}
	for _, bad := range []string{`"a"`, `[1]`, `[{"bytes":"*"}]`, `[[]]`} {
		var got Strings
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s was read as %q", bad, got)
		}
	}
}
