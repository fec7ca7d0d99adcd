// Package events is the journal of what happens to a user's sandboxes, images,
// volumes and networks. There is no daemon that could tell: whoever does something
// writes it down, and whoever wants to know reads and waits.
//
// The journal is a directory of files 00000001.json, 00000002.json, ... with one
// event a line, in Docker's JSON, and a lock. A writer takes the lock, stamps the
// time, appends the line with one write(2), and starts the next file when the last
// one is full; the oldest go. So the times of one boot only grow, and a file that
// has a successor is complete. Readers take no lock: one that follows waits in
// inotify.
//
// A line that was cut short, by kill -9 or a full disk, is ended by the next writer
// and passed over by readers. Nothing that is worth an event fails because the event
// cannot be written.
//
// # Limits
//
// 4 files of 1 MiB: some thousands of events. An event of more than 16 KiB goes
// without its labels. A lock that a stopped process holds is waited for 2 s, and then
// the line is appended without it.
package events

import (
	"encoding/json"
	"time"
)

// Types of what events are about.
const (
	Container = "container"
	Image     = "image"
	Volume    = "volume"
	Network   = "network"
)

// What happens to containers.
const (
	Create       = "create" // also volumes, networks
	Start        = "start"
	Restart      = "restart"
	Die          = "die" // exitCode
	OOM          = "oom"
	Kill         = "kill" // signal
	Stop         = "stop"
	Pause        = "pause"
	Unpause      = "unpause"
	Rename       = "rename" // oldName
	Update       = "update"
	Attach       = "attach"
	Detach       = "detach"
	ExecCreate   = "exec_create"   // ": COMMAND" follows; execID
	ExecStart    = "exec_start"    // likewise
	ExecDie      = "exec_die"      // execID, exitCode
	HealthStatus = "health_status" // ": healthy" follows
	Top          = "top"
	Copy         = "copy"
	Commit       = "commit"
	Export       = "export"
	Destroy      = "destroy" // also volumes, networks
)

// What happens to images, volumes and networks.
const (
	Pull       = "pull"
	Load       = "load"
	Import     = "import"
	Tag        = "tag"
	Untag      = "untag"
	Delete     = "delete"
	Mount      = "mount"
	Unmount    = "unmount"
	Connect    = "connect"
	Disconnect = "disconnect"
)

// Event has the keys of Docker's, the older ones too.
type Event struct {
	Status   string `json:"status,omitempty"`
	ID       string `json:"id,omitempty"`
	From     string `json:"from,omitempty"`
	Type     string
	Action   string
	Actor    Actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

// Actor is what the event is about.
type Actor struct {
	ID         string
	Attributes map[string]string
}

// New makes an event; attributes are keys and values in turn.
func New(typ, action, id string, attributes ...string) *Event {
	e := &Event{Type: typ, Action: action, Actor: Actor{ID: id, Attributes: map[string]string{}}, Scope: "local"}
	for i := 0; i+1 < len(attributes); i += 2 {
		e.Actor.Attributes[attributes[i]] = attributes[i+1]
	}
	return e
}

// OfSandbox makes an event about a sandbox: its labels are attributes too.
func OfSandbox(action, id, name, image string, labels map[string]string, attributes ...string) *Event {
	e := New(Container, action, id, append([]string{"image", image, "name", name}, attributes...)...)
	for k, v := range labels {
		if _, ok := e.Actor.Attributes[k]; !ok {
			e.Actor.Attributes[k] = v
		}
	}
	return e
}

// stamp sets the time and the keys that repeat others.
func (e *Event) stamp(now time.Time) {
	e.Time, e.TimeNano = now.Unix(), now.UnixNano()
	switch e.Type {
	case Container:
		e.Status, e.ID, e.From = e.Action, e.Actor.ID, e.Actor.Attributes["image"]
	case Image:
		e.Status, e.ID = e.Action, e.Actor.ID
	}
}

// encode returns the event's line. One that is too long keeps what sbx itself says.
func (e *Event) encode() ([]byte, error) {
	b, err := json.Marshal(e)
	if err == nil && len(b) >= maxLine {
		short := *e
		short.Actor.Attributes = map[string]string{}
		for _, k := range own {
			if v, ok := e.Actor.Attributes[k]; ok {
				short.Actor.Attributes[k] = v[:min(len(v), 256)]
			}
		}
		short.Action = short.Action[:min(len(short.Action), 256)]
		short.stamp(time.Unix(0, e.TimeNano))
		b, err = json.Marshal(&short)
	}
	return append(b, '\n'), err
}

// own are the attributes that are no labels.
var own = []string{
	"image", "name", "oldName", "exitCode", "signal", "execID", "container", "type", "driver", "destination", "propagation", "read/write",
}

// decode reads a line.
func decode(line []byte) (*Event, bool) {
	e := &Event{}
	if json.Unmarshal(line, e) != nil || e.Type == "" || e.Action == "" {
		return nil, false
	}
	return e, true
}
