package monitor

import (
	"strconv"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
)

// event writes down what happened to the sandbox; attributes are keys and values.
func (m *monitor) event(action string, attributes ...string) {
	m.journal.Add(m.newEvent(action, attributes...))
}

func (m *monitor) newEvent(action string, attributes ...string) *events.Event {
	name, err := m.name()
	if err != nil { // it is removed
		name = m.spec.Name
	}
	return events.OfSandbox(action, m.spec.ID, name, m.spec.Image, m.spec.Labels, attributes...)
}

// startEvents are those of a start, in Docker's order.
func (m *monitor) startEvents() {
	list := m.volumeEvents(events.Mount)
	list = append(list, m.networkEvents(events.Connect)...)
	m.journal.Add(append(list, m.newEvent(events.Start))...)
}

// endEvents are those of the end of what startEvents told of.
func (m *monitor) endEvents() {
	list := append(m.networkEvents(events.Disconnect), m.volumeEvents(events.Unmount)...)
	m.journal.Add(list...)
}

func (m *monitor) networkEvents(action string) []*events.Event {
	mode := m.spec.Network.Mode
	typ := map[string]string{"host": "host", "none": "null"}[mode]
	if typ == "" {
		typ = "bridge"
	}
	return []*events.Event{events.New(events.Network, action, mode, "container", m.spec.ID, "name", mode, "type", typ)}
}

func (m *monitor) volumeEvents(action string) (list []*events.Event) {
	for _, v := range m.spec.Mounts {
		if v.Type != fsoverlay.TypeVolume {
			continue
		}
		e := events.New(events.Volume, action, v.Source, "container", m.spec.ID, "driver", "local")
		if action == events.Mount {
			a := e.Actor.Attributes
			a["destination"], a["propagation"], a["read/write"] = v.Target, v.Propagation, strconv.FormatBool(!v.ReadOnly)
		}
		list = append(list, e)
	}
	return list
}

// volumes is the user's store of them.
func (m *monitor) volumes() *fsoverlay.Volumes {
	return &fsoverlay.Volumes{Root: m.spec.VolumesDir, Logger: m.log, Event: func(action, name string) {
		m.journal.Add(events.New(events.Volume, action, name, "driver", "local"))
	}}
}
