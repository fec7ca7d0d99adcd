package doctor

import (
	"context"
	"fmt"
	"slices"
)

func checkPing(_ context.Context, e Env) Check {
	c := Check{Name: "ping", Status: Degraded}
	const name = "net.ipv4.ping_group_range"
	v, ok := e.sysctl("net/ipv4/ping_group_range")
	r := numbers(v)
	if !ok || len(r) != 2 {
		c.Detail, c.Fix = "the sysctl "+name+" cannot be read: pings out of a sandbox are not answered", "mount /proc/sys"
		return c
	}
	c.Data = map[string]any{"from": r[0], "to": r[1]}
	if slices.ContainsFunc(e.Groups, func(g int) bool { return r[0] <= int64(g) && int64(g) <= r[1] }) {
		c.Status, c.Detail = OK, fmt.Sprintf("%s is %d %d and covers this user", name, r[0], r[1])
		return c
	}
	c.Detail = fmt.Sprintf("%s is %d %d and covers none of this user's groups: pings out of a sandbox are not answered", name, r[0], r[1])
	c.Fix = fmt.Sprintf("ask the administrator: sysctl -w %s=\"0 2147483647\"", name)
	return c
}

// checkLowPorts only informs: most users publish on high ports.
func checkLowPorts(_ context.Context, e Env) Check {
	c := Check{Name: "low-ports", Status: OK}
	const name = "net.ipv4.ip_unprivileged_port_start"
	v, ok := e.sysctl("net/ipv4/ip_unprivileged_port_start")
	n := numbers(v)
	switch {
	case !ok || len(n) != 1:
		c.Detail = "ports from 1024 on can be published"
		return c
	case n[0] == 0:
		c.Detail = "all ports can be published"
	default:
		c.Detail = fmt.Sprintf("ports from %d on can be published (%s)", n[0], name)
		if n[0] > 80 {
			c.Fix = "for lower ports ask the administrator: sysctl -w " + name + "=80"
		}
	}
	c.Data = map[string]any{"first": n[0]}
	return c
}
