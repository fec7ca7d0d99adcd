package monitor

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"os"
	"time"

	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
)

// Defaults and limits of health checks, Docker's.
const (
	healthInterval      = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthOutput        = 4096 // bytes of a check's output that are kept
	healthLog           = 5    // checks
)

// watchHealth begins the checks of a run; stop returns when the last has ended.
func (m *monitor) watchHealth() (stop func()) {
	h := m.spec.Life.Healthcheck
	if h == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	m.setHealth(proto.Health{Status: "starting", Log: []proto.HealthResult{}})
	go func() {
		defer close(done)
		m.checkHealth(ctx, h)
	}()
	return func() {
		cancel()
		<-done
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.state.Health != nil {
			m.state.Health.Status = "unhealthy"
		}
	}
}

func (m *monitor) setHealth(h proto.Health) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.state.Health = &h
	if err := m.save(); err != nil {
		m.log.Warn("write the sandbox's health", "err", err)
	}
}

func (m *monitor) checkHealth(ctx context.Context, h *proto.Healthcheck) {
	begin := time.Now()
	state := proto.Health{Status: "starting"}
	for {
		young := time.Since(begin) < h.StartPeriod
		pause := cmp.Or(h.Interval, healthInterval)
		if young && state.Status == "starting" {
			pause = cmp.Or(h.StartInterval, healthStartInterval)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		n := m.pauseCount()
		if m.pausedSince(n) {
			continue
		}
		r := m.probe(ctx, h)
		trim()
		if ctx.Err() != nil {
			return
		}
		if m.pausedSince(n) {
			continue // it says nothing
		}
		was := state.Status
		if r.ExitCode == 0 {
			state.Status, state.FailingStreak = "healthy", 0
		} else if !young || state.Status != "starting" {
			state.FailingStreak++
			if state.FailingStreak >= cmp.Or(h.Retries, healthRetries) {
				state.Status = "unhealthy"
			}
		}
		if state.Status != was {
			m.event(events.HealthStatus + ": " + state.Status)
		}
		log := append(append([]proto.HealthResult{}, state.Log...), r)
		state.Log = log[max(0, len(log)-healthLog):]
		m.setHealth(state)
	}
}

// probe makes one check. One that takes too long is killed, and has failed.
func (m *monitor) probe(ctx context.Context, h *proto.Healthcheck) proto.HealthResult {
	begin := time.Now()
	r := proto.HealthResult{Start: begin.UTC(), ExitCode: -1}
	end := func() time.Time { return begin.Add(time.Since(begin)).UTC() } // whoever sets the clock meanwhile
	timeout := cmp.Or(h.Timeout, healthInterval)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	args := h.Test[1:]
	if h.Test[0] == "CMD-SHELL" {
		args = append([]string{"/bin/sh", "-c"}, args...)
	}
	w, out, err := streams.Pipe(false)
	if err != nil {
		r.End, r.Output = end(), err.Error()
		return r
	}
	p, err := m.execute(ctx, proto.Exec{Args: args}, map[string]*os.File{"stdout": w, "stderr": w}, func() {})
	w.Close()
	if err != nil {
		out.Close()
		r.End, r.Output, r.ExitCode = end(), err.Error(), exitOf(err)
		return r
	}
	text := make(chan []byte, 1)
	go func() {
		var b bytes.Buffer
		io.CopyN(&b, out, healthOutput) // its end is that of the check, or ours
		io.Copy(io.Discard, out)
		text <- b.Bytes()
	}()
	stop := context.AfterFunc(ctx, func() { p.child.Kill() })
	x := p.wait()
	late := !stop()
	// Something that it has left may hold the pipe.
	out.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	r.Output = string(bytes.ToValidUTF8(<-text, []byte("\uFFFD")))
	out.Close()
	r.End, r.ExitCode = end(), x.Code
	if late {
		r.ExitCode, r.Output = -1, "Health check exceeded timeout ("+timeout.String()+")"
	}
	return r
}
