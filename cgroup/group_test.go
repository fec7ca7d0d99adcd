package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/rootless-sbx/sbx/internal/wire"
)

// hosts are the ways in which this machine gives groups, alone. There is none in a
// container and without a session; then what is tested is that New says so.
func hosts(t *testing.T) map[string]*Host {
	t.Helper()
	find := func() *Host { return Find(Options{RuntimeDir: os.Getenv("XDG_RUNTIME_DIR")}) }
	all := map[string]*Host{}
	if h := find(); len(h.Sockets) > 0 {
		h.Base = ""
		all["systemd"] = h
		if last := len(h.Sockets) - 1; last > 0 {
			h := find()
			h.Base, h.Sockets = "", h.Sockets[last:]
			all["systemd's own socket"] = h
		}
	}
	if h := find(); h.Base != "" {
		h.Sockets, h.Delegated = nil, nil
		all["subtree"] = h
	}
	if len(all) == 0 {
		refused(t, find())
	}
	return all
}

func refused(t *testing.T, h *Host) {
	t.Helper()
	_, err := h.New(t.Context(), Config{ID: "none", PID: os.Getpid()})
	var we *wire.Error
	if !errors.As(err, &we) || we.Code != CodeNoGroup || we.Fix == "" {
		t.Errorf("without any delegation: %v", err)
	}
}

// each runs a test in each way, with a monitor and an id of its own.
func each(t *testing.T, controller string, fn func(t *testing.T, h *Host, m *monitor, id string)) {
	all := hosts(t)
	for name, h := range all {
		t.Run(name, func(t *testing.T) {
			if s := all["systemd"]; s != nil && name == "subtree" {
				// When the last scope has ended, systemd takes its controllers from the groups above.
				newGroup(t, s, startMonitor(t), fmt.Sprintf("test%dk", os.Getpid()), Limits{})
			}
			have, _, _ := h.Available()
			if controller != "" && !slices.Contains(have, controller) {
				lackingController(t, h, controller)
				return
			}
			fn(t, h, startMonitor(t), fmt.Sprintf("test%d%s", os.Getpid(), path.Base(t.Name())[:1]))
		})
	}
}

// lackingController: what is not delegated is refused, and the error says what to do.
func lackingController(t *testing.T, h *Host, controller string) {
	t.Helper()
	limits := map[string]Limits{
		"cpu": {CPUShares: 512}, "memory": {Memory: 64 << 20}, "pids": {PidsLimit: 5}, "cpuset": {CpusetCPUs: "0"},
		"io": {DeviceReadBps: []DeviceRate{{"/dev/null", 1}}},
	}
	_, err := h.New(t.Context(), Config{ID: "none", PID: os.Getpid(), Limits: limits[controller]})
	var we *wire.Error
	if !errors.As(err, &we) || we.Code != CodeNoController || we.Fix == "" || !strings.Contains(we.Msg, controller) {
		t.Errorf("without %s: %v", controller, err)
	}
}

func newGroup(t *testing.T, h *Host, m *monitor, id string, l Limits) *Group {
	t.Helper()
	g, err := h.New(t.Context(), Config{ID: id, Name: "test", PID: m.cmd.Process.Pid, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Clear(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(g.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("left: %s", g.Dir())
		}
	})
	return g
}

func pathOf(t *testing.T, pid int) string {
	t.Helper()
	m, err := cgroups.ParseCgroupFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return m[""]
}

// A workload is born in its group, is frozen, thawed and killed, and nothing is left.
func TestLife(t *testing.T) {
	each(t, "", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{})
		pid := m.start("sleep", g)
		rel := strings.TrimPrefix(g.Dir(), h.Mount)
		if got := pathOf(t, pid); got != rel+"/box" {
			t.Errorf("the workload is in %s, want %s/box", got, rel)
		}
		if got := pathOf(t, m.cmd.Process.Pid); len(h.Sockets) > 0 && got != rel+"/monitor" {
			t.Errorf("the monitor is in %s, want %s/monitor", got, rel)
		}
		g, err := Open(g.Dir())
		if err != nil {
			t.Fatal(err)
		}
		if pids, err := g.Helpers(); err != nil || slices.Contains(pids, m.cmd.Process.Pid) != (len(h.Sockets) > 0) || slices.Contains(pids, pid) {
			t.Errorf("beside the workload: %v, %v", pids, err)
		}
		frozen := func(want string) {
			t.Helper()
			text, err := cgroups.ReadFile(g.box(), "cgroup.events")
			if err != nil || !strings.Contains(text, "frozen "+want) {
				t.Errorf("%q, %v, want frozen %s", text, err, want)
			}
		}
		for range 3 {
			if err := g.Freeze(t.Context()); err != nil {
				t.Fatal(err)
			}
			frozen("1")
			if err := g.Thaw(t.Context()); err != nil {
				t.Fatal(err)
			}
			frozen("0")
		}
		if err := g.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := g.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, sig := m.ended("sleep"); sig != syscall.SIGKILL {
			t.Errorf("ended by %v", sig)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(g.Dir()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("after Remove: %v", err)
		}
		m.kill()
		eventually(t, func() error { // systemd removes its scope then
			groups, err := h.List(id)
			if len(groups) > 0 {
				return fmt.Errorf("left: %s", groups[0].Dir())
			}
			return err
		})
	})
}

// A process that serves sandboxes leaves the scope of the one that has started it, which
// can then be cleared without it, and whoever asks for that first does it.
func TestSettle(t *testing.T) {
	each(t, "", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{})
		pid := m.start("sleep", g)
		was, unit := pathOf(t, pid), fmt.Sprintf("sbx-net-%s-%d.scope", id, pid)
		errs := make(chan error)
		for range 3 {
			go func() { errs <- h.Settle(t.Context(), "net-"+id, "a test", pid) }()
		}
		for range 3 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		eventually(t, func() error { // the first may have been answered last
			if got := pathOf(t, pid); len(h.Sockets) > 0 && path.Base(got) != unit || len(h.Sockets) == 0 && got != was {
				return fmt.Errorf("it was in %s and is in %s", was, got)
			}
			return nil
		})
		if len(h.Sockets) == 0 {
			return
		}
		if err := g.Clear(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, 0); err != nil {
			t.Errorf("it has ended with its old group: %v", err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
}

// Before cgroup.kill there was nothing that forks faster than it is killed, either.
func TestKillEach(t *testing.T) {
	each(t, "", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{})
		for range 5 {
			m.start("sleep", g)
		}
		if err := killEach(t.Context(), g.box()); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, sig := m.ended("sleep"); sig != syscall.SIGKILL {
				t.Errorf("ended by %v", sig)
			}
		}
	})
}

// What a monitor that was killed has left is found by its id, and a new group of the
// same id takes its place.
func TestStale(t *testing.T) {
	each(t, "", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{})
		pid := m.start("sleep", g)
		m.kill()
		groups, err := h.List(id)
		if err != nil || len(groups) != 1 || groups[0].Dir() != g.Dir() {
			t.Fatalf("%v, %v, want %s", groups, err, g.Dir())
		}
		next := startMonitor(t)
		g = newGroup(t, h, next, id, Limits{})
		eventually(t, func() error {
			if err := syscall.Kill(pid, 0); err == nil {
				return errors.New("the workload of the first runs on")
			}
			return nil
		})
		next.start("sleep", g)
		if err := g.Clear(t.Context()); err != nil {
			t.Fatal(err)
		}
		if groups, err := h.List(id); err != nil || len(groups) > 0 {
			t.Errorf("after Clear: %v, %v", groups, err)
		}
	})
}

func TestMemory(t *testing.T) {
	each(t, "memory", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{Memory: 64 << 20, MemorySwap: 64 << 20})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		told, ended := make(chan uint64, 8), make(chan error, 1)
		go func() { ended <- g.WatchOOM(ctx, func(n uint64) { told <- n }) }()
		m.start("hog", g)
		if _, sig := m.ended("hog"); sig != syscall.SIGKILL {
			t.Errorf("ended by %v", sig)
		}
		if n := <-told; n == 0 {
			t.Error("told of 0 kills")
		}
		if n, err := g.OOMKills(); err != nil || n == 0 {
			t.Errorf("%d kills, %v", n, err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		m.start("sleep", g)
		s, err := g.Stats()
		if err != nil || s.Memory.Limit != 64<<20 || s.Memory.Current == 0 || s.Memory.Peak < 32<<20 || s.Memory.SwapLimit != 0 {
			t.Errorf("%+v, %v", s.Memory, err)
		}
		if err := g.Set(Limits{Memory: 128 << 20, MemoryReservation: 16 << 20}); err != nil {
			t.Fatal(err)
		}
		want(t, g, "memory.max", "134217728")
		want(t, g, "memory.low", "16777216")
		if _, err := os.Stat(path.Join(g.box(), "memory.swap.max")); err == nil {
			want(t, g, "memory.swap.max", "134217728")
		}
		if err := g.Set(Limits{MemorySwap: -1}); err != nil {
			t.Error(err)
		}
	})
}

func want(t *testing.T, g *Group, file, want string) {
	t.Helper()
	if got, err := cgroups.ReadFile(g.box(), file); err != nil || strings.TrimSpace(got) != want {
		t.Errorf("%s is %q, %v, want %q", file, got, err, want)
	}
}

func TestCPU(t *testing.T) {
	each(t, "cpu", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{NanoCPUs: 1e8, CPUShares: 1024})
		want(t, g, "cpu.max", "10000 100000")
		want(t, g, "cpu.weight", strconv.FormatUint(cgroups.ConvertCPUSharesToCgroupV2Value(1024), 10))
		m.start("burn", g)
		eventually(t, func() error {
			s, err := g.Stats()
			if err == nil && (s.CPU.Throttled < 3 || s.CPU.ThrottledTime == 0 || s.CPU.Usage == 0 || s.CPU.Usage > s.CPU.User+s.CPU.System+1e6) {
				err = fmt.Errorf("not throttled: %+v", s.CPU)
			}
			return err
		})
		for _, tc := range []struct {
			l    Limits
			want string
		}{
			{Limits{CPUQuota: 20000, CPUPeriod: 50000}, "20000 50000"},
			{Limits{CPUQuota: -1}, "max 100000"},
		} {
			if err := g.Set(tc.l); err != nil {
				t.Error(err)
			}
			want(t, g, "cpu.max", tc.want)
		}
	})
}

// TestKeep: shares last when systemd loads its units again, also changed ones.
func TestKeep(t *testing.T) {
	each(t, "", func(t *testing.T, h *Host, m *monitor, id string) {
		have, _, _ := h.Available()
		var l Limits
		if slices.Contains(have, "cpu") {
			l.CPUShares = 512
		}
		if slices.Contains(have, "memory") {
			l.MemoryReservation = 32 << 20
		}
		g := newGroup(t, h, m, id, l)
		set := func(l Limits) {
			t.Helper()
			if err := errors.Join(g.Set(l), h.Keep(t.Context(), g, l)); err != nil {
				t.Fatal(err)
			}
		}
		if g.weightFile() != "" {
			set(Limits{BlkioWeight: 700})
		}
		shares := func() (list []string) {
			for _, f := range []string{"cpu.weight", "memory.low", "io.weight", "io.bfq.weight"} {
				list = append(list, f+" "+strings.Join(words(g.dir, f), " "))
			}
			return list
		}
		reload := func() {
			t.Helper()
			want := shares()
			if len(h.Sockets) > 0 {
				conn, err := h.dialSystemd(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.ReloadContext(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := shares(); !slices.Equal(got, want) {
				t.Errorf("%q, before systemd has loaded its units again %q", got, want)
			}
		}
		reload()
		if l.CPUShares != 0 {
			set(Limits{CPUShares: 2048})
			reload()
		}
	})
}

func TestPids(t *testing.T) {
	each(t, "pids", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{PidsLimit: 60}) // a Go program has about 6 threads
		m.start("fork", g)
		if status, sig := m.ended("fork"); syscall.Errno(status) != syscall.EAGAIN {
			t.Errorf("status %d, signal %v, want EAGAIN", status, sig)
		}
		s, err := g.Stats()
		if err != nil || s.Pids.Limit != 60 || s.Pids.Current == 0 {
			t.Errorf("%+v, %v", s.Pids, err)
		}
		if err := g.Set(Limits{PidsLimit: -1}); err != nil {
			t.Error(err)
		}
		want(t, g, "pids.max", "max")
	})
}

func TestIO(t *testing.T) {
	each(t, "io", func(t *testing.T, h *Host, m *monitor, id string) {
		disk := ""
		for _, d := range []string{"/dev/ubda", "/dev/vda", "/dev/sda"} {
			if _, err := os.Stat(d); err == nil {
				disk = d
				break
			}
		}
		if disk == "" {
			t.Fatal("no disk that this test knows")
		}
		major, minor, err := blockDevice("", disk)
		if err != nil {
			t.Fatal(err)
		}
		g := newGroup(t, h, m, id, Limits{DeviceReadBps: []DeviceRate{{disk, 1 << 20}}, DeviceWriteIOPS: []DeviceRate{{disk, 100}}})
		want(t, g, "io.max", fmt.Sprintf("%d:%d rbps=1048576 wbps=max riops=max wiops=100", major, minor))
		if _, err := g.Stats(); err != nil {
			t.Error(err)
		}
		for _, dev := range []string{"/dev/null", "/dev/no such disk"} {
			if err := g.Set(Limits{DeviceReadBps: []DeviceRate{{dev, 1}}}); err == nil {
				t.Errorf("%s: no error", dev)
			}
		}
		err = g.Set(Limits{BlkioWeight: 500})
		_, ferr := os.Stat(path.Join(g.box(), "io.weight"))
		_, berr := os.Stat(path.Join(g.box(), "io.bfq.weight"))
		if (err == nil) != (ferr == nil || berr == nil) {
			t.Errorf("--blkio-weight: %v (io.weight: %v, io.bfq.weight: %v)", err, ferr, berr)
		}
	})
}

func TestCpuset(t *testing.T) {
	each(t, "cpuset", func(t *testing.T, h *Host, m *monitor, id string) {
		g := newGroup(t, h, m, id, Limits{CpusetCPUs: "0", CpusetMems: "0"})
		want(t, g, "cpuset.cpus.effective", "0")
		pid := m.start("sleep", g)
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil || !strings.Contains(string(status), "Cpus_allowed_list:\t0\n") {
			t.Errorf("%v\n%s", err, status)
		}
		var we *wire.Error
		if err := g.Set(Limits{CpusetCPUs: "4000"}); !errors.As(err, &we) || we.Step != "--cpuset-cpus" {
			t.Errorf("a processor that is not there: %v", err)
		}
	})
}
