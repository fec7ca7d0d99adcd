package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rootless-sbx/sbx/sandbox"
	"github.com/spf13/pflag"
)

func networkCommand(g *globals) *command {
	c := &command{Use: "network COMMAND", Short: "Manage networks"}
	c.add(networkCreateCommand(g), networkListCommand(g), networkInspectCommand(g), networkRemoveCommand(g), networkPruneCommand(g),
		networkConnectCommand(g), networkDisconnectCommand(g), networkUplinkCommand(g), networkGraphCommand(g))
	return c
}

// networkOptions are the flags of sbx network create as they were typed.
type networkOptions struct {
	driver, parent                               string
	subnets, gateways, ranges, aux, labels, opts []string
	internal, attachable, ipv4, ipv6, ignore     bool
}

func (o *networkOptions) define(fs *pflag.FlagSet) {
	fs.StringVarP(&o.driver, "driver", "d", "bridge", "`DRIVER` of the network: bridge, or uplink for a segment outside")
	fs.StringVar(&o.parent, "parent", "", "`PARENT` of an uplink: a TAP or macvtap that root has given to you, by its name, /dev/tapN, or the number of the descriptor in which it is open")
	lists(fs, &o.subnets, "subnet", "", "`SUBNET` such as 10.1.2.0/24; one of each family (default: chosen, free of the host's and of other networks)")
	lists(fs, &o.gateways, "gateway", "", "`IP` of the gateway (default: the subnet's first)")
	lists(fs, &o.ranges, "ip-range", "", "choose addresses from this `RANGE` of the subnet only")
	lists(fs, &o.aux, "aux-address", "", "never choose the address of `NAME=IP`")
	fs.BoolVar(&o.ipv4, "ipv4", true, "have IPv4")
	fs.BoolVar(&o.ipv6, "ipv6", true, "have IPv6, with a unique local subnet if none is given")
	fs.BoolVar(&o.ignore, "ignore", false, "do not mind one of this name that is there already")
	fs.BoolVar(&o.internal, "internal", false, "lead nowhere outside of the network")
	fs.BoolVar(&o.attachable, "attachable", false, "let sandboxes be connected by hand, which is always so")
	lists(fs, &o.labels, "label", "", "set the label `KEY=VALUE`")
	lists(fs, &o.opts, "opt", "o", "`OPTION`: mtu=N, icc=false to keep sandboxes from each other, isolate=true to keep them from what other networks publish, vlan=N, trunk=N,N, host_binding=IP to publish there unless told otherwise, rebind-protection=true to give no names from outside that have addresses inside; for each sandbox tcp-flows=N, tcp-memory=SIZE, udp-flows=N, dns-rate=N")
	same := func(why, fix string, names ...string) {
		for _, n := range names {
			defineRefused(fs, unsupportedFlag{name: n, why: why, fix: fix})
		}
	}
	same("there are no swarms", "", "config-from")
	defineRefused(fs,
		unsupportedFlag{name: "config-only", boolean: true, harmless: []string{"false"}, why: "there are no swarms"},
		unsupportedFlag{name: "ingress", boolean: true, harmless: []string{"false"}, why: "there are no swarms"},
		unsupportedFlag{name: "scope", harmless: []string{"local"}, why: "a network is on this machine"},
		unsupportedFlag{name: "ipam-driver", harmless: []string{"default", "host-local"}, why: "sbx gives out the addresses itself"},
		unsupportedFlag{name: "disable-dns", boolean: true, harmless: []string{"false"}, why: "names are always resolved", fix: "give sandboxes another name server with --dns"},
	)
	same("there is no such option", "use -o", "ipam-opt")
	same("names are resolved as on the host", "give sandboxes another name server: run --dns", "dns")
	same("networks are in a process of their own, and make no interface on this machine", "", "interface-name")
	same("sandboxes reach what this machine reaches", "", "route")
}

func (o *networkOptions) config(name string) (cfg sandbox.NetworkConfig, err error) {
	labels := runOptions{labels: o.labels}
	var box sandbox.Config
	if err := labels.parseLabels(&box); err != nil {
		return cfg, err
	}
	cfg = sandbox.NetworkConfig{
		Name: name, Driver: o.driver, NoIPv4: !o.ipv4, NoIPv6: !o.ipv6, Internal: o.internal, Attachable: o.attachable, Labels: box.Labels,
		Options: map[string]string{}, Aux: map[string]netip.Addr{},
	}
	if cfg.Subnets, err = parseAll("--subnet", o.subnets, netip.ParsePrefix); err != nil {
		return cfg, err
	}
	if cfg.Gateways, err = parseAll("--gateway", o.gateways, netip.ParseAddr); err != nil {
		return cfg, err
	}
	if cfg.IPRanges, err = parseAll("--ip-range", o.ranges, netip.ParsePrefix); err != nil {
		return cfg, err
	}
	for _, s := range o.aux {
		name, ip, ok := strings.Cut(s, "=")
		a, err := netip.ParseAddr(ip)
		if !ok || name == "" || err != nil {
			return cfg, &usage{msg: fmt.Sprintf("--aux-address %q: want a name and an address", s), fix: "write --aux-address router=10.1.2.9"}
		}
		cfg.Aux[name] = a
	}
	for _, s := range o.opts {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return cfg, &usage{msg: fmt.Sprintf("--opt %q: no name before the =", s), fix: "write --opt NAME=VALUE"}
		}
		cfg.Options[k] = v
	}
	if o.parent == "" {
		o.parent = cfg.Options["parent"]
	}
	if cfg.Parent, err = openParent(o.parent); err == nil && cfg.Parent == nil && o.parent != "" {
		cfg.Options["parent"] = o.parent
	}
	return cfg, err
}

func parseAll[T any](flag string, list []string, parse func(string) (T, error)) (out []T, err error) {
	for _, s := range list {
		v, err := parse(s)
		if err != nil {
			var zero T
			want := "an address such as 10.1.2.1"
			if _, ok := any(zero).(netip.Prefix); ok {
				want = "a range of addresses such as 10.1.2.0/24"
			}
			return nil, usagef("%s %q: want %s", flag, s, want)
		}
		out = append(out, v)
	}
	return out, nil
}

func networkCreateCommand(g *globals) *command {
	var o networkOptions
	c := &command{
		Use: "create [OPTIONS] NETWORK", Short: "Make a network", Args: wantArgs(1, 1),
		Example: "  sbx network create backend\n  sbx network create --subnet 10.1.2.0/24 --internal -o mtu=1500 store",
		Define:  func(c *command) { o.define(c.Flags()) },
	}
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		cfg, err := o.config(args[0])
		if err != nil {
			return err
		}
		if cfg.Parent != nil {
			defer cfg.Parent.Close()
		}
		n, err := e.CreateNetwork(ctx, cfg)
		if o.ignore && errors.Is(err, sandbox.ErrNetworkExists) {
			n, err = e.FindNetwork(ctx, args[0])
		}
		if err != nil {
			return err
		}
		return printLines(c.Out(), n.ID)
	})
	return c
}

// networkRow has the keys of docker network ls --format.
type networkRow struct {
	ID, Name, Driver, Scope, CreatedAt, IPv4, IPv6, Internal, Labels string

	labels map[string]string
}

// Label returns one of the labels, for templates.
func (r networkRow) Label(key string) string { return r.labels[key] }

var networkHeaders = map[string]string{
	"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "CreatedAt": "CREATED AT", "IPv4": "IPV4", "IPv6": "IPV6",
	"Internal": "INTERNAL", "Labels": "LABELS",
}

func newNetworkRow(n *sandbox.Network, whole bool) networkRow {
	r := networkRow{
		ID: n.ID, Name: n.PublicName(), Driver: n.Driver, Scope: "local", CreatedAt: n.Created.Local().Format("2006-01-02 15:04:05 -0700 MST"),
		IPv4: fmt.Sprint(n.Subnet4.IsValid()), IPv6: fmt.Sprint(n.Subnet6.IsValid()), Internal: fmt.Sprint(n.Internal), labels: n.Labels,
	}
	if !whole {
		r.ID = r.ID[:12]
	}
	var labels []string
	for k, v := range n.Labels {
		labels = append(labels, k+"="+v)
	}
	slices.Sort(labels)
	r.Labels = strings.Join(labels, ",")
	return r
}

func networkListCommand(g *globals) *command {
	var quiet, noTrunc bool
	var format string
	var filters []string
	c := &command{Use: "ls [OPTIONS]", Short: "List networks", Args: wantArgs(0, 0), Aliases: []string{"list"}}
	fs := c.Flags()
	fs.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	fs.BoolVar(&noTrunc, "no-trunc", false, "print whole ids")
	fs.StringVar(&format, "format", "", "`FORMAT`: json, a Go template, or \"table TEMPLATE\"")
	lists(fs, &filters, "filter", "f", "only these; `FILTER` is name=, id=, driver=, scope=local, type=custom|builtin, label=KEY[=VALUE] or dangling=true|false")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		f, err := parseNetworkFilters(filters)
		if err != nil {
			return err
		}
		list, err := e.Networks(ctx)
		if err != nil {
			return err
		}
		var used map[string][]string
		if f.by["dangling"] != nil {
			if used, err = e.NetworkUsers(); err != nil {
				return err
			}
		}
		var rows []networkRow
		for i := range list {
			if f.match(&list[i], used) {
				rows = append(rows, newNetworkRow(&list[i], noTrunc))
			}
		}
		if quiet && format == "" {
			format = "{{.ID}}"
		}
		if format == "" || format == "table" {
			format = "table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}"
		}
		return printItems(c.Out(), format, networkHeaders, rows)
	})
	return c
}

// networkFilters are those of docker network ls.
type networkFilters struct{ by filterSet }

func parseNetworkFilters(list []string) (f networkFilters, err error) {
	f.by, err = parseFilters(list, func(s, key, v string) error {
		switch key {
		case "type":
			if v != "custom" && v != "builtin" {
				return usagef("--filter %q: want custom or builtin", s)
			}
		case "dangling":
			if v != "true" && v != "false" {
				return usagef("--filter %q: want true or false", s)
			}
		case "name", "id", "driver", "scope", "label":
		default:
			return errNoFilter(s, key)
		}
		return nil
	})
	return f, err
}

func (f networkFilters) match(n *sandbox.Network, used map[string][]string) bool {
	builtin := n.Version == 0
	return f.by.match(func(key, v string) bool {
		switch key {
		case "name":
			return strings.Contains(n.PublicName(), v)
		case "id":
			return strings.HasPrefix(n.ID, v)
		case "driver":
			return n.Driver == v
		case "scope":
			return v == "local"
		case "type":
			return builtin == (v == "builtin")
		case "dangling":
			return (!builtin && len(used[n.Name]) == 0) == (v == "true")
		}
		return hasLabel(n.Labels, v)
	})
}

func networkInspectCommand(g *globals) *command {
	var format string
	var verbose bool
	c := &command{
		Use: "inspect [OPTIONS] NETWORK [NETWORK...]", Short: "Show networks: addresses, who is there, counters, drops",
		Args: wantArgs(1, -1), Complete: completeNetworks(-1),
	}
	c.Flags().StringVarP(&format, "format", "f", "", "`FORMAT` of the output: json, or a Go template")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "everything, which is always shown")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		list := []*sandbox.NetworkInspection{}
		var bad error
		for _, ref := range args {
			in, err := e.InspectNetwork(ctx, ref)
			if err != nil {
				bad = errors.Join(bad, err)
				continue
			}
			list = append(list, in)
		}
		return errors.Join(printInspection(c.Out(), format, list), bad)
	})
	return c
}

func networkRemoveCommand(g *globals) *command {
	var force bool
	c := &command{
		Use: "rm NETWORK [NETWORK...]", Short: "Remove networks that no sandbox is on", Args: wantArgs(1, -1), Aliases: []string{"remove"},
		Complete: completeNetworks(-1),
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not mind one that is not there")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, args []string) error {
		return eachOf(ctx, c, args, func(ref string) error {
			err := e.RemoveNetwork(ctx, ref)
			if force && errors.Is(err, sandbox.ErrNoNetwork) {
				return errNothing
			}
			return err
		})
	})
	return c
}

func networkPruneCommand(g *globals) *command {
	var force bool
	var filters []string
	c := &command{Use: "prune [OPTIONS]", Short: "Remove all networks that no sandbox is on", Args: wantArgs(0, 0)}
	c.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	lists(c.Flags(), &filters, "filter", "", "only these; `FILTER` is label=KEY[=VALUE]")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		f, err := parseNetworkFilters(filters)
		if err != nil {
			return err
		}
		for key := range f.by {
			if key != "label" {
				return usagef("--filter %s=: only label= is for prune", key)
			}
		}
		if !force {
			if err := confirm(c, "This removes all networks that no sandbox is on."); err != nil {
				return err
			}
		}
		gone, err := e.PruneNetworks(ctx, func(n *sandbox.Network) bool { return f.match(n, nil) })
		if len(gone) > 0 {
			gone = append([]string{"Deleted Networks:"}, gone...)
		}
		return errors.Join(printLines(c.Out(), gone...), err)
	})
	return c
}
