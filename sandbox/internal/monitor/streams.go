package monitor

import (
	"io"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/logfile"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
)

const (
	// drainPatience is how long those who are waited for may take for what they have not
	// read at the end of a detached sandbox.
	drainPatience = 10 * time.Second
	// stopPatience is how long all may, when somebody wants the end.
	stopPatience = 2 * time.Second
)

// workloadStreams are our ends of a workload's standard streams.
type workloadStreams struct {
	outputs map[string]*streams.Output // stdout and stderr; with a terminal stdout only
	first   map[string]*os.File        // the caller's sessions, until there are outputs
	logs    []*logfile.Stream
	stdin   *os.File // nil: it has none, or somebody else has it alone
	pty     *os.File
}

// openStreams makes the workload's streams and returns its ends. files are the
// caller's: the workload's own if nothing goes through the monitor, else sessions.
func (m *monitor) openStreams(files map[string]*os.File) (map[string]*os.File, error) {
	life := &m.spec.Life
	if life.Log == nil {
		return files, nil
	}
	w := &workloadStreams{first: files}
	m.mu.Lock()
	m.streams = w
	m.mu.Unlock()
	if m.spec.TTY {
		return nil, nil // init makes it: see takePty
	}
	ends := map[string]*os.File{}
	ours := map[string]*os.File{}
	fail := func(err error) (map[string]*os.File, error) {
		closeAll(ends)
		closeAll(ours)
		m.closeStreams()
		return nil, err
	}
	for _, name := range []string{"stdin", "stdout", "stderr"} {
		var err error
		if name == "stdin" && !life.OpenStdin {
			ends[name], err = os.Open(os.DevNull)
		} else {
			ends[name], ours[name], err = streams.Pipe(name == "stdin")
		}
		if err != nil {
			return fail(err)
		}
	}
	w.stdin = ours["stdin"]
	delete(ours, "stdin")
	m.run(w, ours)
	return ends, nil
}

// takePty gives the streams of a workload with a terminal their beginning.
func (m *monitor) takePty() error {
	m.mu.Lock()
	w := m.streams
	m.mu.Unlock()
	if w == nil {
		return nil
	}
	// Its reader hangs up; what is written to it has a descriptor of its own.
	r, err := streams.Dup(m.pty)
	if err != nil {
		return err
	}
	m.mu.Lock()
	w.pty = m.pty
	m.mu.Unlock()
	m.run(w, map[string]*os.File{"stdout": r})
	return nil
}

// run copies from our ends to the log and the sessions.
func (m *monitor) run(w *workloadStreams, ours map[string]*os.File) {
	kind := streams.Primary
	if m.spec.Life.Detach {
		kind = streams.Patient
	}
	outputs := map[string]*streams.Output{}
	for name, r := range ours {
		var log io.Writer
		if m.logs != nil {
			s := m.logs.Stream(name)
			w.logs = append(w.logs, s)
			log = s
		}
		o := streams.NewOutput(r, log)
		if f := w.first[name]; f != nil {
			delete(w.first, name)
			if _, err := o.Attach(f, kind); err != nil { // there is nobody before it
				f.Close()
			}
		}
		outputs[name] = o
		go o.Run()
	}
	closeAll(w.first)
	m.mu.Lock()
	defer m.mu.Unlock()
	w.outputs = outputs
}

// input is what a session needs to write to the workload; under mu. The first one
// has the input for itself if it ends with it.
func (m *monitor) input(stdin bool) (files []wire.File, letGo func()) {
	w := m.streams
	switch {
	case w == nil && m.pty != nil: // the caller's alone
		pty := m.pty
		m.pty = nil
		return []wire.File{{Name: "pty", File: pty}}, func() { pty.Close() }
	case w == nil:
	case w.pty != nil:
		return []wire.File{{Name: "pty", File: w.pty}}, func() {}
	case stdin && w.stdin != nil:
		f := w.stdin
		if !m.spec.Life.StdinOnce {
			return []wire.File{{Name: "stdin", File: f}}, func() {}
		}
		w.stdin = nil
		return []wire.File{{Name: "stdin", File: f}}, func() { f.Close() }
	}
	return nil, func() {}
}

// attachSession adds one.
func (m *monitor) attachSession(files map[string]*os.File) error {
	m.mu.Lock()
	w := m.streams
	switch {
	case m.init == nil || !m.started:
		m.mu.Unlock()
		return errNotRunning()
	case w == nil || w.outputs == nil:
		m.mu.Unlock()
		return errNotAttachable()
	case m.state.Status == record.Paused:
		m.mu.Unlock()
		return errPaused()
	}
	outputs := w.outputs
	m.mu.Unlock()
	for name, o := range outputs {
		f := files[name]
		if f == nil {
			continue
		}
		delete(files, name)
		if _, err := o.Attach(f, streams.Watching); err != nil {
			f.Close()
			return err
		}
	}
	return nil
}

// detach lets the caller go, and the sandbox go on.
func (m *monitor) detach() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams == nil || m.streams.outputs == nil {
		return errNotAttachable()
	}
	m.detached = true
	for _, o := range m.streams.outputs {
		o.Demote()
	}
	return nil
}

// closeStreams is called when no process of the sandbox is left; it returns when
// all that they wrote is where it belongs.
func (m *monitor) closeStreams() {
	m.mu.Lock()
	w, detached := m.streams, m.detached
	m.streams = nil
	m.mu.Unlock()
	if w == nil {
		return
	}
	closeAll(w.first)
	if w.stdin != nil {
		w.stdin.Close()
	}
	drained := make(chan struct{})
	go m.hurry(w, detached, drained)
	for _, o := range w.outputs {
		m.note("the sandbox's output", o.Drain())
	}
	close(drained)
	for _, s := range w.logs {
		m.note("the sandbox's log", s.Close())
	}
}

// hurry lets sessions go that take too long for the rest. The command in whose foreground
// the sandbox has run may take as long as it likes, until somebody wants the end.
func (m *monitor) hurry(w *workloadStreams, detached bool, drained <-chan struct{}) {
	var late <-chan time.Time
	if detached {
		late = time.After(drainPatience)
	}
	least := streams.Patient
	for quit := m.quit; ; {
		select {
		case <-drained:
			return
		case <-quit:
			quit, least, late = nil, streams.Watching, time.After(stopPatience)
		case <-late:
			for _, o := range w.outputs {
				o.Hangup(least)
			}
		}
	}
}
