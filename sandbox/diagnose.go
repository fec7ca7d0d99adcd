package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/internal/atomicfile"
	"github.com/rootless-sbx/sbx/sandbox/internal/doctor"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// Check is one prerequisite, as sbx doctor shows it.
type Check = doctor.Check

// Choice is a rung of a ladder: what is used here, and why not a better one.
type Choice struct {
	What   string `json:"what"`
	Chosen string `json:"chosen"`
	Why    string `json:"why,omitempty"`
}

// Report is everything that Diagnose found.
type Report struct {
	OK      bool     `json:"ok"` // sandboxes can run
	Checks  []Check  `json:"checks"`
	Choices []Choice `json:"choices"`
}

// Diagnose checks what this machine offers. It works where NewEngine does not.
func Diagnose(ctx context.Context, opts Options) *Report {
	r := &Report{OK: true, Checks: doctor.Run(ctx, doctor.Env{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"), UserName: userName()})}
	e, err := NewEngine(opts)
	var de *DirError
	switch {
	case errors.As(err, &de):
		r.add(Check{Name: "directories", Status: doctor.Missing, Detail: de.what(), Fix: de.fix()})
	case err != nil:
		r.add(Check{Name: "engine", Status: doctor.Missing, Detail: err.Error()})
	default:
		r.add(doctor.Directories(os.Geteuid(), e.dataDir, e.runtimeDir))
		choices, checks := e.choices(ctx)
		r.Choices = choices
		for _, c := range checks {
			r.add(c)
		}
	}
	return r
}

// add appends a check without which nothing runs.
func (r *Report) add(c Check) {
	r.Checks = append(r.Checks, c)
	if c.Status == doctor.Missing {
		r.OK = false
	}
}

func userName() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

// SystemInfo is what sbx info shows.
type SystemInfo struct {
	Version             string
	DataDir, RuntimeDir string
	Kernel              string
	Images, Running     int
	Choices             []Choice

	// With docker info's keys.
	Name, ServerVersion, Driver, DockerRootDir                         string
	KernelVersion, OperatingSystem, OSType, Architecture               string
	NCPU                                                               int
	MemTotal                                                           int64
	Containers, ContainersRunning, ContainersPaused, ContainersStopped int
}

// describe fills in what is known of the machine.
func (i *SystemInfo) describe() {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err == nil {
		i.Kernel = unix.ByteSliceToString(uts.Release[:])
		i.Architecture = unix.ByteSliceToString(uts.Machine[:])
		i.Name = unix.ByteSliceToString(uts.Nodename[:])
	}
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err == nil {
		i.MemTotal = int64(mem.Totalram) * int64(mem.Unit)
	}
	if b, err := os.ReadFile("/etc/os-release"); err == nil {
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
				i.OperatingSystem = strings.Trim(v, "\"'\n")
			}
		}
	}
	i.KernelVersion, i.OSType, i.NCPU, i.DockerRootDir = i.Kernel, runtime.GOOS, runtime.NumCPU(), i.DataDir
}

// Info describes the engine.
func (e *Engine) Info(ctx context.Context) (*SystemInfo, error) {
	info := &SystemInfo{DataDir: e.dataDir, RuntimeDir: e.runtimeDir}
	info.describe()
	store, err := e.Images()
	if err != nil {
		return nil, err
	}
	imgs, err := store.List(ctx)
	if err != nil {
		return nil, err
	}
	info.Images = len(imgs)
	boxes, err := e.List(ctx, Filter{All: true})
	if err != nil {
		return nil, err
	}
	info.Containers = len(boxes)
	for _, b := range boxes {
		switch {
		case b.State.Paused:
			info.ContainersPaused++
		case b.State.Running:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	info.Running = info.ContainersRunning + info.ContainersPaused
	info.Choices, _ = e.choices(ctx)
	for _, c := range info.Choices {
		if c.What == "storage driver" {
			info.Driver = c.Chosen
		}
	}
	return info, nil
}

// choices goes down each ladder as Create does.
func (e *Engine) choices(ctx context.Context) (list []Choice, checks []Check) {
	p, err := e.resolve(ctx, "")
	if err != nil {
		return list, []Check{{Name: "user-namespace", Status: doctor.Missing, Detail: err.Error(), Fix: FixOf(err)}}
	}
	list = append(list, Choice{"user namespace", string(p.mapping.Mode), p.mapping.Reason})
	for _, r := range p.storage {
		c := Check{Name: "storage-" + r.Driver, Status: doctor.OK, Detail: "works", Fix: r.Fix}
		if !r.OK {
			c.Status, c.Detail = doctor.Degraded, r.Reason
		}
		checks = append(checks, c)
	}
	driver, err := fsoverlay.Choose(p.storage, "")
	if err != nil {
		return list, append(checks, Check{Name: "storage", Status: doctor.Missing, Detail: err.Error(), Fix: FixOf(err)})
	}
	list = append(list, Choice{"storage driver", driver, firstReason(p.storage, driver)})
	link, why := linkChoice()
	return append(list, Choice{"link driver", link, why}), checks
}

func firstReason(results []fsoverlay.ProbeResult, chosen string) string {
	for _, r := range results {
		if r.Driver == chosen {
			return ""
		}
		if !r.OK {
			return r.Driver + ": " + r.Reason
		}
	}
	return ""
}

// linkChoice tells which link a sandbox gets: inside its namespaces the device's
// mode counts, as here.
func linkChoice() (driver, why string) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return "tap", ""
	}
	return "packet", err.Error()
}

// storageProbe returns what the storage drivers can do. The probe mounts for real
// and costs tens of milliseconds, so what it found is kept for this kernel and
// these programs.
func (e *Engine) storageProbe(ctx context.Context, m *userns.Mapping) ([]fsoverlay.ProbeResult, error) {
	key, err := fsoverlay.Prober{}.ProbeKey(e.dataDir)
	if err != nil {
		return nil, err
	}
	key += " " + m.Key()
	path := filepath.Join(e.dataDir, "storage-"+string(m.Mode)+".json")
	var cached fsoverlay.ProbeCache
	if b, err := os.ReadFile(path); err == nil && json.Unmarshal(b, &cached) == nil && cached.Valid(key) {
		return cached.Results, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	results, err := e.probeStorage(ctx, m)
	if err != nil {
		return nil, fmt.Errorf("probe the storage drivers: %w", err)
	}
	b, err := json.Marshal(fsoverlay.ProbeCache{Key: key, Results: results})
	if err != nil {
		return nil, err
	}
	return results, atomicfile.Write(path, b)
}

// LogoutNote says what becomes of detached sandboxes when the user logs out, "" if
// they stay.
func (e *Engine) LogoutNote() string {
	c := doctor.Logout(userName())
	if c.Status == doctor.OK || !strings.HasPrefix(e.runtimeDir, "/run/user/") {
		return ""
	}
	return strings.TrimPrefix(c.Detail, "off: ") + "; to keep them: " + c.Fix
}
