package netd

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/netstack"
)

// names looks for names in the other networks that the asking sandbox is on, by
// questions to their processes.
type names struct {
	s *server

	mu     sync.Mutex // guards what follows
	others map[netip.Addr][]string
	conns  map[string]*Client // to other networks' processes
}

func newNames(s *server) *names {
	return &names{s: s, others: map[netip.Addr][]string{}, conns: map[string]*Client{}}
}

// elsewhere gives what asks the other networks of a sandbox, in its order, with a query
// that this network has no name for; nil if the sandbox is on no other network.
func (n *names) elsewhere(client netip.Addr) func(ctx context.Context, query []byte) ([]byte, bool) {
	n.mu.Lock()
	others := n.others[client]
	n.mu.Unlock()
	if len(others) == 0 {
		return nil
	}
	return func(ctx context.Context, query []byte) ([]byte, bool) { return n.ask(ctx, others, query) }
}

func (n *names) ask(ctx context.Context, others []string, query []byte) (answer []byte, unsure bool) {
	for _, name := range others {
		c, err := n.connect(ctx, name)
		var a Answer
		if c != nil {
			a, err = c.Resolve(ctx, query)
		}
		if c == nil || err != nil {
			// The client is on it, so its process was killed and another one will come.
			n.s.log.Debug("ask another network for a name", "other", name, "err", err)
			a = Answer{Unsure: n.s.dns.MayHave(query)}
		}
		if a.Answer != nil {
			return a.Answer, false
		}
		unsure = unsure || a.Unsure
	}
	return nil, unsure
}

// connect returns the connection to another network's process, nil if there is none.
func (n *names) connect(ctx context.Context, name string) (*Client, error) {
	if c := n.connected(name, nil); c != nil {
		return c, nil
	}
	c, err := Connect(ctx, n.s.cfg.RuntimeDir, Hello{Name: name})
	if c == nil {
		return nil, err
	}
	return n.connected(name, c), nil
}

// connected returns the connection that there is. If there is none, fresh becomes it;
// else that is closed.
func (n *names) connected(name string, fresh *Client) *Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.conns[name]
	if c != nil && !c.ended() {
		if fresh != nil {
			go fresh.Close()
		}
		return c
	}
	if c != nil {
		go c.Close() // it waits for its reader
		delete(n.conns, name)
	}
	if fresh != nil {
		n.conns[name] = fresh
	}
	return fresh
}

// set says which other networks a sandbox is on, by its addresses here.
func (n *names) set(l Lease, others []string) {
	n.mu.Lock()
	for _, a := range []netip.Addr{l.Addr4, l.Addr6} {
		if delete(n.others, a); a.IsValid() && len(others) > 0 {
			n.others[a] = others
		}
	}
	n.mu.Unlock()
	n.forget()
}

// forget ends the connections that no sandbox needs any more: they would keep the
// other process from leaving.
func (n *names) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, c := range n.conns {
		if !slices.ContainsFunc(slices.Collect(maps.Values(n.others)), func(o []string) bool { return slices.Contains(o, name) }) {
			delete(n.conns, name)
			go c.Close()
		}
	}
}

func (n *names) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, c := range n.conns {
		c.Close()
		delete(n.conns, name)
	}
}

// resolve answers another network's process, with our own names alone.
func (x *session) resolve(m *wire.Message) {
	var q Question
	if m.Decode(&q) != nil {
		x.reply(m, Answer{}, nil)
		return
	}
	b := x.s.dns.Local(q.Query)
	x.reply(m, Answer{b, b == nil && x.s.dns.Settling() && x.s.dns.MayHave(q.Query)}, nil)
}

// publishNames makes the sandbox's names known. A name of its own that cannot be one
// in DNS is left out, and an alias is refused.
func (x *session) publishNames(m Member) error {
	list := x.nameList(m)
	err := x.s.dns.SetRecords(x.id, list, x.addrs())
	for bad := (*netstack.ErrRecord)(nil); errors.As(err, &bad); err = x.s.dns.SetRecords(x.id, list, x.addrs()) {
		if slices.ContainsFunc(m.Aliases, func(a string) bool { return sameName(a, bad.Name) }) {
			return err
		}
		n := len(list)
		if list = slices.DeleteFunc(list, func(s string) bool { return sameName(s, bad.Name) }); len(list) == n {
			return err
		}
		x.log.Warn("a name cannot be resolved", "err", bad)
	}
	if err != nil {
		return err
	}
	x.s.names.set(x.lease, m.Networks)
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	x.member = m
	return nil
}

func (x *session) addrs() []netip.Addr { return valid(x.lease.Addr4, x.lease.Addr6) }

// valid leaves out what a network without a family does not have.
func valid(list ...netip.Addr) []netip.Addr {
	return slices.DeleteFunc(list, func(a netip.Addr) bool { return !a.IsValid() })
}

// nameList are all names of the sandbox; the first is that of reverse look-ups.
func (x *session) nameList(m Member) []string {
	var list []string
	for _, s := range slices.Concat([]string{x.lease.Name, x.id[:min(12, len(x.id))]}, m.Aliases, []string{m.Hostname}) {
		if s != "" && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}
