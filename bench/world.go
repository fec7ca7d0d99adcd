package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The host of the run: its network namespace has one wired interface with these
// addresses and a default route, as pasta wants to copy, and its servers.
const (
	hostIP4    = "203.0.113.10"
	hostIP6    = "2001:db8:113::10"
	serverPort = "5201"
)

type world struct {
	opt         options
	user        identity
	work        string // a directory on disk, the user's
	home        string
	root        string // the root file system of every sandbox
	agent       string // this program, readable by the user
	peers       string // where the peers are
	path        string // PATH
	server      *load.Agent
	dns         *load.Agent
	serial      int    // of runtime directories, ports and veth pairs
	installedCC string // congestion control as the machine has it
}

func newWorld(work string, opt options) (*world, error) {
	w := &world{opt: opt, work: work, peers: opt.peers}
	var err error
	if w.user, err = benchUser(); err != nil {
		return nil, err
	}
	w.path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:" + w.peers
	if err := w.makeFiles(); err != nil {
		return nil, err
	}
	if err := w.makeNetwork(); err != nil {
		return nil, fmt.Errorf("the host's network: %w", err)
	}
	return w, nil
}

func (w *world) close() {
	for _, a := range []*load.Agent{w.server, w.dns} {
		if a != nil {
			a.Close()
		}
	}
}

// makeFiles copies the programs to the work directory and makes a root file system
// of this program and busybox.
func (w *world) makeFiles() error {
	w.home, w.root, w.agent = w.work+"/home", w.work+"/root", w.work+"/bin/bench"
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	for i, s := range w.opt.sbx {
		to := filepath.Join(w.work, "bin", s.name, "sbx")
		if err := copyFile(s.file, to); err != nil {
			return err
		}
		w.opt.sbx[i].file = to
	}
	err = errors.Join(copyFile(exe, w.agent), copyFile(exe, w.root+"/bench"))
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "usr"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(w.root, d), 0o755))
	}
	busybox, e := exec.LookPath("busybox")
	if e != nil {
		return errors.Join(err, fmt.Errorf("busybox, of which the root file system is made: %w: run scripts/setup.sh", e))
	}
	err = errors.Join(err, copyFile(busybox, w.root+"/bin/busybox"),
		os.Symlink("busybox", w.root+"/bin/true"), os.Symlink("busybox", w.root+"/bin/sh"))
	err = errors.Join(err, os.MkdirAll(w.home, 0o700))
	err = errors.Join(err, filepath.WalkDir(w.work, func(p string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, w.user.uid, w.user.gid))
	}))
	// Sockets live on a tmpfs of our own, so the user's running sandboxes are not seen.
	run := fmt.Sprintf("/run/user/%d", w.user.uid)
	err = errors.Join(err, os.MkdirAll("/run/user", 0o755),
		unix.Mount("tmpfs", "/run/user", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"),
		os.Mkdir(run, 0o700), os.Chown(run, w.user.uid, w.user.gid))
	resolv := w.work + "/resolv.conf"
	err = errors.Join(err, os.WriteFile(resolv, []byte("nameserver "+hostIP4+"\n"), 0o644))
	return errors.Join(err, unix.Mount(resolv, "/etc/resolv.conf", "", unix.MS_BIND, ""))
}

// runtimeDir makes an XDG_RUNTIME_DIR of its own for each path, and with it a
// network process of its own.
func (w *world) runtimeDir() (string, error) {
	w.serial++
	dir := fmt.Sprintf("/run/user/%d/%d", w.user.uid, w.serial)
	return dir, errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, w.user.uid, w.user.gid))
}

func (w *world) makeNetwork() error {
	for name, value := range map[string]string{
		"net/ipv4/ping_group_range":                  "0 2147483647",
		"net/ipv4/ip_local_port_range":               "10000 65000",
		"net/ipv4/ip_unprivileged_port_start":        "53",
		"net/ipv6/conf/default/accept_dad":           "0",
		"net/ipv6/conf/all/disable_ipv6":             "0",
		"net/ipv4/tcp_max_tw_buckets":                "262144",
		"net/ipv6/conf/default/disable_ipv6":         "0",
		"net/ipv6/conf/all/accept_dad":               "0",
		"net/ipv6/conf/lo/disable_ipv6":              "0",
		"net/ipv6/conf/default/router_solicitations": "0",
	} {
		if err := sysctl(name, value); err != nil {
			return err
		}
	}
	cc, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	if err != nil {
		return err
	}
	w.installedCC = strings.TrimSpace(string(cc))
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	wan := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan1"}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(wan)); err != nil {
		return err
	}
	far, err := netlink.LinkByName("wan1")
	if err != nil {
		return err
	}
	err = errors.Join(netlink.LinkSetUp(far), netlink.LinkSetUp(wan),
		addAddr(netlink.AddrAdd, wan, hostIP4+"/24"), addAddr(netlink.AddrAdd, wan, hostIP6+"/64"))
	for _, gw := range []string{"203.0.113.1", "2001:db8:113::1"} {
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: wan.Attrs().Index, Gw: net.ParseIP(gw)}))
	}
	return err
}

// settings are the host's that the figures depend on.
func (w *world) settings() map[string]string {
	m := map[string]string{"congestion control as installed": w.installedCC}
	for _, name := range []string{"net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/core/rmem_max", "net/core/wmem_max"} {
		v, err := os.ReadFile("/proc/sys/" + name)
		if err == nil { // an older kernel hides net/core from a namespace
			m[filepath.Base(name)] = strings.Join(strings.Fields(string(v)), " ")
		}
	}
	return m
}

func addAddr(add func(netlink.Link, *netlink.Addr) error, l netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	a.Flags |= unix.IFA_F_NODAD
	if err := add(l, a); err != nil {
		return fmt.Errorf("address %s: %w", cidr, err)
	}
	return nil
}

// startServers starts the host's server, with the sysctls as they are now.
func (w *world) startServers() error {
	w.close()
	dir, err := w.runtimeDir()
	if err != nil {
		return err
	}
	start := func(req load.Request) (*load.Agent, error) {
		a, err := load.Start(w.command(dir, w.agent, roleAgent), 5*time.Second)
		if err == nil {
			_, err = a.Call(req, 5*time.Second)
		}
		return a, err
	}
	if w.server, err = start(load.Request{Op: "serve", Addr: ":" + serverPort}); err != nil {
		return fmt.Errorf("the server: %w", err)
	}
	if w.dns, err = start(load.Request{Op: "servedns", Addr: hostIP4 + ":53"}); err != nil {
		return fmt.Errorf("the name server: %w", err)
	}
	return nil
}

// sysctl sets a sysctl of the network namespace of the calling thread.
func sysctl(name, value string) error {
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", strings.ReplaceAll(name, "/", "."), value, err)
	}
	return nil
}

// inNetns calls f on a thread that is in the network namespace of a process.
func inNetns(pid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		done <- func() error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter the network of process %d: %w", pid, err)
			}
			return f()
		}()
	}()
	return <-done
}
