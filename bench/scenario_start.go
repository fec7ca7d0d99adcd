package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// startsPerRound are averaged by their median within a round.
const startsPerRound = 7

var startNames = []string{"sbx-start", "sbx-start-first", "sbx-start-none", "bwrap", "crun", "podman-none", "podman-pasta", "podman-slirp4netns"}

// startScenarios time a whole run of `true`, from fork to exit.
func startScenarios() []scenario {
	return []scenario{{
		name: "start", title: "Start to exit of true, whole, warm, on the same root file system",
		metric: "time", paths: startNames, quick: true,
		run: func(w *world, s *sandbox) (metrics, error) {
			var took []float64
			for i := range startsPerRound + 1 {
				args, dir, err := s.path.command(w, s.path, s.dir)
				if err != nil {
					return nil, err
				}
				cmd := w.command(dir, args...)
				log := new(logTail)
				cmd.Stdout, cmd.Stderr = log, log
				cmd.Env = append(cmd.Env, "CONTAINERS_CONF="+w.work+"/containers.conf")
				cmd.WaitDelay = time.Second
				begin := time.Now()
				if err := cmd.Run(); err != nil {
					return nil, fmt.Errorf("%w%v", err, log)
				}
				if i > 0 { // the first warms
					took = append(took, time.Since(begin).Seconds())
				}
			}
			return metrics{"time": median(took)}, nil
		},
	}}
}

// startPaths are the programs that start_scenario runs.
func startPaths(builds []build) []path {
	var ps []path
	add := func(name, what string, command func(w *world, p path, dir string) ([]string, string, error)) {
		ps = append(ps, path{name: name, what: what, command: command})
	}
	for _, b := range builds {
		suffix := ":" + b.name
		if len(builds) == 1 {
			suffix = ""
		}
		sbx := func(w *world, network string) []string {
			return []string{b.file, "run", "--rm", "--network", network, "--rootfs", w.root, "/bin/true"}
		}
		add("sbx-start"+suffix, "sbx run, overlay, 65,536 ids, network", func(w *world, _ path, dir string) ([]string, string, error) {
			return sbx(w, "default"), dir, nil
		})
		add("sbx-start-first"+suffix, "the same, the first on its network", func(w *world, _ path, _ string) ([]string, string, error) {
			dir, err := w.runtimeDir()
			return sbx(w, "default"), dir, err
		})
		add("sbx-start-none"+suffix, "sbx run --network none", func(w *world, _ path, dir string) ([]string, string, error) {
			return sbx(w, "none"), dir, nil
		})
	}
	for _, network := range []string{"none", "pasta", "slirp4netns"} {
		add("podman-"+network, "podman run --network "+network+", crun, overlay", func(w *world, _ path, dir string) ([]string, string, error) {
			bin, err := w.peer("podman")
			if err != nil {
				return nil, dir, err
			}
			err = w.containersConf()
			// A store remembers its run root.
			store := filepath.Join(w.home, filepath.Base(dir), "podman")
			return []string{bin, "--root", store, "--runroot", filepath.Join(dir, "podman"), "--events-backend", "none", "--cgroup-manager", "cgroupfs",
				"run", "--rm", "--cgroups", "disabled", "--network", network, "--rootfs", w.root + ":O", "/bin/true"}, dir, err
		})
	}
	add("crun", "crun run, no overlay, no network", func(w *world, _ path, dir string) ([]string, string, error) {
		bin, err := w.peer("crun")
		if err == nil {
			err = w.bundle(dir)
		}
		return []string{bin, "--root", filepath.Join(dir, "crun"), "--cgroup-manager", "disabled", "run", "--bundle", dir, "bench"}, dir, err
	})
	add("bwrap", "bwrap --unshare-all, no overlay, no network", func(w *world, _ path, dir string) ([]string, string, error) {
		bin, err := w.peer("bwrap")
		return []string{bin, "--unshare-all", "--bind", w.root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"}, dir, err
	})
	return ps
}

// containersConf tells podman where its helpers are.
func (w *world) containersConf() error {
	file := w.work + "/containers.conf"
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	conf := fmt.Sprintf(`[engine]
runtime = "crun"
helper_binaries_dir = [%q]
conmon_path = [%q]
cgroup_manager = "cgroupfs"
[engine.runtimes]
crun = [%q]
`, w.peers, w.peers+"/conmon", w.peers+"/crun")
	return os.WriteFile(file, []byte(conf), 0o644)
}

// bundle writes crun's configuration: the namespaces and mounts of a container,
// with the user as root and no other ids.
func (w *world) bundle(dir string) error {
	type m map[string]any
	ids := []m{{"containerID": 0, "hostID": w.user.uid, "size": 1}}
	gids := []m{{"containerID": 0, "hostID": w.user.gid, "size": 1}}
	var ns []m
	for _, t := range []string{"user", "mount", "pid", "network", "ipc", "uts"} {
		ns = append(ns, m{"type": t})
	}
	data, err := json.Marshal(m{
		"ociVersion": "1.0.2",
		"process":    m{"args": []string{"/bin/true"}, "cwd": "/", "env": []string{"PATH=/bin"}, "user": m{"uid": 0, "gid": 0}, "noNewPrivileges": true},
		"root":       m{"path": w.root},
		"hostname":   "bench",
		"mounts": []m{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
			{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
		},
		"linux": m{"namespaces": ns, "uidMappings": ids, "gidMappings": gids},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644)
}
