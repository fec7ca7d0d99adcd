package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/sandbox"
)

func eventsCommand(g *globals) *command {
	var since, until, format string
	var filters []string
	c := &command{
		Use: "events [OPTIONS]", Short: "Show what happens to sandboxes, images, volumes, networks", Args: wantArgs(0, 0),
		Long: `Shows each event when it happens, until interrupted. With --since also what was
before, and with an --until that has passed only that.`,
		Example: `  sbx events --since 1h
  sbx events -f event=die --format '{{.ID}} {{.Actor.Attributes.exitCode}}'`,
	}
	fs := c.Flags()
	fs.StringVar(&since, "since", "", "from this `TIME` on: 2026-01-02T15:04:05Z, or 10m for ten minutes ago")
	fs.StringVar(&until, "until", "", "up to this `TIME`")
	lists(fs, &filters, "filter", "f", "only these; `FILTER` is container=, event=, image=, label=KEY[=VALUE], network=, scope=local, type= or volume=")
	fs.StringVar(&format, "format", "", "`FORMAT`: json or a Go template")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		filter, err := parseEventFilters(filters)
		if err != nil {
			return err
		}
		now := time.Now()
		o := sandbox.EventOptions{New: since == "" && until == ""}
		if o.Since, err = parseTime("--since", since, now); err != nil {
			return err
		}
		if o.Until, err = parseTime("--until", until, now); err != nil {
			return err
		}
		o.Follow = o.Until.IsZero() || o.Until.After(now)
		// What is wrong with a template is said now, and not with the first event.
		if err := printEvent(io.Discard, format, &sandbox.Event{}); err != nil {
			return err
		}
		return followed(ctx, e.Events(ctx, o, func(ev *sandbox.Event) error {
			if !filter.match(ev) {
				return nil
			}
			return printEvent(c.Out(), format, ev)
		}))
	})
	return c
}

// printEvent prints one as docker events does.
func printEvent(w io.Writer, format string, ev *sandbox.Event) error {
	if format != "" {
		return printItems(w, format, nil, []*sandbox.Event{ev})
	}
	text := fmt.Sprintf("%s %s %s %s", time.Unix(0, ev.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"), ev.Type, ev.Action, ev.Actor.ID)
	var attributes []string
	for k, v := range ev.Actor.Attributes {
		attributes = append(attributes, k+"="+v)
	}
	if len(attributes) > 0 {
		slices.Sort(attributes)
		text += " (" + strings.Join(attributes, ", ") + ")"
	}
	return printLines(w, oneLine(text))
}

// oneLine keeps what an image or a command line says from moving the cursor.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// eventFilters are those of docker events.
type eventFilters struct{ by filterSet }

var eventTypes = []string{"container", "image", "network", "volume"}

func parseEventFilters(list []string) (f eventFilters, err error) {
	f.by, err = parseFilters(list, func(s, key, v string) error {
		switch key {
		case "type":
			if !slices.Contains(eventTypes, v) {
				return usagef("--filter %q: want one of %s", s, strings.Join(eventTypes, ", "))
			}
		case "container", "event", "image", "label", "network", "scope", "volume":
		default:
			return errNoFilter(s, key)
		}
		return nil
	})
	return f, err
}

func (f eventFilters) match(ev *sandbox.Event) bool {
	attributes := ev.Actor.Attributes
	// is says that the event is about an object of that type, by its name or the
	// beginning of either.
	is := func(typ, v string) bool {
		return ev.Type == typ && (strings.HasPrefix(ev.Actor.ID, v) || strings.HasPrefix(attributes["name"], v))
	}
	return f.by.match(func(key, v string) bool {
		switch key {
		case "container", "network", "volume":
			return is(key, v)
		case "type":
			return ev.Type == v
		case "scope":
			return ev.Scope == v
		case "event": // exec_start: COMMAND
			action, _, _ := strings.Cut(ev.Action, ":")
			return ev.Action == v || action == v
		case "image":
			name := attributes["image"]
			if ev.Type == "image" {
				name = attributes["name"]
			}
			return name == v || withoutTag(name) == v || path.Base(name) == v || ev.Type == "image" && is("image", v)
		case "label":
			return hasLabel(attributes, v)
		}
		return false
	})
}

// withoutTag is the name of an image without its tag.
func withoutTag(name string) string {
	if i := strings.LastIndex(name, ":"); i > strings.LastIndex(name, "/") {
		return name[:i]
	}
	return name
}
