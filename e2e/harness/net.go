package harness

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FreePort returns a port on which nobody listens, TCP or UDP, and watches it: it
// must be free again after the test. It is none that the kernel gives to clients
// (ip_local_port_range): while a network's process is being replaced, one that asks for
// the port could be given just that, and would talk to itself.
func (e *Env) FreePort() int {
	e.t.Helper()
	for range 1000 {
		port := 10_000 + rand.IntN(22_768)
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		u, err := net.ListenPacket("udp", fmt.Sprintf(":%d", port))
		l.Close()
		if err == nil {
			u.Close()
			e.Watch(port)
			return port
		}
	}
	e.t.Fatal("no free port")
	return 0
}

// HostAddr returns the machine's own address that is not loopback, of a family: "4" or "6".
func HostAddr(t testing.TB, family string) (string, bool) {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if ok && n.IP.IsGlobalUnicast() && (n.IP.To4() != nil) == (family == "4") {
			return n.IP.String(), true
		}
	}
	return "", false
}

// httpClient makes a new connection for each request.
func httpClient(timeout time.Duration) *http.Client {
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true, Proxy: nil}}
}

// Get fetches a page from the host.
func Get(url string) (string, error) {
	resp, err := httpClient(Slow(10 * time.Second)).Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// WaitGet fetches a page, again and again until the server is there or p has ended.
func (p *Proc) WaitGet(url string) string {
	p.t.Helper()
	end := time.Now().Add(Slow(30 * time.Second))
	for {
		body, err := Get(url)
		if err == nil {
			return body
		}
		select {
		case <-p.done:
			p.t.Fatalf("ended before %s answered: %v", url, p.Result())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			p.t.Fatalf("GET %s: %v\n%v", url, err, p.Result())
		}
	}
}

// Eventually retries fn until it returns nil.
func Eventually(t testing.TB, timeout time.Duration, fn func() error) {
	t.Helper()
	timeout = Slow(timeout)
	end := time.Now().Add(timeout)
	for {
		began := time.Now()
		err := fn()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %v: %v", timeout, err)
		}
		time.Sleep(max(20*time.Millisecond, time.Since(began))) // half of the time is for what it waits for
	}
}

// Listening returns the TCP ports on which this machine listens.
func Listening(t testing.TB) map[int]bool {
	t.Helper()
	found := map[int]bool{}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if port, ok := listener(line); ok {
				found[port] = true
			}
		}
	}
	return found
}

// listener parses a line of /proc/net/tcp or udp: a listening or bound socket.
func listener(line string) (port int, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || (f[3] != "0A" && f[3] != "07") { // LISTEN; a bound UDP socket
		return 0, false
	}
	_, hex, _ := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	return int(n), err == nil
}
