package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/userns"
	"golang.org/x/sys/unix"
)

// sharedNet is a network that another sandbox, or somebody else, has made. This
// monitor was started in the user namespace that owns it.
type sharedNet struct {
	netns *os.File // nil: the host's
	// dir has the other sandbox's hosts, hostname and resolv.conf; "" if there is none.
	dir, hostname string
}

func (s *sharedNet) close() {
	if s != nil && s.netns != nil {
		s.netns.Close()
	}
}

// ownNetwork says that the sandbox has a network namespace of its own.
func (m *monitor) ownNetwork() bool { return m.spec.Network.Mode != "host" && m.shared == nil }

// hostNetwork says that it has the host's.
func (m *monitor) hostNetwork() bool {
	return m.spec.Network.Mode == "host" || m.shared != nil && m.shared.netns == nil
}

// shareNetwork finds the network that the sandbox is to share, if it is to: at each
// start again, for the other sandbox may have been started anew.
func (m *monitor) shareNetwork(ctx context.Context) (err error) {
	n := &m.spec.Network
	if id := n.Container(); id != "" {
		m.shared, err = m.networkOf(ctx, id)
		return err
	}
	path := n.NetNSPath()
	if path == "" {
		return nil
	}
	netns, err := userns.OpenNetNS(path)
	if err != nil {
		return err
	}
	m.shared = &sharedNet{netns: netns}
	user, err := unix.IoctlRetInt(int(netns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return &wire.Error{Step: "enter the network namespace", Path: path, Errno: errno(err)}
	}
	owner := os.NewFile(uintptr(user), path)
	defer owner.Close()
	return m.ownedHere(owner)
}

// networkOf asks the monitor of the other sandbox.
func (m *monitor) networkOf(ctx context.Context, id string) (*sharedNet, error) {
	conn, err := boxsock.Dial(ctx, proto.BoxSocket(m.spec.RuntimeDir, id))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, &wire.Error{Code: proto.CodeNotRunning, Msg: fmt.Sprintf("the sandbox %.12s, whose network this one shares, does not run", id), Fix: "start that one first"}
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	go func() { _ = conn.Serve(func(*wire.Message) {}) }() // it says nothing but the answer
	var net proto.NetNS
	reply, err := conn.Call(ctx, proto.MsgNetNS, nil, &net)
	if err != nil {
		return nil, err
	}
	defer reply.CloseFiles()
	s := &sharedNet{dir: net.Dir, hostname: net.Hostname}
	if net.Host {
		return s, nil
	}
	user, err := reply.Take("userns")
	if err != nil {
		return nil, err
	}
	defer user.Close()
	if err := m.ownedHere(user); err != nil {
		return nil, err
	}
	s.netns, err = reply.Take("netns")
	return s, err
}

// ownedHere refuses a network of another user namespace than this process's. It is so
// when the other sandbox was stopped and started while this one ran.
func (m *monitor) ownedHere(owner *os.File) error {
	same, err := userns.InUserNS(owner)
	if err == nil && !same {
		err = &wire.Error{Step: "share a network", Msg: "whose network it is has been started anew since", Fix: "start this sandbox anew too: sbx restart " + m.spec.Name}
	}
	return err
}

// netns answers another sandbox that is to share this one's network.
func (s *session) netns(req *wire.Message) error {
	net, files, err := s.m.lendNetwork()
	if err != nil {
		return err
	}
	defer closeLent(files)
	return s.conn.Reply(req, net, nil, files...)
}

func (m *monitor) lendNetwork() (net proto.NetNS, files []wire.File, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.init == nil || !m.started {
		return net, nil, errNotRunning()
	}
	net = proto.NetNS{Host: m.hostNetwork(), Dir: m.spec.Dir, Hostname: m.spec.Hostname}
	if m.shared != nil && m.shared.dir != "" {
		net.Dir, net.Hostname = m.shared.dir, m.shared.hostname
	}
	if net.Host {
		return net, nil, nil
	}
	open := func(name, path string) {
		f, oerr := os.Open(path)
		if oerr != nil {
			err = oerr
			return
		}
		files = append(files, wire.File{Name: name, File: f})
	}
	open("netns", fmt.Sprintf("/proc/%d/ns/net", m.init.PID))
	open("userns", "/proc/self/ns/user")
	if !m.init.Alive() { // the number may have been another process's
		err = errNotRunning()
	}
	if err != nil {
		closeLent(files)
		return net, nil, err
	}
	return net, files, nil
}

func closeLent(files []wire.File) {
	for _, f := range files {
		f.File.(*os.File).Close()
	}
}
