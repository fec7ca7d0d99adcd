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

// networkEvents are about the networks that the sandbox is on; on another one's it is
// not by itself.
func (m *monitor) networkEvents(action string) (list []*events.Event) {
	event := func(id, name, typ string) {
		list = append(list, events.New(events.Network, action, id, "container", m.spec.ID, "name", name, "type", typ))
	}
	switch mode := m.spec.Network.Mode; mode {
	case "host":
		event(mode, mode, "host")
	case "none":
		event(mode, mode, "null")
	}
	for _, a := range m.spec.Network.Attachments {
		event(a.NetworkID, a.Network.PublicName(), a.Network.Driver)
	}
	return list
}

func (m *monitor) volumeEvents(action string) (list []*events.Event) {
	for _, v := range m.spec.Mounts {
		if v.Type != fsoverlay.TypeVolume {
			continue
		}
		e := events.New(events.Volume, action, v.Source, "container", m.spec.ID, "driver", "local")
		if action == events.Mount {
			a := e.Actor.Attributes
			a["destination"], a["propagation"], a["read/write"] = v.Target, v.Propagation, strconv.FormatBool(v.Writable())
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
