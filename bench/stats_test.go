package main

import (
	"math"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		v    []float64
		want float64
	}{
		{[]float64{3}, 3},
		{[]float64{5, 1, 3}, 3},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		given := append([]float64(nil), c.v...)
		if got := median(c.v); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.v, got, c.want)
		}
		for i := range given {
			if c.v[i] != given[i] {
				t.Errorf("median changed its argument: %v, was %v", c.v, given)
			}
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v, want NaN", got)
	}
}

func TestSpread(t *testing.T) {
	if lo, hi := spread([]float64{2, 9, 1}); lo != 1 || hi != 9 {
		t.Errorf("spread = %v, %v, want 1, 9", lo, hi)
	}
	if lo, hi := spread(nil); !math.IsNaN(lo) || !math.IsNaN(hi) {
		t.Errorf("spread of nothing = %v, %v, want NaN", lo, hi)
	}
}

// A round in which the machine was slow counts on both sides.
func TestRatio(t *testing.T) {
	for _, c := range []struct {
		name string
		a, b []float64
		want float64
	}{
		{"round by round", []float64{10, 2, 30}, []float64{20, 4, 60}, 0.5},
		{"not the ratio of the medians", []float64{1, 10, 100}, []float64{10, 10, 10}, 1},
		{"rounds that cannot be paired", []float64{10, 20, 30}, []float64{10}, 2},
		{"a round without", []float64{1, 6}, []float64{0, 3}, 2},
	} {
		if got := ratio(c.a, c.b); got != c.want {
			t.Errorf("%s: ratio(%v, %v) = %v, want %v", c.name, c.a, c.b, got, c.want)
		}
	}
	for _, c := range [][2][]float64{{nil, nil}, {{1}, nil}, {nil, {1}}} {
		if got := ratio(c[0], c[1]); !math.IsNaN(got) {
			t.Errorf("ratio(%v, %v) = %v, want NaN", c[0], c[1], got)
		}
	}
}

func TestRotated(t *testing.T) {
	v := []string{"a", "b", "c"}
	for by, want := range map[int]string{0: "abc", 1: "bca", 2: "cab", 3: "abc", 64: "bca"} {
		got := ""
		for _, s := range rotated(v, by) {
			got += s
		}
		if got != want {
			t.Errorf("rotated by %d: %s, want %s", by, got, want)
		}
	}
	if got := rotated([]string{}, 5); len(got) != 0 {
		t.Errorf("rotated nothing: %v", got)
	}
}
