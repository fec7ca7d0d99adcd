package resident

import (
	"os"
	"slices"
	"strings"
	"testing"
)

const smaps = `00400000-00ea3000 r-xp 00000000 fe:00 1234                               /opt/sbx
Size:              10892 kB
Rss:                7208 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00ea3000-01500000 r--p 00aa3000 fe:00 1234                               /opt/sbx
Rss:                5636 kB
Anonymous:             4 kB
01500000-01600000 r--p 00aa3000 fe:00 1234                               /opt/sbx
Anonymous:             0 kB
01600000-01700000 rw-p 01100000 fe:00 1234                               /opt/sbx
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 99                         /lib/other
Anonymous:             0 kB
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
`

func TestFileOnly(t *testing.T) {
	want := []area{{0x400000, 0xea3000}, {0x1500000, 0x1600000}}
	if got := fileOnly(strings.NewReader(smaps), "/opt/sbx"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := fileOnly(strings.NewReader("x:\n0-1\nAnonymous: 0 kB"), "/opt/sbx"); len(got) != 0 {
		t.Errorf("garbage: %v", got)
	}
}

// The program runs on.
func TestTrim(t *testing.T) {
	mapped := func() (n int) {
		f, err := os.Open("/proc/self/smaps")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		exe, err := os.Readlink("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		return len(fileOnly(f, exe))
	}
	if mapped() == 0 {
		t.Fatal("this program has no area of its own file")
	}
	for range 3 {
		Trim()
	}
	if mapped() == 0 {
		t.Error("the areas are gone")
	}
}
