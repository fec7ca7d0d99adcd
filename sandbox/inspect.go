package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// Inspection is what is known about a sandbox, with the keys of docker inspect. What
// sbx has no notion of is left out.
type Inspection struct {
	ID             string `json:"Id"`
	Created        time.Time
	Path           string
	Args           []string
	State          InspectState
	Image          string
	ResolvConfPath string
	HostnamePath   string
	HostsPath      string
	LogPath        string
	LogLost        int64  `json:",omitempty"` // bytes of output that could not be logged
	Name           string // with a slash before it, as with Docker
	RestartCount   int
	Driver         string
	Platform       string
	HostConfig     InspectHost
	GraphDriver    InspectGraph
	// What it takes on the disk, alone and with its image; nil unless it was measured.
	SizeRw, SizeRootFs *int64 `json:",omitempty"`
	Mounts             []InspectMount
	Config             InspectConfig
	NetworkSettings    InspectNetwork
}

// InspectState is what has become of it.
type InspectState struct {
	Status                                       string
	Running, Paused, Restarting, OOMKilled, Dead bool
	Pid                                          int
	ExitCode                                     int
	Error                                        string
	StartedAt, FinishedAt                        time.Time
	Health                                       *Health        `json:",omitempty"`
	Monitor                                      InspectMonitor `json:",omitzero"`
}

// InspectMonitor is the process that owns a sandbox while it runs.
type InspectMonitor struct {
	Pid int
	// Kept are rights that it could not shed, by the stage of its confinement, and why.
	Kept map[string]string `json:",omitempty"`
}

// Health is what the health checks found.
type Health = proto.Health

// InspectHost is what the host does for it.
type InspectHost struct {
	cgroup.Limits
	Binds           []string
	LogConfig       InspectLog
	NetworkMode     string
	PortBindings    map[string][]PortBinding
	RestartPolicy   InspectRestart
	AutoRemove      bool
	CapAdd, CapDrop []string
	DNS             []string `json:"Dns"`
	DNSOptions      []string `json:"DnsOptions"`
	DNSSearch       []string `json:"DnsSearch"`
	ExtraHosts      []string
	Links           []string
	GroupAdd        []string
	CgroupnsMode    string
	IpcMode         string
	PidMode         string
	Privileged      bool
	OomScoreAdj     int
	ReadonlyRootfs  bool
	SecurityOpt     []string
	UsernsMode      string
	ShmSize         int64
	Runtime         string
	Init            bool
	Sysctls         map[string]string `json:",omitempty"`
	Tmpfs           map[string]string `json:",omitempty"`
	Ulimits         []units.Ulimit
}

// InspectLog is where its output goes.
type InspectLog struct {
	Type   string
	Config map[string]string
}

// InspectRestart is its restart policy.
type InspectRestart struct {
	Name              string
	MaximumRetryCount int
}

// InspectGraph says where its root comes from. MergedDir is a mount in the sandbox's
// own mount namespace: from outside, /proc/PID/root.
type InspectGraph struct {
	Name string
	Data struct{ LowerDir, MergedDir, UpperDir, WorkDir string }
}

// InspectMount is one of its mounts.
type InspectMount struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
	// Allow is what the workload may do in it, if that was said.
	Allow []string `json:",omitempty"`
}

// InspectConfig is what it was made of.
type InspectConfig struct {
	Hostname, Domainname                    string
	User                                    string
	AttachStdin, AttachStdout, AttachStderr bool
	ExposedPorts                            map[string]struct{} `json:",omitempty"`
	Tty, OpenStdin, StdinOnce               bool
	Env, Cmd                                []string
	Healthcheck                             *InspectHealthcheck `json:",omitempty"`
	Image                                   string
	Volumes                                 map[string]struct{}
	WorkingDir                              string
	Entrypoint                              []string
	Labels                                  map[string]string
	StopSignal                              string
	StopTimeout                             int
}

// InspectHealthcheck is how its health is checked; zero means the default.
type InspectHealthcheck struct {
	Test          []string
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// PortBinding is one host port.
type PortBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// Inspect describes the sandbox.
func (s *Sandbox) Inspect(ctx context.Context) (*Inspection, error) {
	st, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	in := s.e.inspection(s.id, s.name, s.rec, st)
	return &in, nil
}

// List returns the sandboxes that the filter lets pass, the newest first. Those whose
// monitor was killed are repaired.
func (e *Engine) List(ctx context.Context, f Filter) ([]Inspection, error) {
	ids, err := boxdir.List(e.containers())
	if err != nil {
		return nil, err
	}
	states := map[string]*record.State{}
	var alive []string
	for _, id := range ids {
		st, err := record.ReadState(filepath.Join(e.containers(), id))
		if errors.Is(err, fs.ErrNotExist) {
			continue // being made or removed
		}
		if err != nil {
			e.log.Warn("a sandbox's state cannot be read", "err", err)
			continue
		}
		states[id] = st
		if st.Alive() {
			alive = append(alive, id)
		}
	}
	owned, err := boxdir.Owned(ctx, e.containers(), alive)
	if err != nil {
		return nil, err
	}
	var list []Inspection
	for id, st := range states {
		if st.Alive() && !owned[id] {
			if st, err = e.stateOf(ctx, id); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return nil, err
			}
		}
		if !f.All && !st.Alive() {
			continue
		}
		path := filepath.Join(e.containers(), id)
		rec, err := record.ReadConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			e.log.Warn("a sandbox's record cannot be read", "err", err)
			continue
		}
		name, err := boxdir.Name(e.containers(), id)
		if err != nil {
			continue // it is being removed
		}
		in := e.inspection(id, name, rec, st)
		if f.Match == nil || f.Match(&in) {
			list = append(list, in)
		}
	}
	slices.SortFunc(list, func(a, b Inspection) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, nil
}

// Filter says which sandboxes are wanted: those that run, unless All is set, and of
// those the ones that Match, if there is one, returns true for.
type Filter struct {
	All   bool
	Match func(*Inspection) bool
}

func (e *Engine) inspection(id, name string, rec *record.Config, st *record.State) Inspection {
	dir := filepath.Join(e.containers(), id)
	start := &rec.Start
	in := Inspection{
		ID: id, Created: rec.Created, Name: "/" + name, Image: rec.ImageID, Driver: start.Driver, Platform: "linux",
		ResolvConfPath: filepath.Join(dir, "resolv.conf"), HostnamePath: filepath.Join(dir, "hostname"), HostsPath: filepath.Join(dir, "hosts"),
		RestartCount: st.Restarts, LogLost: st.LogLost,
		State: InspectState{
			Status: st.Status, Running: st.Alive(), Paused: st.Status == record.Paused,
			Restarting: st.Status == record.Restarting, OOMKilled: st.OOMKilled, Dead: st.Status == record.Dead,
			Pid: st.PID, ExitCode: st.ExitCode, Error: st.Error, StartedAt: st.StartedAt, FinishedAt: st.FinishedAt, Health: st.Health,
		},
		HostConfig: inspectHost(rec),
		Config:     inspectConfig(rec),
		Mounts:     e.inspectMounts(rec, st),
	}
	if st.Alive() {
		in.State.Monitor = InspectMonitor{Pid: st.MonitorPID, Kept: st.Kept}
	}
	if args := start.Process.Args; len(args) > 0 {
		in.Path, in.Args = args[0], args[1:]
	}
	if l := start.Life.Log; l != nil && l.Driver == "json-file" {
		in.LogPath = filepath.Join(dir, "log")
	}
	in.GraphDriver.Name = start.Driver
	d := &in.GraphDriver.Data
	d.LowerDir = strings.Join(append([]string{filepath.Join(dir, "init")}, start.Lowers...), ":")
	d.MergedDir, d.UpperDir, d.WorkDir = filepath.Join(dir, "merged"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if id := start.Network.Container(); id != "" { // both have the same files
		of := filepath.Join(e.containers(), id)
		in.ResolvConfPath, in.HostnamePath, in.HostsPath = filepath.Join(of, "resolv.conf"), filepath.Join(of, "hostname"), filepath.Join(of, "hosts")
	}
	in.HostConfig.Links = linkTexts(name, &start.Network)
	in.NetworkSettings = e.inspectNetworks(name, rec, st)
	return in
}

func inspectHost(rec *record.Config) InspectHost {
	start := &rec.Start
	n, life := &start.Network, &start.Life
	h := InspectHost{
		Limits:      rec.Resources,
		NetworkMode: networkMode(n), AutoRemove: !life.Keep, PortBindings: wantedBindings(n.Ports),
		RestartPolicy: InspectRestart{life.Restart.Name, life.Restart.Max},
		CapAdd:        start.Process.CapAdd, CapDrop: start.Process.CapDrop, DNS: n.DNS, DNSOptions: n.DNSOptions, DNSSearch: n.DNSSearch,
		ExtraHosts: n.AddHost, GroupAdd: start.Process.ExtraGroups, CgroupnsMode: "private", IpcMode: "private", ReadonlyRootfs: start.ReadOnly,
		UsernsMode: string(rec.UserNS), ShmSize: cmp.Or(start.ShmSize, 64<<20), Runtime: "sbx", Init: start.Init,
		Sysctls: start.Sysctls, Ulimits: start.Process.Rlimits,
		LogConfig: InspectLog{Type: "none", Config: map[string]string{}},
	}
	if adj := start.Process.OOMScoreAdj; adj != nil {
		h.OomScoreAdj = *adj
	}
	if start.Process.NoNewPrivs {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if s := start.Process.Seccomp; s != "" {
		h.SecurityOpt = append(h.SecurityOpt, "seccomp="+s)
	}
	if start.SystemPathsUnconfined {
		h.SecurityOpt = append(h.SecurityOpt, "systempaths=unconfined")
	}
	if l := life.Log; l != nil {
		h.LogConfig.Type = l.Driver
		if l.MaxSize > 0 {
			h.LogConfig.Config["max-size"] = strconv.FormatInt(l.MaxSize, 10)
		}
		if l.MaxFiles > 0 {
			h.LogConfig.Config["max-file"] = strconv.Itoa(l.MaxFiles)
		}
	}
	for _, m := range start.Mounts {
		switch {
		case m.Type == fsoverlay.TypeTmpfs:
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[m.Target] = m.TmpfsOptions()
		case m.Source != "":
			b := m.Source + ":" + m.Target
			switch {
			case m.Allow != 0:
				b += ":allow=" + m.Allow.String()
			case m.ReadOnly:
				b += ":ro"
			}
			h.Binds = append(h.Binds, b)
		}
	}
	return h
}

func inspectConfig(rec *record.Config) InspectConfig {
	start := &rec.Start
	c := InspectConfig{
		Hostname: start.Hostname, User: start.Process.User, Image: rec.ImageName(),
		AttachStdin: rec.AttachStdin, AttachStdout: rec.AttachStdout, AttachStderr: rec.AttachStderr,
		Tty: start.TTY, OpenStdin: start.Life.OpenStdin, StdinOnce: start.Life.StdinOnce,
		Env: start.Process.Env, Cmd: rec.Cmd, Entrypoint: rec.Entrypoint, Healthcheck: (*InspectHealthcheck)(start.Life.Healthcheck),
		WorkingDir: start.Process.Cwd, Labels: start.Labels,
		StopSignal: workload.SignalName(start.Life.StopSignal), StopTimeout: int(start.Life.StopTimeout / time.Second),
	}
	for _, p := range rec.Exposed {
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		c.ExposedPorts[p] = struct{}{}
	}
	for _, m := range start.Mounts {
		if m.Type == fsoverlay.TypeVolume && m.Source == "" {
			if c.Volumes == nil {
				c.Volumes = map[string]struct{}{}
			}
			c.Volumes[m.Target] = struct{}{}
		}
	}
	return c
}

func (e *Engine) inspectMounts(rec *record.Config, st *record.State) []InspectMount {
	list := []InspectMount{}
	for _, m := range rec.Start.Mounts {
		x := InspectMount{Type: m.Type, Source: m.Source, Destination: m.Target, RW: m.Writable(), Propagation: m.Propagation, Allow: m.Allow.Words()}
		if m.Type == fsoverlay.TypeVolume {
			x.Name, x.Driver = cmp.Or(m.Source, st.Volumes[m.Target]), "local"
			x.Source = ""
			if x.Name != "" {
				x.Source = filepath.Join(e.Volumes().Root, x.Name, "_data")
			}
		}
		list = append(list, x)
	}
	return list
}

// Bindings are published ports by the sandbox's port.
func Bindings(specs ...portfwd.Spec) map[string][]PortBinding {
	out := map[string][]PortBinding{}
	for _, p := range specs {
		key := portKey(p)
		hosts := []string{p.ParentIP}
		if p.ParentIP == "" {
			hosts = []string{"0.0.0.0", "::"}
		}
		for _, h := range hosts {
			out[key] = append(out[key], PortBinding{h, strconv.Itoa(p.ParentPort)})
		}
	}
	return out
}

// wantedBindings are the same as they were asked for: what was left open is empty.
func wantedBindings(specs []portfwd.Spec) map[string][]PortBinding {
	out := map[string][]PortBinding{}
	for _, p := range specs {
		host := ""
		switch {
		case p.ParentEnd != 0:
			host = fmt.Sprintf("%d-%d", p.ParentPort, p.ParentEnd)
		case p.ParentPort != 0:
			host = strconv.Itoa(p.ParentPort)
		}
		key := portKey(p)
		out[key] = append(out[key], PortBinding{p.ParentIP, host})
	}
	return out
}

// portKey is Docker's name of a port of the sandbox.
func portKey(p portfwd.Spec) string {
	return strconv.Itoa(p.ChildPort) + "/" + strings.TrimRight(p.Proto, "46")
}
