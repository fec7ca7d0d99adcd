package impair

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"
)

// run sends n numbered frames and returns what arrives.
func run(t *testing.T, cfg Config, n int) ([]uint32, Stats) {
	t.Helper()
	got := make(chan uint32, 2*n)
	w := NewWay(cfg, func(b []byte) { got <- binary.BigEndian.Uint32(b) })
	b := make([]byte, 4) // one buffer: Put must copy
	for i := range n {
		binary.BigEndian.PutUint32(b, uint32(i))
		w.Put(b)
	}
	s := w.Stats()
	want := s.In + s.Duplicated - s.Lost - s.Overflow
	var out []uint32
	for uint64(len(out)) < want {
		select {
		case i := <-got:
			out = append(out, i)
		case <-time.After(10 * time.Second):
			t.Fatalf("%d frames, want %d: %+v", len(out), want, w.Stats())
		}
	}
	w.Close()
	s = w.Stats()
	if s.Out != want || len(got) != 0 || s.In != uint64(n) {
		t.Errorf("after %d frames out: %+v, %d more", len(out), s, len(got))
	}
	return out, s
}

func TestWay(t *testing.T) {
	const n = 2000
	for name, c := range map[string]struct {
		cfg                       Config
		lost, doubled, outOfOrder bool
	}{
		"perfect":   {Config{}, false, false, false},
		"loss":      {Config{Loss: 0.1}, true, false, false},
		"duplicate": {Config{Duplicate: 0.1}, false, true, false},
		"reorder":   {Config{Reorder: 0.1}, false, false, true},
		"delay":     {Config{Delay: 2 * time.Millisecond}, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, s := run(t, c.cfg, n)
			if (s.Lost != 0) != c.lost || (s.Duplicated != 0) != c.doubled || (s.Reordered != 0) != c.outOfOrder || s.Overflow != 0 {
				t.Errorf("%+v", s)
			}
			if sorted := slices.IsSorted(got); sorted == c.outOfOrder {
				t.Errorf("in order: %v", sorted)
			}
		})
	}
	t.Run("overflow", func(t *testing.T) {
		if got, s := run(t, Config{Delay: 50 * time.Millisecond, Queue: 10}, 100); len(got) != 10 || s.Overflow != 90 {
			t.Errorf("%d frames, %+v", len(got), s)
		}
	})
	t.Run("same seed", func(t *testing.T) {
		a, _ := run(t, Config{Loss: 0.2, Seed: 5}, n)
		b, _ := run(t, Config{Loss: 0.2, Seed: 5}, n)
		c, _ := run(t, Config{Loss: 0.2, Seed: 6}, n)
		if !slices.Equal(a, b) || slices.Equal(a, c) {
			t.Errorf("%d, %d and %d frames", len(a), len(b), len(c))
		}
	})
}

func TestParse(t *testing.T) {
	want := Config{Loss: 0.01, Duplicate: 0.02, Reorder: 0.5, Delay: 3 * time.Millisecond, Jitter: time.Millisecond, Queue: 9, Seed: 1 << 63}
	if got, err := Parse(want.String()); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "loss", "loss=x", "delay=3", "speed=1", "seed=-1"} {
		if c, err := Parse(bad); err == nil {
			t.Errorf("%q: %+v", bad, c)
		}
	}
}
