package tarfuzz

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
)

// The seeds are archives to their end, also after a header was broken and mended.
func TestSeeds(t *testing.T) {
	holes := 0
	for i, b := range Seeds() {
		broken := bytes.Clone(b)
		broken[100] ^= 1 // of the mode
		for _, b := range [][]byte{b, Mend(broken)} {
			tr := tar.NewReader(bytes.NewReader(b))
			n := 0
			for {
				h, err := tr.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
					t.Fatalf("seed %d, entry %d: %v", i, n, err)
				}
				if h.Name == "s" && h.Size == 1048001 {
					holes++
				}
				n++
			}
			if n == 0 {
				t.Errorf("seed %d has no entry", i)
			}
		}
	}
	if holes == 0 {
		t.Error("no seed with a hole")
	}
	if got := string(Mend([]byte("short"))); got != "short" {
		t.Errorf("%q", got)
	}
}
