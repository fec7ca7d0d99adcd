package sandbox

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
)

// Link makes another sandbox known inside, as docker run --link does: in /etc/hosts by
// its alias, and in the environment with its ports and environment. Names are resolved
// on every network without it.
type Link = proto.LinkTo

const maxLinks = 64

// ParseLink reads SANDBOX[:ALIAS].
func ParseLink(s string) (Link, error) {
	target, alias, ok := strings.Cut(s, ":")
	if !ok {
		alias = target
	}
	if target == "" || alias == "" {
		return Link{}, fmt.Errorf("%q is not SANDBOX or SANDBOX:ALIAS", s)
	}
	return Link{Target: target, Alias: alias}, nil
}

func checkLinks(c *Config) error {
	if len(c.Links) > maxLinks {
		return badConfig("link", "%d links, limit %d", len(c.Links), maxLinks)
	}
	for _, l := range c.Links {
		if alone(c.mode()) {
			return badConfig("link", "with the network %s there are no links", c.mode())
		}
		if err := netstack.CheckName(l.Alias); err != nil {
			return &ConfigError{Field: "link", Err: err}
		}
	}
	return nil
}

// links are what the links mean at this start: variables, and lines of /etc/hosts. They
// are not recorded, for the next time the others may have other ports.
func (s *Sandbox) links(ctx context.Context) (env, hosts []string, err error) {
	for _, l := range s.start.Network.Links {
		e, h, err := s.link(ctx, l)
		if err != nil {
			return nil, nil, err
		}
		env, hosts = append(env, e...), append(hosts, h...)
	}
	return env, hosts, nil
}

func (s *Sandbox) link(ctx context.Context, l Link) (env, hosts []string, err error) {
	t, err := s.e.Open(ctx, l.Target)
	if err != nil {
		return nil, nil, fmt.Errorf("link to %s: %w", l.Target, err)
	}
	st, err := t.look(ctx)
	if err != nil {
		return nil, nil, err
	}
	if !st.Alive() {
		return nil, nil, &StateError{Kind: ErrNotRunning, Name: l.Target, Msg: "a link to a sandbox that does not run", Fix: "sbx start " + l.Target}
	}
	addr := s.sharedAddr(st)
	if addr == "" {
		return nil, nil, badConfig("link", "%s is on no network of this sandbox", l.Target)
	}
	hosts = []string{l.Alias + ":" + addr, t.id[:12] + ":" + addr}
	if t.name != l.Alias {
		hosts = append(hosts, t.name+":"+addr)
	}
	return linkEnv(s.name, l.Alias, addr, t.rec), hosts, nil
}

// sharedAddr is where a sandbox is reached on a network that both are on.
func (s *Sandbox) sharedAddr(st *record.State) string {
	for _, a := range s.start.Network.Attachments {
		for _, p := range st.Networks {
			if p.Network == a.Network.Name && p.Prefix4.IsValid() {
				return p.Prefix4.Addr().String()
			} else if p.Network == a.Network.Name {
				return p.Prefix6.Addr().String()
			}
		}
	}
	return ""
}

// linkEnv are Docker's variables: ALIAS_NAME, ALIAS_PORT for the lowest port and
// ALIAS_PORT_80_TCP and its parts for each, and ALIAS_ENV_NAME for the environment.
func linkEnv(name, alias, addr string, rec *record.Config) []string {
	up := strings.ReplaceAll(strings.ToUpper(alias), "-", "_")
	type exposed struct {
		port  int
		proto string
	}
	var ports []exposed
	for _, p := range rec.Exposed {
		n, proto, _ := strings.Cut(p, "/")
		if v, err := strconv.Atoi(n); err == nil {
			ports = append(ports, exposed{v, proto})
		}
	}
	slices.SortFunc(ports, func(a, b exposed) int {
		if a.port != b.port {
			return a.port - b.port
		}
		return strings.Compare(a.proto, b.proto)
	})
	var env []string
	for i, p := range ports {
		url := p.proto + "://" + net.JoinHostPort(addr, strconv.Itoa(p.port))
		if i == 0 {
			env = append(env, up+"_PORT="+url)
		}
		key := fmt.Sprintf("%s_PORT_%d_%s", up, p.port, strings.ToUpper(p.proto))
		env = append(env, key+"="+url, key+"_ADDR="+addr, fmt.Sprintf("%s_PORT=%d", key, p.port), key+"_PROTO="+p.proto)
	}
	env = append(env, fmt.Sprintf("%s_NAME=/%s/%s", up, name, alias))
	for _, kv := range rec.Start.Process.Env {
		if k, _, ok := strings.Cut(kv, "="); ok && k != "HOME" && k != "PATH" {
			env = append(env, up+"_ENV_"+kv)
		}
	}
	return env
}

// linkTexts are links as docker inspect shows them.
func linkTexts(name string, n *proto.Network) (list []string) {
	for _, l := range n.Links {
		list = append(list, fmt.Sprintf("/%s:/%s/%s", l.Target, name, l.Alias))
	}
	return list
}
