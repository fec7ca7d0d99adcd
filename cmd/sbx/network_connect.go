package main

import (
	"context"
	"encoding/csv"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/pflag"
)

// placeOptions are wishes for a place in a network, of run and of connect.
type placeOptions struct {
	ip, ip6, mac string
	aliases      []string
}

func (o *placeOptions) define(fs *pflag.FlagSet, alias string) {
	fs.StringVar(&o.ip, "ip", "", "IPv4 address `IP` in the network (default: chosen), or dhcp on an uplink")
	fs.StringVar(&o.ip6, "ip6", "", "IPv6 address `IP` in the network (default: chosen)")
	lists(fs, &o.aliases, alias, "", "more `NAME` for the sandbox in the network; others may have it too")
}

// apply adds the wishes to a place that has none of its kind.
func (o *placeOptions) apply(a *sandbox.Attachment) error {
	for _, w := range []struct {
		key, value string
		has        bool
	}{
		{"ip", o.ip, a.Addr4.IsValid() || a.DHCP}, {"ip6", o.ip6, a.Addr6.IsValid()}, {"mac-address", o.mac, a.MAC != nil},
	} {
		if w.value == "" {
			continue
		}
		if w.has {
			return usagef("--%s %s: --network %s has another one", w.key, w.value, a.Network)
		}
		if err := setPlace(a, w.key, w.value); err != nil {
			return usagef("--%s %q: %v", w.key, w.value, err)
		}
	}
	a.Aliases = append(a.Aliases, o.aliases...)
	return nil
}

// setPlace sets one wish by its name in --network name=N,...
func setPlace(a *sandbox.Attachment, key, v string) (err error) {
	switch key {
	case "name":
		a.Network = v
	case "alias":
		a.Aliases = append(a.Aliases, v)
	case "ip":
		if a.DHCP = v == "dhcp"; a.DHCP {
			break
		}
		if a.Addr4, err = netip.ParseAddr(v); err != nil || !a.Addr4.Is4() {
			err = fmt.Errorf("want an IPv4 address, or dhcp")
		}
	case "ip6":
		if a.Addr6, err = netip.ParseAddr(v); err != nil || !a.Addr6.Is6() {
			err = fmt.Errorf("want an IPv6 address")
		}
	case "mac", "mac-address":
		if a.MAC, err = net.ParseMAC(v); err != nil || len(a.MAC) != 6 {
			err = fmt.Errorf("want an address such as 02:42:ac:11:00:02")
		}
	case "gw-priority", "priority":
		if a.GatewayPriority, err = strconv.Atoi(v); err != nil {
			err = fmt.Errorf("want a number")
		}
	default:
		err = fmt.Errorf("there is no %q; use name=, alias=, ip=, ip6=, mac= and gw-priority=", key)
	}
	return err
}

// parsePlace reads a value of --network: a name, or name=N,alias=A,ip=...
func parsePlace(s string) (a sandbox.Attachment, err error) {
	key, _, ok := strings.Cut(s, "=")
	if !ok || strings.Contains(key, ":") { // a name, or a path behind ns:
		a.Network = s
		return a, nil
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return a, usagef("--network %q: %v", s, err)
	}
	for _, f := range fields {
		key, v, ok := strings.Cut(f, "=")
		if !ok || v == "" {
			return a, usagef("--network %q: %q is not KEY=VALUE", s, f)
		}
		if err := setPlace(&a, strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(v)); err != nil {
			return a, usagef("--network %q: %s: %v", s, key, err)
		}
	}
	if a.Network == "" {
		return a, &usage{msg: fmt.Sprintf("--network %q: no name", s), fix: "write --network name=NETWORK,ip=..."}
	}
	return a, nil
}

// parseNetworks are the networks as they were named, each once; the wishes of other
// flags are for the first.
func (o *runOptions) parseNetworks(cfg *sandbox.Config) error {
	for _, s := range o.networks {
		a, err := parsePlace(s)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(cfg.Networks, func(b sandbox.Attachment) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
			cfg.Networks = append(cfg.Networks, a)
		}
	}
	for _, s := range o.links {
		l, err := sandbox.ParseLink(s)
		if err != nil {
			return usagef("--link %v", err)
		}
		cfg.Links = append(cfg.Links, l)
	}
	if o.place.ip+o.place.ip6+o.place.mac == "" && o.place.aliases == nil {
		return nil
	}
	if len(cfg.Networks) == 0 {
		cfg.Networks = sandbox.On(sandbox.NetworkDefault)
	}
	return o.place.apply(&cfg.Networks[0])
}

func networkConnectCommand(g *globals) *command {
	var o placeOptions
	var priority int
	c := &command{
		Use: "connect [OPTIONS] NETWORK SANDBOX", Short: "Connect a sandbox to a network, also while it runs", Args: wantArgs(2, 2),
		Complete: completeNetworkThenBox,
	}
	fs := c.Flags()
	o.define(fs, "alias")
	fs.StringVar(&o.mac, "mac-address", "", "`MAC` address in the network (default: chosen)")
	fs.IntVar(&priority, "gw-priority", 0, "of several networks the one with the highest `NUMBER` is the way out")
	defineRefused(fs, unsupportedFlag{name: "link", why: "it would change the environment of what runs", fix: "use the sandbox's name, or --alias"},
		unsupportedFlag{name: "driver-opt", why: "places have no options"}, unsupportedFlag{name: "link-local-ip", why: "the kernel chooses it"})
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		a := sandbox.Attachment{Network: args[0], GatewayPriority: priority}
		if err := o.apply(&a); err != nil {
			return err
		}
		s, err := e.Open(ctx, args[1])
		if err != nil {
			return err
		}
		return s.ConnectNetwork(ctx, a)
	})
	return c
}

func networkDisconnectCommand(g *globals) *command {
	var force bool
	c := &command{
		Use: "disconnect [OPTIONS] NETWORK SANDBOX", Short: "Disconnect a sandbox from a network, also while it runs", Args: wantArgs(2, 2),
		Complete: completeNetworkThenBox,
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "as always: what is connected there is reset")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		s, err := e.Open(ctx, args[1])
		if err != nil {
			return err
		}
		return s.DisconnectNetwork(ctx, args[0])
	})
	return c
}

// completeNetworks offers networks for the first most arguments; any number if most
// is negative.
func completeNetworks(most int) completion {
	return func(c *command, in typed) (o offers) {
		if most >= 0 && len(in.args) >= most {
			return o
		}
		for _, n := range networkNames(c.Context()) {
			if !slices.Contains(in.args, n) {
				o.words = append(o.words, n)
			}
		}
		return o
	}
}

func completeNetworkThenBox(c *command, in typed) offers {
	if len(in.args) == 0 {
		return completeNetworks(1)(c, in)
	}
	return completeBoxes(2, nil)(c, in)
}

// networkNames are the user's networks. A directory that cannot be read offers none.
func networkNames(ctx context.Context) (names []string) {
	e, err := sandbox.NewEngine(sandbox.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil
	}
	list, err := e.Networks(ctx)
	if err != nil {
		return nil
	}
	for _, n := range list {
		names = append(names, n.PublicName())
	}
	return names
}
