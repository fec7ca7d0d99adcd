package events

import (
	"bytes"
	"os"
	"testing"

	"github.com/rootless-sbx/sbx/sandbox/internal/seqfile"
)

// FuzzRead reads a journal that anybody may have written, and adds to it: what was
// read before is read again, and then the new event.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"status":"start","id":"a","Type":"container","Action":"start","Actor":{"ID":"a","Attributes":{"name":"x"}},"scope":"local","time":1,"timeNano":1}` + "\n"))
	f.Add([]byte("{\"Type\":\"container\",\"Action\":\"die\",\"Actor\":{\"Attributes\":null}}\nx\n\n{"))
	f.Add(append(bytes.Repeat([]byte("x"), 5*maxLine), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(seqfile.Name(dir, 1), b, 0o600); err != nil {
			t.Fatal(err)
		}
		j := &Journal{Dir: dir}
		read := func() (n int, last *Event) {
			err := j.Read(t.Context(), ReadOptions{}, func(e *Event) error {
				if e.Type == "" || e.Action == "" {
					t.Errorf("an event of nothing: %+v", e)
				}
				if line, err := e.encode(); err != nil || len(line) > 4*maxLine+4096 {
					t.Errorf("%d bytes, %v", len(line), err)
				}
				n, last = n+1, e
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return n, last
		}
		before, _ := read()
		j.Add(New(Container, Start, "new"))
		if n, last := read(); n != before+1 || last.Actor.ID != "new" {
			t.Fatalf("%d events, then %d, the last %+v", before, n, last)
		}
	})
}
