package vm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// TestEffects: what each limit does to a program in the sandbox, or which controller is
// missing for it.
func TestEffects(t *testing.T) {
	e := env(t, harness.BB)
	have := controllers(t, "/sys/fs/cgroup")
	switch place {
	case bare:
		have = nil
	case login, linger:
		have = slices.DeleteFunc(have, func(c string) bool { return c == "io" || c == "cpuset" })
	}
	disk, dir := disk(t), t.TempDir()
	blob(t, dir+"/blob")
	for _, c := range []struct {
		name, controller string
		flags            []string
		script           string
		check            func(out string, took time.Duration) bool
	}{
		{"cpus", "cpu", []string{"--cpus", "0.2"}, "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; grep nr_throttled /sys/fs/cgroup/cpu.stat",
			func(out string, _ time.Duration) bool { return number(out, "nr_throttled %d") > 0 }},
		{"weight", "cpu", []string{"-c", "512"}, "cat /sys/fs/cgroup/cpu.weight",
			func(out string, _ time.Duration) bool { n := number(out, "%d"); return n > 1 && n < 100 }},
		{"memory", "memory", []string{"-m", "24m", "--memory-swap", "24m"}, "(dd if=/dev/zero of=/dev/null bs=100M count=1); echo status $?",
			func(out string, _ time.Duration) bool { return strings.Contains(out, "status 137") }},
		{"reservation", "memory", []string{"--memory-reservation", "16m"}, "cat /sys/fs/cgroup/memory.low",
			func(out string, _ time.Duration) bool { return number(out, "%d") == 16<<20 }},
		{"read-bps", "io", []string{"--device-read-bps", disk + ":1mb", "-v", dir + ":/t"}, "dd if=/t/blob of=/dev/null bs=64k iflag=direct",
			func(_ string, took time.Duration) bool { return took > 1500*time.Millisecond }},
		{"write-bps", "io", []string{"--device-write-bps", disk + ":1mb", "-v", dir + ":/t"}, "dd if=/dev/zero of=/t/out bs=64k count=48 oflag=direct",
			func(_ string, took time.Duration) bool { return took > 1500*time.Millisecond }},
		{"write-iops", "io", []string{"--device-write-iops", disk + ":20", "-v", dir + ":/t"}, "dd if=/dev/zero of=/t/out bs=4k count=60 oflag=direct",
			func(_ string, took time.Duration) bool { return took > 1500*time.Millisecond }},
		{"read-iops", "io", []string{"--device-read-iops", disk + ":20", "-v", dir + ":/t"}, "dd if=/t/blob of=/dev/null bs=4k count=60 iflag=direct",
			func(_ string, took time.Duration) bool { return took > 1500*time.Millisecond }},
		{"cpuset", "cpuset", []string{"--cpuset-cpus", "1"}, "nproc; grep Cpus_allowed_list /proc/self/status; awk '{print $39}' /proc/self/stat",
			func(out string, _ time.Duration) bool { return out == "1\nCpus_allowed_list:\t1\n1\n" }},
		{"cpuset-mems", "cpuset", []string{"--cpuset-mems", "0"}, "grep Mems_allowed_list /proc/self/status",
			func(out string, _ time.Duration) bool { return out == "Mems_allowed_list:\t0\n" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.In(t)
			args := append(append([]string{"run", "--rm", "--network", "none"}, c.flags...), harness.BB, "sh", "-c", c.script)
			start := time.Now()
			r := e.Run(args...)
			took := time.Since(start)
			switch {
			case !slices.Contains(have, c.controller):
				r.Want(t, 125, "fix: ")
			case r.Code != 0 || !c.check(r.Stdout, took):
				t.Errorf("after %v: %v", took, r)
			}
		})
	}
	if got := e.Must("run", "--rm", "--network", "none", "--ulimit", "nofile=50:60", harness.BB, "sh", "-c", "ulimit -n; ulimit -Hn"); got != "50\n60\n" {
		t.Errorf("ulimit: %q", got)
	}
}

// TestWeight: of two sandboxes that want all they can get, the one with ten times the
// weight gets more: of the processors, and of a disk whose scheduler knows weights.
func TestWeight(t *testing.T) {
	e := env(t, harness.BB)
	dir := t.TempDir()
	blob(t, dir+"/blob")
	scheduler, err := os.ReadFile("/sys/block/" + filepath.Base(disk(t)) + "/queue/scheduler")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, flag, heavy, light string
		have                     bool
		args                     []string
		file, form               string // what it has got, in a file of its group
		least                    int64
	}{
		{"cpu", "--cpu-shares", "2048", "200", place != bare,
			[]string{harness.BB, "sh", "-c", "while :; do :; done & while :; do :; done"}, "cpu.stat", "usage_usec %d", 1e6},
		{"disk", "--blkio-weight", "1000", "100", place == delegated && strings.Contains(string(scheduler), "[bfq]"),
			[]string{"-v", dir + ":/t", harness.BB, "/probe", "reread", "/t/blob"}, "io.stat", "rbytes=%d", 12 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := e.In(t)
			if !c.have {
				e.Fails(125, []string{"fix: "}, "run", "--rm", "--network", "none", c.flag, c.heavy, harness.BB, "true")
				return
			}
			got := func(name string) (sum int64) {
				text := e.Must("exec", name, "cat", "/sys/fs/cgroup/"+c.file)
				for i := range text {
					if n := number(text[i:], c.form); n > 0 {
						sum += n
					}
				}
				return sum
			}
			for name, weight := range map[string]string{"heavy": c.heavy, "light": c.light} {
				e.AtEnd("rm", "-f", name)
				e.Must(append([]string{"run", "-d", "--name", name, "--network", "none", c.flag, weight}, c.args...)...)
			}
			heavy, light := got("heavy"), got("light") // one of them has begun before the other
			harness.Eventually(t, 30*time.Second, func() error {
				h, l := got("heavy")-heavy, got("light")-light
				if l < c.least || h < 2*l {
					return fmt.Errorf("the heavy one has got %d, the light one %d", h, l)
				}
				return nil
			})
			e.Must("rm", "-f", "heavy", "light")
		})
	}
}

func number(text, form string) (n int64) {
	if _, err := fmt.Sscanf(text, form, &n); err != nil {
		return -1
	}
	return n
}

// TestReservation: where memory is short, a sandbox with a reservation keeps its cache,
// and one without loses it. It is short here in the slice that both are in, which is the
// user's: against others the kernel protects no group more than those above it.
func TestReservation(t *testing.T) {
	if place == bare || place == linger {
		return // no limit can be set, see TestEffects; this test would be in the slice itself
	}
	const cache = 8 << 20
	e := env(t, harness.BB)
	box := func(name, script string, flags ...string) {
		e.AtEnd("rm", "-f", name)
		e.Must(slices.Concat([]string{"run", "-d", "--name", name, "--network", "none"}, flags,
			[]string{harness.BB, "sh", "-c", script + "; exec sleep 1000"})...)
	}
	cached := func(name string) int64 {
		return number(e.Must("exec", name, "sh", "-c", "grep ^file /sys/fs/cgroup/memory.stat"), "file %d")
	}
	fill := fmt.Sprintf("dd if=/dev/zero of=/cached bs=1M count=%d conv=fsync", cache>>20)
	box("reserved", fill, "--memory-reservation", "24m")
	box("plain", fill)
	for _, name := range []string{"reserved", "plain"} {
		harness.Eventually(t, harness.Slow(20*time.Second), func() error {
			if n := cached(name); n < cache {
				return fmt.Errorf("%s has %d bytes in the cache", name, n)
			}
			return nil
		})
	}
	group := read(t, "/proc/"+strings.TrimSpace(e.Must("inspect", "-f", "{{.State.Pid}}", "plain"))+"/cgroup")
	slice := strings.TrimPrefix(group[:strings.Index(group, "/sbx-")], "0::")
	limit := func(size string) {
		if out, err := exec.Command("systemctl", "--user", "set-property", "--runtime", filepath.Base(slice), "MemoryMax="+size).CombinedOutput(); err != nil {
			t.Fatalf("limit %s: %v: %s", slice, err, out)
		}
	}
	// What is not yet written to the disk cannot be given back.
	box("greedy", "dd if=/dev/zero of=/big bs=1M count=48 conv=fsync; echo written; while :; do cat /big >/dev/null; done")
	harness.Eventually(t, harness.Slow(30*time.Second), func() error {
		if out := e.Must("logs", "greedy"); out != "written\n" {
			return fmt.Errorf("greedy says %q", out)
		}
		return nil
	})
	limit(fmt.Sprint(number(read(t, "/sys/fs/cgroup"+slice+"/memory.current"), "%d") - 24<<20))
	defer limit("infinity")
	harness.Eventually(t, harness.Slow(60*time.Second), func() error {
		if n := cached("plain"); n > cache/4 {
			return fmt.Errorf("without a reservation %d bytes are left", n)
		}
		return nil
	})
	if n := cached("reserved"); n < cache*9/10 {
		t.Errorf("with a reservation %d bytes are left", n)
	}
	e.Must("rm", "-f", "greedy", "plain", "reserved")
}
