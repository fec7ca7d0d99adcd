package proto

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
)

// ChangePorts publishes ports or takes them back.
type ChangePorts struct {
	Add    []portfwd.Spec `json:"add,omitempty"`
	Remove []portfwd.Spec `json:"remove,omitempty"`
}

// Ports are published.
type Ports struct {
	Ports []port.Status `json:"ports,omitempty"`
}

// Apply changes what a sandbox is to publish.
func (c ChangePorts) Apply(n *Network) error {
	gone, err := c.Find(n.Ports)
	if err != nil {
		return err
	}
	var ports []portfwd.Spec
	for i, p := range n.Ports {
		if !slices.Contains(gone, i) {
			ports = append(ports, p)
		}
	}
	ports = append(ports, c.Add...)
	if err := portfwd.Check(ports); err != nil {
		return err
	}
	n.Ports = ports
	return nil
}

// Find returns the places of what is to be removed.
func (c ChangePorts) Find(ports []portfwd.Spec) (at []int, err error) {
	for _, r := range c.Remove {
		found := false
		for i, p := range ports {
			if means(r, p) {
				found = true
				at = append(at, i)
			}
		}
		if !found {
			return nil, notPublished(r, ports)
		}
	}
	return at, nil
}

// notPublished also tells who has given the host's port for the sandbox's.
func notPublished(r portfwd.Spec, ports []portfwd.Spec) error {
	e := &wire.Error{Code: CodeNotPublished, Msg: fmt.Sprintf("no public port '%s' published", r)}
	for _, p := range ports {
		if r.ParentPort == 0 && p.ParentPort == r.ChildPort {
			e.Fix = fmt.Sprintf("%d is a port of the host, where %d is published: write %s", r.ChildPort, p.ChildPort, p)
		}
	}
	return e
}

// means says that spec agrees with a published port in all that it says.
func means(spec, p portfwd.Spec) bool {
	end := max(spec.ParentEnd, spec.ParentPort)
	both := strings.TrimRight(p.Proto, "46") // of both families
	return (spec.Proto == both || spec.Proto == p.Proto) && spec.ChildPort == p.ChildPort &&
		(spec.ParentIP == "" || sameAddr(spec.ParentIP, p.ParentIP)) &&
		(spec.ParentPort == 0 || p.ParentPort >= spec.ParentPort && max(p.ParentEnd, p.ParentPort) <= end)
}

func sameAddr(a, b string) bool {
	x, err := netip.ParseAddr(a)
	if err != nil {
		return false
	}
	y, err := netip.ParseAddr(b)
	return err == nil && x.Unmap() == y.Unmap()
}
