package proto

import (
	"time"

	"golang.org/x/sys/unix"
)

// Mark is the end of a stage of a sandbox's life in one of its processes. At is on
// CLOCK_MONOTONIC, which they all share.
type Mark struct {
	Process string        `json:"p"`
	Stage   string        `json:"s"`
	At      time.Duration `json:"t"`
}

// Marks are those of one process, in their order.
type Marks struct {
	Process string
	List    []Mark
}

// begun is when this process came to do its role.
var begun time.Duration

// Begin notes that the process has been loaded: the first thing that it does.
func Begin() { begun = monotonic() }

// NewMarks begins with the load of the process.
func NewMarks(process string) *Marks {
	return &Marks{Process: process, List: []Mark{{process, "loaded", begun}}}
}

// Add ends a stage.
func (m *Marks) Add(stage string) {
	m.List = append(m.List, Mark{m.Process, stage, monotonic()})
}

func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0 // not on Linux
	}
	return time.Duration(t.Nano())
}
