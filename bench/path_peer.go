package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerPaths are the other programs. Every one gets the MTU of the group, the same
// network inside, 10.0.2.0/24, and a published port.
func peerPaths() []path {
	pasta, slirp, rk := regexp.MustCompile(`^(pasta|passt)`), regexp.MustCompile(`^slirp4netns`), regexp.MustCompile(`^rootlesskit|^exe$`)
	return []path{
		{name: "pasta", what: "pasta; published ports of the loopback, spliced", procs: pasta, start: startPasta},
		{name: "pasta-32M", what: "pasta, the host's tcp_wmem up to 32 MiB", procs: pasta, start: startPasta, wmem: "4096 16384 33554432"},
		{name: "pasta-stable", what: "pasta of the stable release of Debian", procs: pasta, start: startPasta, binary: "pasta-stable"},
		{name: "pasta-tap", what: "pasta; published ports of another address, not spliced", procs: pasta, start: startPasta, args: []string{hostIP4}},
		{name: "slirp4netns", what: "slirp4netns; hostfwd", procs: slirp, start: startSlirp},
		{name: "rootlesskit-builtin", what: "rootlesskit, builtin port driver (over slirp4netns)", procs: rk, start: startRootlesskit,
			args: []string{"--net=slirp4netns", "--port-driver=builtin"}},
		{name: "gvisor-tap-vsock", what: "gvisor-tap-vsock, in rootlesskit, with its port driver", procs: rk, start: startRootlesskit,
			args:  []string{"--net=gvisor-tap-vsock", "--port-driver=gvisor-tap-vsock"},
			lacks: map[string]string{"ip6": "no IPv6"}},
	}
}

func startPasta(w *world, p path, set setup) (*sandbox, error) {
	bin, err := w.peer(cmp.Or(p.binary, "pasta"))
	if err != nil {
		return nil, err
	}
	dir, err := w.runtimeDir()
	if err != nil {
		return nil, err
	}
	ip := "127.0.0.1"
	if len(p.args) > 0 {
		ip = p.args[0]
	}
	port := w.port()
	spec := fmt.Sprintf("%s/%s:%s", ip, port, serverPort)
	agent, err := load.Start(w.command(dir, bin, "--quiet", "--config-net", "--mtu", strconv.Itoa(set.mtu),
		"-a", "10.0.2.100", "-n", "24", "-g", "10.0.2.2", "-a", "fd00:2::100", "--dns-forward", "10.0.2.3",
		"-t", spec, "-u", spec, "-T", "none", "-U", "none", "--", w.agent, roleAgent), 5*time.Second)
	if err != nil {
		return nil, err
	}
	s := &sandbox{agent: agent, in: net.JoinHostPort(ip, port), dns: "10.0.2.3:53"}
	outTo(s)
	return s, nil
}

func startSlirp(w *world, p path, set setup) (*sandbox, error) {
	bin, err := w.peer("slirp4netns")
	if err != nil {
		return nil, err
	}
	s, err := w.startNetns()
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*sandbox, error) {
		s.close()
		return nil, err
	}
	dir, err := w.runtimeDir()
	if err != nil {
		return fail(err)
	}
	ready, readyW, err := os.Pipe()
	if err != nil {
		return fail(err)
	}
	defer ready.Close()
	sock := filepath.Join(dir, "slirp.sock")
	cmd := w.command(dir, bin, "--configure", "--mtu="+strconv.Itoa(set.mtu), "--enable-ipv6", "--ready-fd=3", "--api-socket="+sock,
		strconv.Itoa(s.pid), "tap0")
	cmd.ExtraFiles = []*os.File{readyW}
	log, err := s.background(cmd)
	readyW.Close()
	if err != nil {
		return fail(err)
	}
	ready.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := ready.Read(make([]byte, 1)); n != 1 {
		return fail(fmt.Errorf("slirp4netns is not ready: %v%v", err, log))
	}
	if err := inNetns(s.pid, slirpIPv6); err != nil {
		return fail(err)
	}
	port := w.port()
	for _, proto := range []string{"tcp", "udp"} {
		if err := slirpForward(sock, proto, port); err != nil {
			return fail(fmt.Errorf("slirp4netns add_hostfwd: %w", err))
		}
	}
	s.in, s.dns = net.JoinHostPort("127.0.0.1", port), "10.0.2.3:53"
	return s, nil
}

// slirpIPv6 sets what slirp4netns would advertise some seconds later.
func slirpIPv6() error {
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	tap, err := h.LinkByName("tap0")
	if err != nil {
		return err
	}
	if err := addAddr(h.AddrAdd, tap, "fd00::100/64"); err != nil {
		return err
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: tap.Attrs().Index, Gw: net.ParseIP("fd00::2")}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the IPv6 route of slirp4netns: %w", err)
	}
	return nil
}

func slirpForward(sock, proto, port string) error {
	c, err := net.DialTimeout("unix", sock, 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	host, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	guest, err := strconv.Atoi(serverPort)
	if err != nil {
		return err
	}
	err = json.NewEncoder(c).Encode(map[string]any{"execute": "add_hostfwd", "arguments": map[string]any{
		"proto": proto, "host_addr": "127.0.0.1", "host_port": host, "guest_addr": "10.0.2.100", "guest_port": guest,
	}})
	if err != nil {
		return err
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		return err
	}
	var answer struct {
		Error struct{ Desc string }
	}
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return err
	}
	if answer.Error.Desc != "" {
		return errors.New(answer.Error.Desc)
	}
	return nil
}

func startRootlesskit(w *world, p path, set setup) (*sandbox, error) {
	bin, err := w.peer("rootlesskit")
	if err != nil {
		return nil, err
	}
	dir, err := w.runtimeDir()
	if err != nil {
		return nil, err
	}
	port := w.port()
	spec := fmt.Sprintf("127.0.0.1:%s:%s/", port, serverPort)
	args := append([]string{bin, "--state-dir", filepath.Join(dir, "rk"), "--mtu", strconv.Itoa(set.mtu),
		"-p", spec + "tcp", "-p", spec + "udp"}, p.args...)
	agent, err := load.Start(w.command(dir, append(args, w.agent, roleAgent)...), 10*time.Second)
	if err != nil {
		return nil, err
	}
	s := &sandbox{agent: agent, in: net.JoinHostPort("127.0.0.1", port), dns: "10.0.2.3:53"}
	if p.name == "gvisor-tap-vsock" {
		s.dns = "10.0.2.1:53"
	}
	outTo(s)
	return s, nil
}

// gatewayOf asks a sandbox of sbx for its resolver: the network's gateway.
func gatewayOf(a *load.Agent) string {
	rep, err := a.Call(load.Request{Op: "exec", Args: []string{"/bin/busybox", "cat", "/etc/resolv.conf"}}, 5*time.Second)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(rep.Output) {
		if ip, ok := strings.CutPrefix(strings.TrimSpace(line), "nameserver "); ok {
			return net.JoinHostPort(ip, "53")
		}
	}
	return ""
}

// logTail keeps the end of a helper's output.
type logTail struct {
	mu   sync.Mutex
	data []byte
}

func (t *logTail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	t.data = t.data[max(0, len(t.data)-400):]
	return len(p), nil
}

func (t *logTail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.data) == 0 {
		return ""
	}
	return ": " + strings.TrimSpace(string(t.data))
}
