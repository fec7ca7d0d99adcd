package main

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/rootless-sbx/sbx/bench/load"
	"github.com/vishvananda/netlink"
)

// limitPaths are what the kernel gives without anybody between.
func limitPaths() []path {
	return []path{
		{name: "veth", what: "a veth pair, made by root: the limit of a network namespace", start: startVeth},
		{name: "loopback", what: "no namespace: the limit of the host", start: startLoopback,
			lacks: map[string]string{"east": "no sandbox"}},
	}
}

func startLoopback(w *world, p path, set setup) (*sandbox, error) {
	dir, err := w.runtimeDir()
	if err != nil {
		return nil, err
	}
	agent, err := load.Start(w.command(dir, w.agent, roleAgent), 5*time.Second)
	if err != nil {
		return nil, err
	}
	s := &sandbox{agent: agent, in: net.JoinHostPort("127.0.0.1", serverPort), dns: hostIP4 + ":53"}
	outTo(s)
	return s, nil
}

// startNetns starts an agent in a user and network namespace of its own, without
// any interface but lo.
func (w *world) startNetns() (*sandbox, error) {
	dir, err := w.runtimeDir()
	if err != nil {
		return nil, err
	}
	agent, err := load.Start(w.command(dir, "unshare", "--user", "--map-root-user", "--net", w.agent, roleAgent), 5*time.Second)
	if err != nil {
		return nil, err
	}
	s := &sandbox{agent: agent, pid: agent.Pid()}
	outTo(s)
	return s, nil
}

// startVeth connects with a veth pair; the host's end has a network of its own.
func startVeth(w *world, p path, set setup) (*sandbox, error) {
	s, err := w.startNetns()
	if err != nil {
		return nil, err
	}
	w.serial++
	n := w.serial % 250
	name := fmt.Sprintf("v%d", w.serial)
	host, guest := fmt.Sprintf("10.99.%d.1", n), fmt.Sprintf("10.99.%d.2", n)
	host6, guest6 := fmt.Sprintf("fd99:%x::1", n), fmt.Sprintf("fd99:%x::2", n)
	attrs := netlink.LinkAttrs{Name: name, MTU: set.mtu, TxQLen: 1000}
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(set.mtu), PeerNamespace: netlink.NsPid(s.pid)}
	err = netlink.LinkAdd(pair)
	if err == nil {
		s.stops = append(s.stops, func() { netlink.LinkDel(pair) })
		err = errors.Join(addAddr(netlink.AddrAdd, pair, host+"/24"), addAddr(netlink.AddrAdd, pair, host6+"/64"), netlink.LinkSetUp(pair))
	}
	if err == nil {
		err = inNetns(s.pid, func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			eth, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			lo, err := h.LinkByName("lo")
			if err != nil {
				return err
			}
			return errors.Join(h.LinkSetUp(lo), addAddr(h.AddrAdd, eth, guest+"/24"), addAddr(h.AddrAdd, eth, guest6+"/64"), h.LinkSetUp(eth),
				h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.ParseIP(host)}))
		})
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("veth pair: %w", err)
	}
	s.out4, s.out6 = net.JoinHostPort(host, serverPort), net.JoinHostPort(host6, serverPort)
	s.in, s.dns = net.JoinHostPort(guest, serverPort), hostIP4+":53"
	return s, nil
}
