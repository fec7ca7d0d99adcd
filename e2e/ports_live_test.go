package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/sandbox"
)

// TestPublishForms: what each form of -p, --expose and -P asks for, as inspect shows it.
func TestPublishForms(t *testing.T) {
	e := harness.New(t, harness.BB)
	for flags, want := range map[string]map[string][]sandbox.PortBinding{
		"-p 80":                            {"80/tcp": {{}}},
		"-p :8181":                         {"8181/tcp": {{}}},
		"-p 80-82":                         {"80/tcp": {{}}, "81/tcp": {{}}, "82/tcp": {{}}},
		"-p 8380:80":                       {"80/tcp": {{HostPort: "8380"}}},
		"-p 8480:80/TCP":                   {"80/tcp": {{HostPort: "8480"}}},
		"-p 80/udp":                        {"80/udp": {{}}},
		"-p 8380:80/udp":                   {"80/udp": {{HostPort: "8380"}}},
		"-p 127.0.0.1:8380:8000":           {"8000/tcp": {{HostIP: "127.0.0.1", HostPort: "8380"}}},
		"-p 127.0.0.1:8380:8000/udp":       {"8000/udp": {{HostIP: "127.0.0.1", HostPort: "8380"}}},
		"-p [::1]:8380:8000":               {"8000/tcp": {{HostIP: "::1", HostPort: "8380"}}},
		"-p [::1]:8380:8000/udp":           {"8000/udp": {{HostIP: "::1", HostPort: "8380"}}},
		"-p 127.0.0.1::8380/udp":           {"8380/udp": {{HostIP: "127.0.0.1"}}},
		"-p [::1]::8380/udp":               {"8380/udp": {{HostIP: "::1"}}},
		"-p 8380:80 -p 8381:80":            {"80/tcp": {{HostPort: "8380"}, {HostPort: "8381"}}},
		"-p 8380-8381:80-81":               {"80/tcp": {{HostPort: "8380"}}, "81/tcp": {{HostPort: "8381"}}},
		"-p 8380-8389:80":                  {"80/tcp": {{HostPort: "8380-8389"}}},
		"-p 8380:80/tcp -p 8380:80/udp":    {"80/tcp": {{HostPort: "8380"}}, "80/udp": {{HostPort: "8380"}}},
		"--expose 80":                      {},
		"--expose 80 -P":                   {"80/tcp": {{}}},
		"--expose 80-81 --expose 9/udp -P": {"80/tcp": {{}}, "81/tcp": {{}}, "9/udp": {{}}},
		"--expose 80 -P -p 8380:80":        {"80/tcp": {{HostPort: "8380"}}},
	} {
		args := append([]string{"create", "--name", "forms"}, strings.Fields(flags)...)
		e.Must(append(args, harness.BB, "true")...)
		var got map[string][]sandbox.PortBinding
		out := e.Must("inspect", "-f", "{{json .HostConfig.PortBindings}}", "forms")
		if err := json.Unmarshal([]byte(out), &got); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %s, want %v (%v)", flags, out, want, err)
		}
		e.Must("rm", "forms")
	}
}

// TestPublishChoice: of a range of host ports each sandbox gets the next free one.
func TestPublishChoice(t *testing.T) {
	e := harness.New(t, harness.BB)
	base := freeRange(t, e, 3)
	choice := fmt.Sprintf("%d-%d:80", base, base+2)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", base+1))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for i, name := range []string{"one", "two"} {
		detached(t, e, name, "-p", choice, harness.BB, "/probe", "serve", "80")
		want := base + 2*i
		if out := e.Must("port", name, "80"); out != fmt.Sprintf("0.0.0.0:%d\n[::]:%[1]d\n", want) {
			t.Errorf("%s has %q, want port %d", name, out, want)
		}
		waitGet(t, fmt.Sprintf("http://127.0.0.1:%d/", want))
	}
	e.Fails(125, []string{fmt.Sprintf("%d-%d", base, base+2), "all of these ports are in use"}, "run", "--rm", "-p", choice, harness.BB, "true")
	// Who has no choice goes first.
	taken.Close()
	e.Must("rm", "-f", "one")
	detached(t, e, "both", "-p", choice, "-p", fmt.Sprintf("%d:81", base), harness.BB, "sleep", "1000")
	if out := e.Must("port", "both", "80"); !strings.HasPrefix(out, fmt.Sprintf("0.0.0.0:%d\n", base+1)) {
		t.Errorf("%q", out)
	}
}

func waitGet(t *testing.T, url string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, func() error {
		_, err := harness.Get(url)
		return err
	})
}

// TestPortAddRemove: published ports come and go while the sandbox runs, and what goes
// on elsewhere goes on.
func TestPortAddRemove(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range []string{"", "builtin"} {
		t.Run("driver "+driver, func(t *testing.T) {
			e := e.In(t)
			first, second, echo := e.FreePort(), e.FreePort(), e.FreePort()
			args := []string{"-p", fmt.Sprintf("127.0.0.1:%d:7", echo)}
			if driver != "" {
				args = append(args, "--port-driver", driver)
			}
			name := "live" + driver
			detached(t, e, name, append(args, harness.BB, "sh", "-c", "/probe echo 7 & exec /probe serve 80 81")...)
			url := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d/", port) }
			var talk net.Conn
			say := func() {
				t.Helper()
				if talk == nil {
					harness.Eventually(t, 10*time.Second, func() (err error) {
						if talk, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", echo)); err != nil {
							return err
						}
						return echoed(talk)
					})
					return
				}
				if err := echoed(talk); err != nil {
					t.Errorf("the connection on the other port: %v", err)
				}
			}
			say()
			defer talk.Close()
			out := e.Must("port", "add", name, fmt.Sprintf("127.0.0.1:%d:80", first), fmt.Sprintf("127.0.0.1:%d:81", second))
			if want := fmt.Sprintf("80/tcp -> 127.0.0.1:%d\n81/tcp -> 127.0.0.1:%d\n", first, second); out != want {
				t.Errorf("%q, want %q", out, want)
			}
			waitGet(t, url(first))
			waitGet(t, url(second))
			say()
			// All or none.
			third := e.FreePort()
			e.Fails(1, []string{strconv.Itoa(first), "in use"}, "port", "add", name, fmt.Sprintf("127.0.0.1:%d:80", third), fmt.Sprintf("127.0.0.1:%d:82", first))
			if _, err := harness.Get(url(third)); err == nil {
				t.Error("half of what was refused is published")
			}
			e.Fails(1, []string{"is a port of the host"}, "port", "rm", name, strconv.Itoa(first))
			e.Must("port", "rm", name, fmt.Sprintf("%d:80", first))
			if _, err := harness.Get(url(first)); err == nil {
				t.Error("a port that was taken back answers")
			}
			waitGet(t, url(second))
			say()
			e.Fails(1, []string{"no public port '80/tcp'"}, "port", "rm", name, "80")
			if out := e.Must("port", name, "81"); out != fmt.Sprintf("127.0.0.1:%d\n", second) {
				t.Errorf("%q", out)
			}
			// What was changed holds for the next start.
			e.Must("restart", "-t", "0", name)
			waitGet(t, url(second))
			if out := e.Must("port", name); strings.Contains(out, "80/tcp") {
				t.Errorf("%q", out)
			}
			e.Must("stop", "-t", "0", name)
			e.Must("port", "rm", name, "81")
			e.Must("port", "add", name, fmt.Sprintf("127.0.0.1:%d:80", first))
			e.Fails(1, []string{strconv.Itoa(first), "already taken"}, "port", "add", name, fmt.Sprintf("%d:81", first))
			e.Must("start", name)
			waitGet(t, url(first))
			e.Must("rm", "-f", name)
		})
	}
	for mode, why := range map[string]string{"host": "the host's network", "none": "no network"} {
		detached(t, e, mode, "--network", mode, harness.BB, "sleep", "1000")
		e.Fails(1, []string{why}, "port", "add", mode, "80")
	}
	e.Fails(125, []string{"publish"}, "port", "add", "host", "x")
	e.Fails(1, []string{"no such sandbox"}, "port", "add", "none-such", "80")
}

// echoed says something and waits for the echo.
func echoed(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(harness.Slow(5 * time.Second))); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 5))
	return err
}
