package main

import (
	"fmt"
	"io"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
	"golang.org/x/sys/unix"
)

// stopwatch has the stages of this process that come before the sandbox's.
type stopwatch struct {
	begin  time.Duration // of the process
	stages []sandbox.Stage
}

// newStopwatch begins with the processor time that the process has used: that is
// how long ago it was executed, but for waits, and no finer clock says it.
func newStopwatch() *stopwatch {
	w := &stopwatch{begin: clock(unix.CLOCK_MONOTONIC) - clock(unix.CLOCK_PROCESS_CPUTIME_ID)}
	w.add("loaded, command line read")
	return w
}

func (w *stopwatch) add(stage string) {
	w.stages = append(w.stages, sandbox.Stage{Process: "sbx", Name: stage, At: clock(unix.CLOCK_MONOTONIC)})
}

func clock(id int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(id, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// print writes the table of --timings.
func (w *stopwatch) print(out io.Writer, s *sandbox.Sandbox) {
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", float64(d)/float64(time.Millisecond)) }
	const row = "%7s %7s  %-8s %s\n"
	fmt.Fprintf(out, row, "MS", "TOOK", "PROCESS", "STAGE")
	last := map[string]time.Duration{"sbx": w.begin}
	for _, st := range append(w.stages, s.Timings()...) {
		took := ""
		if before, ok := last[st.Process]; ok {
			took = ms(st.At - before)
		}
		last[st.Process] = st.At
		fmt.Fprintf(out, row, ms(st.At-w.begin), took, st.Process, st.Name)
	}
}
