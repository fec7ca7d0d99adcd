package sandbox

import (
	"context"
	"path/filepath"

	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// Event is something that happened to a sandbox, an image, a volume or a network,
// with Docker's keys.
type Event = events.Event

// EventOptions say which events are wanted; the zero value means all there are.
type EventOptions = events.ReadOptions

// Events calls fn for what has happened, in order, and with Follow for what happens.
func (e *Engine) Events(ctx context.Context, o EventOptions, fn func(*Event) error) error {
	return e.events.Read(ctx, o, fn)
}

func eventsDir(dataDir string) string { return filepath.Join(dataDir, "events") }

// event writes down what happened to the sandbox; attributes are keys and values.
func (s *Sandbox) event(action string, attributes ...string) {
	s.e.events.Add(events.OfSandbox(action, s.id, s.name, s.rec.ImageName(), s.start.Labels, attributes...))
}

// boxEvent is for who has only the record.
func (e *Engine) boxEvent(action, id, name string, rec *record.Config, attributes ...string) {
	e.events.Add(events.OfSandbox(action, id, name, rec.ImageName(), rec.Start.Labels, attributes...))
}

// imageEvent is told of what the image store does.
func (e *Engine) imageEvent(action, id, name string) {
	e.events.Add(events.New(events.Image, action, id, "name", name))
}

// volumeEvent is told of what the store of volumes does.
func (e *Engine) volumeEvent(action, name string) {
	e.events.Add(events.New(events.Volume, action, name, "driver", "local"))
}
