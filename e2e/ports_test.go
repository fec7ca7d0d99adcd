package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/e2e/harness"
	"github.com/rootless-sbx/sbx/e2e/probe"
)

var (
	portDrivers = []string{"direct", "stack", "builtin"}
	linkDrivers = []string{"tap", "packet"}
)

func serve(t *testing.T, e *harness.Env, flags []string, cmd ...string) *harness.Proc {
	t.Helper()
	p := e.Start(append(append(append([]string{"run", "--rm"}, flags...), harness.BB, "/probe"), cmd...)...)
	p.WaitOut("ready", 30*time.Second)
	return p
}

// TestPublish: each form of -p, tried from where it should and should not answer.
func TestPublish(t *testing.T) {
	e := harness.New(t, harness.BB)
	host4, has4 := harness.HostAddr(t, "4")
	for _, c := range []struct {
		name, spec string
		yes, no    []string
	}{
		{"loopback", "127.0.0.1:PORT:80", []string{"127.0.0.1"}, []string{"[::1]", "127.0.0.2", "HOST"}},
		{"another loopback", "127.0.0.2:PORT:80", []string{"127.0.0.2"}, []string{"127.0.0.1"}},
		{"IPv6 loopback", "[::1]:PORT:80", []string{"[::1]"}, []string{"127.0.0.1"}},
		{"every address", "0.0.0.0:PORT:80", []string{"127.0.0.1", "127.0.0.3", "HOST"}, nil},
		{"own address", "HOST:PORT:80", []string{"HOST"}, []string{"127.0.0.1", "[::1]"}},
		{"explicit protocol", "127.0.0.1:PORT:80/tcp", []string{"127.0.0.1"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.HasPrefix(c.spec, "HOST") && !has4 {
				t.Skip("this machine has no address but loopback")
			}
			e := e.In(t)
			port := e.FreePort()
			p := serve(t, e, []string{"-p", strings.NewReplacer("PORT", strconv.Itoa(port), "HOST", host4).Replace(c.spec)}, "serve", "80")
			url := func(a string) string { return fmt.Sprintf("http://%s:%d/", strings.ReplaceAll(a, "HOST", host4), port) }
			for _, a := range c.yes {
				if a != "HOST" || has4 {
					p.WaitGet(url(a))
				}
			}
			for _, a := range c.no {
				if a != "HOST" || has4 {
					if body, err := harness.Get(url(a)); err == nil {
						t.Errorf("%s answered %q", url(a), body)
					}
				}
			}
			p.Stop()
		})
	}
}

func TestPublishBare(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := e.FreePort()
	p := serve(t, e, []string{"-p", fmt.Sprintf("%d:80", port)}, "serve", "80")
	p.WaitGet(fmt.Sprintf("http://localhost:%d/", port))
	p.WaitGet(fmt.Sprintf("http://[::1]:%d/", port))
	p.Stop()
}

func TestPublishRange(t *testing.T) {
	e := harness.New(t, harness.BB)
	base := freeRange(t, e, 3)
	p := serve(t, e, []string{"-p", fmt.Sprintf("127.0.0.1:%d-%d:8000-8002", base, base+2)}, "serve", "8000", "8001", "8002")
	for i := range 3 {
		p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", base+i))
	}
	p.Stop()
}

func freeRange(t *testing.T, e *harness.Env, n int) int {
	t.Helper()
next:
	for base := 21000; base < 30000; base += n {
		for i := range n {
			l, err := net.Listen("tcp", fmt.Sprintf(":%d", base+i))
			if err != nil {
				continue next
			}
			l.Close()
		}
		for i := range n {
			e.Watch(base + i)
		}
		return base
	}
	t.Fatal("no free range")
	return 0
}

// few is how many bytes or connections a test takes where n would take too long.
func few(n int) int {
	if testing.Short() {
		return n / 16
	}
	return n
}

// TestPublishedBehaviour: what every forwarder must do, over both kinds of link.
func TestPublishedBehaviour(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range portDrivers {
		for _, link := range linkDrivers {
			t.Run(driver+"/"+link, func(t *testing.T) {
				e := e.In(t)
				port, echo := e.FreePort(), e.FreePort()
				flags := []string{"--port-driver", driver, "--link-driver", link, "-p", fmt.Sprintf("%d:80", port),
					"-p", fmt.Sprintf("%d:7", echo), "-p", fmt.Sprintf("127.0.0.1:%d:7/udp", echo), "-p", fmt.Sprintf("[::1]:%d:7/udp", echo)}
				web := e.Start(append(append([]string{"run", "--rm"}, flags...), harness.BB, "sh", "-c", "/probe echo 7 & exec /probe serve 80")...)
				web.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", port))
				web.WaitGet(fmt.Sprintf("http://[::1]:%d/", port))
				t.Run("transfer", func(t *testing.T) {
					base := fmt.Sprintf("http://127.0.0.1:%d", port)
					size := int64(few(1 << 30))
					if err := probe.Up(base, size, 1); err != nil {
						t.Errorf("into the sandbox: %v", err)
					}
					if err := probe.Down(base, size, 2); err != nil {
						t.Errorf("out of the sandbox: %v", err)
					}
				})
				t.Run("connections", func(t *testing.T) {
					if err := probe.Many(fmt.Sprintf("127.0.0.1:%d", echo), few(5000), 32); err != nil {
						t.Error(err)
					}
				})
				t.Run("datagrams", func(t *testing.T) {
					for _, a := range []string{"127.0.0.1", "[::1]"} {
						if err := probe.UDP(fmt.Sprintf("%s:%d", a, echo), []int{1, 2, 100, 1400, 1472, 1473, 9000, 32000, 60000}); err != nil {
							t.Errorf("%s: %v", a, err)
						}
					}
				})
				web.Stop()
			})
		}
	}
}

// TestPublishedRefused: a port on which nobody listens inside looks like one.
func TestPublishedRefused(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, driver := range portDrivers {
		port := e.FreePort()
		p := serve(t, e, []string{"--port-driver", driver, "-p", fmt.Sprintf("127.0.0.1:%d:81", port)}, "serve", "80")
		c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), harness.Slow(5*time.Second))
		if err == nil {
			// The listener is the host's, so connect succeeds; then the connection is reset or ends at once.
			if err := c.SetDeadline(time.Now().Add(harness.Slow(5 * time.Second))); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("%s: read %d bytes from nobody", driver, n)
			} else if nerr, ok := err.(net.Error); ok && nerr.Timeout() {
				t.Errorf("%s: still open after 5 s", driver)
			}
			c.Close()
		}
		p.Stop()
	}
}

// TestPublishAll: each exposed TCP port of the image answers on some port of the host.
func TestPublishAll(t *testing.T) {
	e := harness.New(t, harness.App)
	before := harness.Listening(t)
	p := e.Start("run", "--rm", "-P", "--entrypoint", "/probe", harness.App, "serve", "8080", "8081")
	p.WaitOut("ready", 30*time.Second)
	found := 0
	for port := range harness.Listening(t) {
		if before[port] {
			continue
		}
		if body, err := harness.Get(fmt.Sprintf("http://127.0.0.1:%d/", port)); err == nil && body == "probe /" {
			e.Watch(port)
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d new ports answer, want 2", found)
	}
	p.Stop()
}

func TestPortClashes(t *testing.T) {
	e := harness.New(t, harness.BB)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	for _, driver := range portDrivers {
		for _, spec := range []string{"127.0.0.1:%d:80", "%d:80", "0.0.0.0:%d:80"} {
			e.Fails(125, []string{strconv.Itoa(port), "in use"}, "run", "--rm", "--port-driver", driver, "-p", fmt.Sprintf(spec, port), harness.BB, "true")
		}
	}
	e.Fails(125, []string{"ip_unprivileged_port_start"}, "run", "--rm", "-p", "80:80", harness.BB, "true")

	own := e.FreePort()
	p := serve(t, e, []string{"-p", fmt.Sprintf("127.0.0.1:%d:80", own)}, "serve", "80")
	e.Fails(125, []string{strconv.Itoa(own), "in use"}, "run", "--rm", "-p", fmt.Sprintf("127.0.0.1:%d:80", own), harness.BB, "true")
	p.WaitGet(fmt.Sprintf("http://127.0.0.1:%d/", own))
	p.Stop()
}

func TestBadPortSpecs(t *testing.T) {
	e := harness.New(t, harness.BB)
	for _, spec := range []string{"", "x", "80:", "0", "70000", "80-79", "8000-8001:80-82", "1.2.3:80:80", "::1:80:80", "80/bogus", "80/", "-1:80", "80:80:80:80", "[::1:80:80", "host:80:80"} {
		e.Fails(125, []string{"publish"}, "run", "--rm", "-p", spec, harness.BB, "true")
	}
	// An address that is not ours is a matter of the machine, and is named.
	e.Fails(125, []string{"203.0.113.77"}, "run", "--rm", "-p", "203.0.113.77:8080:80", harness.BB, "true")
}

// TestPortAgain: what ended has given its published ports back.
func TestPortAgain(t *testing.T) {
	e := harness.New(t, harness.BB)
	port := fmt.Sprintf("127.0.0.1:%d:80", e.FreePort())
	for range 10 {
		detached(t, e, "web", "-p", port, harness.BB, "sleep", "1000")
		e.Must("rm", "-f", "web")
	}
	for range 5 {
		e.Must("run", "--rm", "-p", port, harness.BB, "true")
	}
}
