package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/e2e/harness"
)

// The leak check at the end of each test is half of these tests: whoever is killed,
// the others end and clean up.

func TestKillCommand(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	p := serve(t, e, []string{"-p", fmt.Sprintf("127.0.0.1:%d:80", port)}, "serve", "80")
	p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port))
	p.Signal(unix.SIGKILL)
	if r := p.Wait(5 * time.Second); r.Code != 137 {
		t.Errorf("%v", r)
	}
}

func TestKillWorkload(t *testing.T) {
	e := harness.New(t, harness.BB)
	p := serve(t, e, nil, "serve", "80")
	killOne(t, e.FindArg("serve"), harness.InPIDNamespace)
	if r := p.Wait(10 * time.Second); r.Code != 137 {
		t.Errorf("as of docker run, death by signal 9 is status 137: %v", r)
	}
}

func TestKillMonitor(t *testing.T) {
	e := harness.New(t, harness.BB)
	p := serve(t, e, nil, "serve", "80")
	killOne(t, e.Role("sbx-monitor"), nil)
	if r := p.Wait(10 * time.Second); r.Code == 0 {
		t.Errorf("a lost monitor is not success: %v", r)
	}
}

// TestKillNetwork: a new network process takes over: the published port answers
// again, the sandbox has not noticed.
func TestKillNetwork(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range portDrivers {
		port := e.FreePort()
		url := fmt.Sprintf("http://127.0.0.1:%d/", port)
		p := serve(t, e, []string{"--port-driver", driver, "-p", fmt.Sprintf("127.0.0.1:%d:80", port)}, "serve", "80")
		p.WaitGet(url)
		killOne(t, e.Role("sbx-netd"), nil)
		p.WaitGet(url)
		if r := p.Result(); r.Code != -1 {
			t.Errorf("%s: the sandbox ended with its network: %v", driver, r)
		}
		p.Stop()
	}
}

// TestKillNetworkOfMany: what connects two sandboxes goes on when the network's process
// is killed, again and again; names, the world and published ports come back.
func TestKillNetworkOfMany(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	detached(t, e, "server", "-p", fmt.Sprintf("127.0.0.1:%d:80", port), harness.BB, "sh", "-c", "/probe echo 7 & exec /probe serve 80")
	addr := strings.TrimSpace(e.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server"))
	until(t, e, "probe /", "exec", "server", "/probe", "get", "http://127.0.0.1/")
	talk := e.Start("run", "--rm", "--name", "client", harness.BB, "/probe", "talk", addr+":7")
	said := func() int { return strings.Count(talk.Result().Stdout, "\n") }
	for range 3 {
		goesOn(t, talk, said()+5)
		killOne(t, e.Role("sbx-netd"), nil)
		goesOn(t, talk, said()+5)
		waitGet(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
		until(t, e, "probe /", "exec", "client", "/probe", "get", "http://server/")
	}
	talk.Stop()
}

// goesOn waits until one that talks has had so many answers.
func goesOn(t *testing.T, p *harness.Proc, answers int) {
	t.Helper()
	p.WaitOut(fmt.Sprintf("answer %d\n", answers), 20*time.Second)
}

// TestKillEverywhere kills sbx at moments spread over its start: there is no moment
// at which something stays behind.
func TestKillEverywhere(t *testing.T) {
	e := harness.New(t, harness.BB)
	for i := range 20 {
		p := e.Start("run", "--rm", harness.BB, "sleep", "1000")
		time.Sleep(time.Duration(i*i) * time.Millisecond)
		p.Signal(unix.SIGKILL)
		p.Wait(5 * time.Second)
	}
	// The store is whole: the next one works.
	if got := e.Must("run", "--rm", harness.BB, "echo", "ok"); got != "ok\n" {
		t.Errorf("%q", got)
	}
}

func killOne(t *testing.T, pids []int, which func(int) bool) {
	t.Helper()
	for _, pid := range pids {
		if which == nil || which(pid) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatalf("kill %d: %v", pid, os.NewSyscallError("kill", err))
			}
			return
		}
	}
	t.Fatalf("none of %v is the process to kill", pids)
}
