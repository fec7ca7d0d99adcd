package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// envNumber is a number of the environment, or else what the test says.
func envNumber(t *testing.T, name string, other uint64) uint64 {
	v := os.Getenv(name)
	if v == "" {
		return other
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// killRound is one round of TestKillRandomly: a command, and what is killed when.
type killRound struct {
	n      uint64
	before [][]string // commands that bring the sandbox into the state for verb
	verb   []string
	stays  bool   // verb does not end by itself
	victim string // "sbx", "monitor", "init" (also what it has become), "netd" or "all"
	// seen: the moment counts from when there is such a process, and not from the
	// beginning of the command.
	seen   bool
	moment time.Duration
	arg    string // of the workload, its own
}

func (k killRound) String() string {
	from := "the beginning"
	if k.seen {
		from = "when there is one"
	}
	return fmt.Sprintf("round %d: %v, then %v, kill %s %v after %s", k.n, k.before, k.verb, k.victim, k.moment, from)
}

// Networks and a volume of TestKillRandomly. No sandbox is made on the last network.
const (
	killNetA, killNetB, killNetC = "kill-a", "kill-b", "kill-c"
	killVolume                   = "kill-kept"
	killImage                    = "e2e/kill:1"
)

// killHost is what this host gives to sandboxes.
type killHost struct{ pause, memory bool }

// killFlags draws flags of run, and says what kind of network they make.
func killFlags(rng *rand.Rand, h killHost) (flags []string, network string) {
	network = "bridge"
	maybe := func(oneIn int, f ...string) bool {
		if rng.IntN(oneIn) != 0 {
			return false
		}
		flags = append(flags, f...)
		return true
	}
	if !maybe(4, "--rm") && !maybe(4, "--restart", "always") {
		maybe(8, "--restart", "on-failure:2")
	}
	maybe(4, "-v", "/data")
	maybe(4, "-v", killVolume+":/kept")
	maybe(4, "--init")
	maybe(4, "-t")
	maybe(4, "--health-cmd", "true", "--health-interval", "20ms")
	maybe(8, "--storage-driver", "fuse")
	if h.memory {
		maybe(4, "-m", "64m", "--pids-limit", "50")
	}
	switch {
	case maybe(4, "-p", "127.0.0.1::80"):
	case maybe(4, "--network", "none"):
		network = "none"
	case maybe(4, "--network", killNetA, "--network", killNetB):
		network = killNetA
	}
	return flags, network
}

// newKillRound draws one; the same numbers give the same round on the same host.
func newKillRound(seed, n uint64, h killHost) killRound {
	rng := rand.New(rand.NewPCG(seed, n))
	k := killRound{n: n, arg: fmt.Sprint(7_000_000 + n), seen: rng.IntN(2) == 0}
	flags, network := killFlags(rng, h)
	line := func(verb ...string) []string {
		return slices.Concat(verb, []string{"--name", "victim"}, flags, []string{harness.BB, "sleep", k.arg})
	}
	create, run := line("create"), line("run", "-d")
	type kind struct {
		before [][]string
		verb   string // in words; "" is run
		stays  bool
	}
	kinds := []kind{
		{nil, "", false}, {nil, "", false}, {nil, "run", true}, {nil, "create", false},
		{[][]string{create}, "start victim", false}, {[][]string{create}, "start victim", false}, {[][]string{create}, "rm -v victim", false},
	}
	for _, verb := range []string{
		"stop -t 0 victim", "restart -t 0 victim", "restart -t 0 victim", "kill victim", "rm -f -v victim", "rename victim renamed",
		"exec victim sleep 0.02", "exec -d victim sleep " + k.arg, "update --restart no victim", "cp victim:/bin -", "commit victim " + killImage,
	} {
		kinds = append(kinds, kind{[][]string{run}, verb, false})
	}
	for _, verb := range []string{"exec -t victim sleep " + k.arg, "attach victim", "wait victim", "logs -f victim", "stats victim"} {
		kinds = append(kinds, kind{[][]string{run}, verb, true})
	}
	if network != "none" {
		for _, verb := range []string{"network connect " + killNetC + " victim", "network disconnect " + network + " victim", "port add victim 127.0.0.1::81"} {
			kinds = append(kinds, kind{[][]string{run}, verb, false})
		}
		kinds = append(kinds,
			kind{[][]string{run, strings.Fields("network connect " + killNetC + " victim")}, "network disconnect " + killNetC + " victim", false},
			kind{[][]string{run, strings.Fields("port add victim 127.0.0.1:7801:81")}, "port rm victim 127.0.0.1:7801:81", false})
	}
	if h.pause {
		pause := []string{"pause", "victim"}
		kinds = append(kinds, kind{[][]string{run}, "pause victim", false})
		for _, verb := range []string{"unpause victim", "stop -t 0 victim", "rm -f -v victim"} {
			kinds = append(kinds, kind{[][]string{run, pause}, verb, false})
		}
	}
	x := kinds[rng.IntN(len(kinds))]
	k.before, k.verb, k.stays = x.before, strings.Fields(x.verb), x.stays
	switch x.verb {
	case "":
		k.verb = run
	case "run":
		flags = slices.DeleteFunc(flags, func(f string) bool { return f == "-t" }) // there is no terminal here
		if i := slices.Index(flags, "--restart"); i >= 0 {                         // nor without -d
			flags = slices.Delete(flags, i, i+2)
		}
		k.verb = line("run")
	case "create":
		k.verb = create
	}
	k.victim = []string{"sbx", "sbx", "monitor", "monitor", "init", "netd", "all"}[rng.IntN(7)]
	k.moment = time.Duration(rng.IntN(60_000)) * time.Microsecond
	if k.seen {
		k.moment /= 8
	}
	return k
}

// victims are the processes to kill, but for sbx itself.
func (k killRound) victims(e *harness.Env) (pids []int) {
	for role, name := range map[string]string{"monitor": "sbx-monitor", "init": "sbx-init", "netd": "sbx-netd"} {
		if k.victim == role || k.victim == "all" {
			pids = append(pids, e.Role(name)...)
		}
	}
	if k.victim == "init" || k.victim == "all" {
		pids = append(pids, e.FindArg(k.arg)...)
	}
	return pids
}

// strike runs the command and kills at its moment.
func (k killRound) strike(e *harness.Env) {
	p := e.Start(k.verb...)
	if k.seen && k.victim != "sbx" {
		for end := time.Now().Add(harness.Slow(100 * time.Millisecond)); len(k.victims(e)) == 0 && time.Now().Before(end); {
			time.Sleep(100 * time.Microsecond)
		}
	}
	time.Sleep(k.moment)
	for _, pid := range k.victims(e) {
		if pid != p.Cmd.Process.Pid {
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
	if k.victim == "sbx" || k.victim == "all" {
		p.Signal(unix.SIGKILL)
	}
	if k.stays {
		p.Signal(unix.SIGKILL)
	}
	p.Wait(30 * time.Second)
}

// lie says in what the list of sandboxes, one at most, differs from what there is, "" if
// in nothing. arg is one of the workload's, and of no other's.
func lie(e *harness.Env, arg string) string {
	r := e.Run("ps", "-a", "--format", "{{.State}}")
	alive, monitors := e.FindArg(arg), e.Role("sbx-monitor")
	runs := false
	switch strings.TrimSpace(r.Stdout) {
	case "running", "paused":
		runs = true
	case "", "created", "exited":
	default:
		return r.String()
	}
	if r.Code != 0 || runs != (len(alive) > 0) || runs != (len(monitors) == 1) {
		return fmt.Sprintf("the workload is %v, the monitor %v: %v", alive, monitors, r)
	}
	return ""
}

// leftOf says what is still there when the sandbox has been removed. netd are the numbers
// of descriptors of the network's processes, which links and sockets would add to.
func leftOf(t *testing.T, e *harness.Env, arg string, before []string, netd map[int]int, networks ...string) (left []string) {
	for _, role := range []string{"sbx-monitor", "sbx-init", "sbx-worker", "fuse-overlayfs"} {
		for _, pid := range e.Role(role) {
			left = append(left, fmt.Sprintf("%s %d", role, pid))
		}
	}
	for _, pid := range e.FindArg(arg) {
		left = append(left, fmt.Sprintf("workload %d", pid))
	}
	for _, f := range slices.Concat(glob(e.Data(), "containers/*"), glob(e.Runtime, "sbx/box/*"), glob(e.Runtime, "sbx/builtin/*"), volumes(e)) {
		if !slices.Contains(before, f) {
			left = append(left, f)
		}
	}
	for _, network := range networks {
		now := usageOfNetwork(t, e, network)
		if now.pid == 0 {
			continue
		}
		if _, ok := netd[now.pid]; !ok {
			netd[now.pid] = now.fds
		}
		if now.fds > netd[now.pid] {
			left = append(left, fmt.Sprintf("%d descriptors of sbx-netd %d, which had %d", now.fds, now.pid, netd[now.pid]))
		}
	}
	return left
}

func glob(dir, pattern string) []string {
	found, _ := filepath.Glob(filepath.Join(dir, pattern))
	return slices.DeleteFunc(found, func(f string) bool { return filepath.Base(f) == ".lock" })
}

func volumes(e *harness.Env) []string {
	return slices.DeleteFunc(glob(e.Data(), "volumes/*"), func(f string) bool { return strings.HasPrefix(filepath.Base(f), ".") })
}

// eventually waits until f has nothing to say, and returns what it still says.
func eventually(f func() string) (said string) {
	for end := time.Now().Add(harness.Slow(15 * time.Second)); ; time.Sleep(5 * time.Millisecond) {
		if said = f(); said == "" || time.Now().After(end) {
			return said
		}
	}
}

// TestKillRandomly kills what belongs to a sandbox at random moments of its life, each
// round as its number and SBX_TEST_SEED say; SBX_TEST_ROUNDS of them. Whatever was
// killed, ps -a tells the truth, rm removes, nothing is left, and the name is free.
func TestKillRandomly(t *testing.T) {
	e := harness.New(t, harness.BB)
	e.Setenv("SBX_NETD_LINGER=2s") // longer than a round
	seed := envNumber(t, "SBX_TEST_SEED", rand.Uint64N(1e6))
	rounds := envNumber(t, "SBX_TEST_ROUNDS", 6)
	t.Logf("SBX_TEST_SEED=%d SBX_TEST_ROUNDS=%d", seed, rounds)
	h := killHostOf(t, e)
	networks := []string{"bridge", killNetA, killNetB, killNetC}
	for _, n := range networks[1:] {
		makeNetwork(t, e, n)
	}
	e.AtEnd("volume", "rm", "-f", killVolume)
	e.Must("volume", "create", killVolume)
	e.AtEnd("image", "prune", "-f") // those whose name went to the next
	e.AtEnd("rmi", "-f", killImage)
	e.AtEnd("rm", "-f", "-v", "victim")
	e.AtEnd("rm", "-f", "-v", "renamed")
	before, netd := slices.Concat(glob(e.Data(), "containers/*"), volumes(e)), map[int]int{}
	for n := range rounds {
		k := newKillRound(seed, n, h)
		must := func(args ...string) {
			if r := e.Run(args...); r.Code != 0 {
				t.Errorf("%v: %v", k, r)
			}
		}
		for _, args := range k.before {
			must(args...)
		}
		k.strike(e)
		if lie := eventually(func() string { return lie(e, k.arg) }); lie != "" {
			t.Errorf("%v: ps -a: %s", k, lie)
		}
		for _, name := range []string{"victim", "renamed"} {
			must("rm", "-f", "-v", name)
		}
		// The name is free, and the next sandbox sweeps up after a killed create and a
		// killed network.
		must("run", "--rm", "--name", "victim", harness.BB, "true")
		if left := eventually(func() string { return strings.Join(leftOf(t, e, k.arg, before, netd, networks...), ", ") }); left != "" {
			t.Errorf("%v: left behind: %s", k, left)
		}
		if t.Failed() {
			return // the next round would trip over it
		}
	}
	for _, n := range networks[1:] {
		e.Must("network", "rm", n) // nobody is on it
	}
	e.Must("volume", "rm", killVolume)
	noGroups(t)
}

// killHostOf tries what this host gives.
func killHostOf(t *testing.T, e *harness.Env) killHost {
	h := killHost{memory: slices.Contains(controllers(t, e), "memory")}
	detached(t, e, "try", "--network", "none", harness.BB, "sleep", "1000")
	h.pause = e.Run("pause", "try").Code == 0
	e.Must("rm", "-f", "try")
	t.Logf("%+v", h)
	return h
}
