package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/sandbox"
)

// boxRow has the keys of docker ps --format.
type boxRow struct {
	ID, Image, Command, CreatedAt, RunningFor, Ports, State, Status, Size, Names, Labels, Mounts, Networks, LocalVolumes, Platform, HealthStatus string

	labels map[string]string
}

// Label returns one of the labels, for templates.
func (r boxRow) Label(key string) string { return r.labels[key] }

var boxHeaders = map[string]string{
	"ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT", "RunningFor": "CREATED",
	"Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE", "Names": "NAMES", "Labels": "LABELS",
	"Mounts": "MOUNTS", "Networks": "NETWORKS", "LocalVolumes": "LOCAL VOLUMES",
	"Platform": "PLATFORM", "HealthStatus": "HEALTH STATUS",
}

const boxTable = "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"

func psCommand(g *globals) *command {
	var (
		all, quiet, latest bool
		noTrunc, sizes     bool
		last               int
		format             string
		filters            []string
	)
	c := &command{
		Use: "ps [OPTIONS]", Short: "List sandboxes", Args: wantArgs(0, 0), Aliases: []string{"ls", "list"},
		RunE: withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
			f, err := parseBoxFilters(filters)
			if err != nil {
				return err
			}
			if err := f.resolve(ctx, e); err != nil {
				return err
			}
			if latest {
				last = 1
			}
			all := all || last > 0 || f.status
			list, err := e.List(ctx, sandbox.Filter{All: all || f.needsAll()})
			if err != nil {
				return err
			}
			list = f.apply(list, all)
			if last > 0 {
				list = list[:min(last, len(list))]
			}
			var rows []boxRow
			for i := range list {
				rows = append(rows, newBoxRow(&list[i], noTrunc))
			}
			if sizes || strings.Contains(format, ".Size") {
				if err := addSizes(ctx, e, list, rows); err != nil {
					return err
				}
			}
			if quiet && format == "" {
				format = "{{.ID}}"
			}
			if format == "" || format == "table" {
				format = boxTable
				if sizes {
					format += "\t{{.Size}}"
				}
			}
			return printItems(c.Out(), format, boxHeaders, rows)
		}),
	}
	fs := c.Flags()
	fs.BoolVarP(&all, "all", "a", false, "also those that do not run")
	lists(fs, &filters, "filter", "f", "only these; `FILTER` is name=, id=, status=, label=KEY[=VALUE], ancestor=IMAGE, exited=CODE, health=, network=, volume=, publish=PORT[-END], expose=PORT[-END], before= or since=SANDBOX")
	fs.StringVar(&format, "format", "", "`FORMAT`: json, a Go template, or \"table TEMPLATE\"")
	fs.IntVarP(&last, "last", "n", -1, "the `N` newest, also those that do not run")
	fs.Lookup("last").DefValue = "0"
	fs.BoolVarP(&latest, "latest", "l", false, "the newest, also if it does not run")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	fs.BoolVarP(&sizes, "size", "s", false, "show what each takes on the disk")
	fs.BoolVar(&noTrunc, "no-trunc", false, "print whole ids and commands")
	return c
}

// addSizes measures: the writable layer and the log and, behind it, these and the image.
func addSizes(ctx context.Context, e *sandbox.Engine, list []sandbox.Inspection, rows []boxRow) error {
	u, err := e.DiskUsage(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		own, all := u.Of(&list[i])
		rows[i].Size = fmt.Sprintf("%s (virtual %s)", size(own), size(all))
	}
	return nil
}

func newBoxRow(in *sandbox.Inspection, whole bool) boxRow {
	command := strings.Join(append([]string{in.Path}, in.Args...), " ")
	r := boxRow{
		ID: in.ID, Image: in.Config.Image, CreatedAt: in.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		RunningFor: units.HumanDuration(time.Since(in.Created)) + " ago", Ports: portsText(in), State: in.State.Status,
		Status: statusText(in, time.Now()), Size: "N/A", Names: boxName(in), labels: in.Config.Labels,
		Platform: in.Platform, HealthStatus: "none",
	}
	if in.State.Health != nil {
		r.HealthStatus = in.State.Health.Status
	}
	if !whole {
		r.ID = r.ID[:min(12, len(r.ID))]
		if rs := []rune(command); len(rs) > 20 {
			command = string(rs[:19]) + "…"
		}
	}
	r.Command = strconv.Quote(command)
	for k, v := range in.Config.Labels {
		r.Labels += k + "=" + v + ","
	}
	labels := strings.Split(strings.TrimSuffix(r.Labels, ","), ",")
	slices.Sort(labels)
	r.Labels = strings.Join(labels, ",")
	var mounts, networks []string
	volumes := 0
	for _, m := range in.Mounts {
		name := m.Source
		if m.Name != "" {
			name = m.Name
			volumes++
		}
		if name != "" {
			mounts = append(mounts, name)
		}
	}
	for n := range in.NetworkSettings.Networks {
		networks = append(networks, n)
	}
	slices.Sort(networks)
	r.Mounts, r.Networks, r.LocalVolumes = strings.Join(mounts, ","), strings.Join(networks, ","), strconv.Itoa(volumes)
	return r
}

// statusText is Docker's.
func statusText(in *sandbox.Inspection, now time.Time) string {
	st := &in.State
	ago := func(t time.Time) string { return units.HumanDuration(max(0, now.Sub(t))) }
	switch {
	case st.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, ago(st.FinishedAt))
	case st.Paused:
		return fmt.Sprintf("Up %s (Paused)", ago(st.StartedAt))
	case st.Running:
		text := "Up " + ago(st.StartedAt)
		switch {
		case st.Health == nil:
		case st.Health.Status == "starting":
			text += " (health: starting)"
		default:
			text += " (" + st.Health.Status + ")"
		}
		return text
	case st.FinishedAt.IsZero():
		return "Created"
	}
	return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, ago(st.FinishedAt))
}

func portsText(in *sandbox.Inspection) string {
	var list []string
	for port, hosts := range in.NetworkSettings.Ports {
		if len(hosts) == 0 {
			list = append(list, port)
		}
		for _, h := range hosts {
			list = append(list, net.JoinHostPort(h.HostIP, h.HostPort)+"->"+port)
		}
	}
	slices.Sort(list)
	return strings.Join(list, ", ")
}
