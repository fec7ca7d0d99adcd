package netstack

import (
	"sync"
	"testing"
	"time"
)

// TestTurnIsOver: a turn ends by time, and sooner if the frames make work for others.
func TestTurnIsOver(t *testing.T) {
	for _, test := range []struct {
		name   string
		frames int
		extra  time.Duration
		worked time.Duration
		over   bool
	}{
		{"first frame of a long pause", 0, 0, time.Hour, false},
		{"short work", 63, 0, 0, false},
		{"long work", 63, 0, turn, true},
		{"the time is asked for now and then", 62, 0, turn, false},
		{"work for others", 1, turn, 0, true},
		{"a little of both", 63, turn / 2, turn / 2, true},
	} {
		a := account{frames: test.frames, began: time.Now().Add(-test.worked)}
		a.charge(test.extra)
		if got := a.over(); got != test.over {
			t.Errorf("%s: over %v", test.name, got)
		}
	}
}

// TestTurnHasPassed: the first piece begins a turn, and the time is asked for at each.
func TestTurnHasPassed(t *testing.T) {
	for _, test := range []struct {
		name   string
		pieces int
		worked time.Duration
		passed bool
	}{
		{"first piece", 0, time.Hour, false},
		{"second piece", 1, turn, true},
		{"short pieces", 2, 0, false},
		{"another long one", 2, turn, true},
	} {
		a := account{frames: test.pieces, began: time.Now().Add(-test.worked)}
		if got := a.passed(); got != test.passed {
			t.Errorf("%s: passed %v", test.name, got)
		}
	}
}

// TestTurnsWait: all who wait go on, also when the network is closed meanwhile; what a
// turn was exceeded by is charged to the next one.
func TestTurnsWait(t *testing.T) {
	var ts turns
	if err := ts.init(); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a := account{turns: &ts, again: make(chan struct{}, 1)}
			for j := range 1000 {
				a.began = time.Now()
				a.charge(turn + turn/4)
				a.wait()
				if a.extra < turn/4 || a.extra > turn/2 || a.frames != 0 {
					t.Errorf("after a turn: %+v", a)
					return
				}
				a.rest()
				if i == 0 && j == 500 {
					if err := ts.close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}
