package harness

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/racelog"
)

// leakWait bounds how long a test waits for what goes away by itself: the
// network's process lingers, and a killed sandbox is cleaned up by others.
const leakWait = 15 * time.Second

// helpers are processes that the tests themselves start and end.
var helpers = map[int]bool{}

// Helper exempts a process that a test has started, and will end, from the check.
func Helper(pid int) { helpers[pid] = true }

// watch registers the check at the end of the test. It runs before the test's
// directory is removed, since cleanups run last in, first out.
func (e *Env) watch() {
	before := e.files()
	fdsBefore := openFiles()
	e.t.Cleanup(func() {
		e.t.Helper()
		for _, p := range e.procs {
			if p.Result().Code == -1 {
				p.Stop()
			}
		}
		var races []string
		defer func() {
			for _, r := range races {
				e.t.Error(r)
			}
		}()
		var left []string
		for end := time.Now().Add(Slow(leakWait)); ; time.Sleep(50 * time.Millisecond) {
			reap()
			found, err := racelog.Take(e.reports())
			if err != nil {
				e.t.Error(err)
			}
			races = append(races, found...)
			left = e.leftovers(before, fdsBefore)
			if len(left) == 0 {
				return
			}
			if time.Now().After(end) {
				break
			}
		}
		e.t.Errorf("left behind after %v:\n  %s", Slow(leakWait), strings.Join(left, "\n  "))
		e.kill()
	})
}

// leftovers lists what should not be there, one line each.
func (e *Env) leftovers(before map[string]bool, fdsBefore int) []string {
	var left []string
	for _, pid := range descendants(os.Getpid()) {
		if !helpers[pid] {
			left = append(left, describe(pid))
		}
	}
	left = append(left, matchingLines("/proc/self/mountinfo", "mount", e.dir, e.data)...)
	left = append(left, matchingLines("/proc/net/unix", "unix socket", e.dir)...)
	left = append(left, e.listeners()...)
	for path := range e.files() {
		if !before[path] {
			left = append(left, "file "+path)
		}
	}
	if n := openFiles(); n > fdsBefore {
		left = append(left, fmt.Sprintf("%d more open descriptors in the test itself", n-fdsBefore))
	}
	slices.Sort(left)
	return left
}

// Watch makes the check fail if a port still accepts after the test.
func (e *Env) Watch(ports ...int) { e.ports = append(e.ports, ports...) }

func (e *Env) listeners() []string {
	var left []string
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6", "/proc/net/udp", "/proc/net/udp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			left = append(left, err.Error())
			continue
		}
		for line := range strings.Lines(string(data)) {
			if port, ok := listener(line); ok && slices.Contains(e.ports, port) {
				left = append(left, fmt.Sprintf("port %d in %s", port, file))
			}
		}
	}
	return left
}

// files lists what a sandbox may leave by mistake: everything below the runtime and
// temporary directories, and in the data directory everything but images, layers,
// named volumes and the journal of events.
func (e *Env) files() map[string]bool {
	found := map[string]bool{}
	add := func(root string, skip func(rel string) bool) {
		// Files vanish while we look, and layers belong to others.
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == root {
				return nil
			}
			rel, _ := filepath.Rel(root, path)
			switch {
			case skip != nil && skip(rel):
				return filepath.SkipDir
			case d.IsDir() && skip == nil, lasting(d.Name()):
				return nil
			}
			found[path] = true
			return nil
		})
	}
	add(e.Runtime, nil)
	add(e.Tmp, nil)
	entries, _ := os.ReadDir(e.Data())
	for _, d := range entries {
		if slices.Contains([]string{"blobs", "events", "images", "layers", "volumes", "index.json", "oci-layout"}, d.Name()) {
			continue
		}
		if d.IsDir() {
			sub, _ := os.ReadDir(filepath.Join(e.Data(), d.Name()))
			for _, s := range sub {
				if !lasting(s.Name()) {
					found[filepath.Join(e.Data(), d.Name(), s.Name())] = true
				}
			}
		}
	}
	return found
}

// lasting names the files that stay: a lock, since removing one that another process
// waits for would break it, a network's log, which says why it died, and the default
// network's leases, which are let go of by who takes the next.
func lasting(name string) bool {
	return filepath.Ext(name) == ".lock" || slices.Contains([]string{"lock", "log", "default.leases.json"}, name)
}

func matchingLines(file, what string, dirs ...string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		if slices.ContainsFunc(dirs, func(d string) bool { return strings.Contains(sc.Text(), d+"/") }) {
			out = append(out, what+" "+sc.Text())
		}
	}
	return out
}

// started are the processes that os/exec waits for.
var started sync.Map

// reap collects orphans that came to us as the reaper.
func reap() {
	for _, pid := range descendants(os.Getpid()) {
		if _, own := started.Load(pid); procState(pid) == 'Z' && !helpers[pid] && !own {
			var ws unix.WaitStatus
			_, _ = unix.Wait4(pid, &ws, unix.WNOHANG, nil) // not ours to reap: it will go with its parent
		}
	}
}

// kill removes leaked processes, so that one test's leak is not the next one's.
func (e *Env) kill() {
	for _, pid := range descendants(os.Getpid()) {
		if helpers[pid] {
			continue
		}
		_ = unix.Kill(pid, unix.SIGKILL) // it may have gone, or belong to another id
	}
	time.Sleep(100 * time.Millisecond)
	reap()
}

// descendants returns the processes below pid, children before grandchildren.
func descendants(pid int) []int {
	children := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if p, ok := parent(d); ok {
			id, _ := strconv.Atoi(filepath.Base(d))
			children[p] = append(children[p], id)
		}
	}
	var out []int
	for queue := children[pid]; len(queue) > 0; {
		p := queue[0]
		queue = append(queue[1:], children[p]...)
		out = append(out, p)
	}
	return out
}

func parent(dir string) (int, bool) {
	f := stat(dir)
	if len(f) < 2 {
		return 0, false
	}
	p, err := strconv.Atoi(f[1])
	return p, err == nil
}

// stat returns the fields of a process's stat after its name, which may hold blanks.
func stat(dir string) []string {
	data, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil
	}
	i := bytes.LastIndexByte(data, ')')
	return strings.Fields(string(data[i+1:]))
}

func procState(pid int) byte {
	f := stat("/proc/" + strconv.Itoa(pid))
	if len(f) == 0 {
		return 0
	}
	return f[0][0]
}

func describe(pid int) string {
	dir := "/proc/" + strconv.Itoa(pid)
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	comm, _ := os.ReadFile(dir + "/comm")
	line := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return fmt.Sprintf("process %d (%s, state %c): %s", pid, strings.TrimSpace(string(comm)), procState(pid), line)
}

func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}
