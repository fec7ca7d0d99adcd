package netd

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
)

// portKey is a host port, whatever the address.
type portKey struct {
	proto string
	port  int
}

func keyOf(s port.Spec) portKey { return portKey{s.Proto, s.ParentPort} }

// addPort opens a port for the session's sandbox. That another sandbox of this
// network has it is known here alone: to the system they are all this process.
func (x *session) addPort(ctx context.Context, spec portfwd.Spec) (*port.Status, error) {
	if at := x.s.cfg.HostBinding; at.IsValid() && spec.ParentIP == "" {
		spec.ParentIP = at.String()
	}
	st, err := x.forward.Publish(ctx, spec)
	var used *portfwd.ErrPortInUse
	if errors.As(err, &used) && used.OwnerPID == os.Getpid() {
		x.s.mu.Lock()
		if owner := x.s.published[portKey{used.Proto, int(used.Addr.Port())}]; owner != nil {
			used.Owner = "sandbox " + owner.lease.Name
		}
		x.s.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	x.s.mu.Lock()
	x.s.published[keyOf(st.Spec)] = x
	x.s.mu.Unlock()
	return st, x.publishServices(ctx)
}

// publishServices makes the ports known that are published now.
func (x *session) publishServices(ctx context.Context) error {
	list, err := x.forward.ListPorts(ctx)
	if err != nil {
		return err
	}
	var services []netstack.Service
	for _, st := range list {
		s := netstack.Service{Proto: strings.TrimRight(st.Spec.Proto, "46"), Port: uint16(st.Spec.ChildPort)}
		if !slices.Contains(services, s) && len(services) < maxServices {
			services = append(services, s)
		}
	}
	return x.s.dns.SetServices(x.id, services)
}

// maxServices is how many of the ports of a sandbox have SRV records.
const maxServices = 256

// unpublish forgets the session's ports, one id or with 0 all of them. The caller
// closes them.
func (x *session) unpublish(ctx context.Context, id int) {
	list, err := x.forward.ListPorts(ctx)
	if err != nil {
		return // closed already
	}
	x.s.mu.Lock()
	defer x.s.mu.Unlock()
	for _, st := range list {
		if k := keyOf(st.Spec); (id == 0 || id == st.ID) && x.s.published[k] == x {
			delete(x.s.published, k)
		}
	}
}
