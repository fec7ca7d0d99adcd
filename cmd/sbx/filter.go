package main

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-connections/nat"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
)

// filterSet has the values of --filter by their key: of the same key one must fit,
// of labels all, and of different keys each.
type filterSet map[string][]string

// parseFilters splits KEY=VALUE; check says what is wrong with one.
func parseFilters(list []string, check func(s, key, v string) error) (filterSet, error) {
	f := filterSet{}
	for _, s := range list {
		key, v, ok := strings.Cut(s, "=")
		if !ok || v == "" {
			return nil, usagef("--filter %q: want KEY=VALUE", s)
		}
		if err := check(s, key, v); err != nil {
			return nil, err
		}
		f[key] = append(f[key], v)
	}
	return f, nil
}

func errNoFilter(s, key string) error { return usagef("--filter %q: there is no filter %q", s, key) }

func (f filterSet) match(fits func(key, v string) bool) bool {
	for key, values := range f {
		n := 0
		for _, v := range values {
			if fits(key, v) {
				n++
			}
		}
		if n == 0 || key == "label" && n < len(values) {
			return false
		}
	}
	return true
}

// boxFilters are those of sbx ps.
type boxFilters struct {
	by     filterSet
	status bool // says itself what is wanted of those that do not run
}

var statuses = []string{"created", "restarting", "running", "removing", "paused", "exited", "dead"}

func parseBoxFilters(list []string) (*boxFilters, error) {
	f := &boxFilters{}
	var err error
	f.by, err = parseFilters(list, func(s, key, v string) error {
		switch key {
		case "name":
			if _, err := regexp.Compile(v); err != nil {
				return usagef("--filter %q: %v", s, err)
			}
		case "status":
			if !slices.Contains(statuses, v) {
				return usagef("--filter %q: want one of %s", s, strings.Join(statuses, ", "))
			}
			f.status = true
		case "exited":
			if _, err := strconv.Atoi(v); err != nil {
				return usagef("--filter %q: want an exit code", s)
			}
			f.status = true
		case "publish", "expose":
			if _, _, err := nat.ParsePortRange(strings.SplitN(v, "/", 2)[0]); err != nil {
				return usagef("--filter %q: want PORT[-END][/PROTO]", s)
			}
		case "is-task", "isolation": // of swarms and of Windows: no sandbox is, and each is
			if want := map[string][]string{"is-task": {"true", "false"}, "isolation": {"default", "process", "hyperv"}}[key]; !slices.Contains(want, v) {
				return usagef("--filter %q: want one of %s", s, strings.Join(want, ", "))
			}
		case "id", "label", "ancestor", "before", "since", "health", "network", "volume":
		default:
			return errNoFilter(s, key)
		}
		return nil
	})
	return f, err
}

// resolve finds the sandboxes that others are older or younger than.
func (f *boxFilters) resolve(ctx context.Context, e *sandbox.Engine) error {
	for _, key := range []string{"before", "since"} {
		for i, ref := range f.by[key] {
			s, err := e.Open(ctx, ref)
			if err != nil {
				return err
			}
			f.by[key][i] = s.ID()
		}
	}
	return nil
}

// needsAll says that sandboxes count that are not wanted.
func (f *boxFilters) needsAll() bool { return f.by["before"] != nil || f.by["since"] != nil }

// apply keeps what is wanted of a list, the newest first.
func (f *boxFilters) apply(list []sandbox.Inspection, all bool) (out []sandbox.Inspection) {
	find := func(ref string) *sandbox.Inspection {
		for i := range list {
			if in := &list[i]; boxName(in) == ref || strings.HasPrefix(in.ID, ref) {
				return in
			}
		}
		return nil
	}
	for i := range list {
		in := &list[i]
		if (all || in.State.Running) && f.match(in, find) {
			out = append(out, *in)
		}
	}
	return out
}

func (f *boxFilters) match(in *sandbox.Inspection, find func(string) *sandbox.Inspection) bool {
	return f.by.match(func(key, v string) bool {
		switch key {
		case "id":
			return strings.HasPrefix(in.ID, v)
		case "name":
			return regexp.MustCompile(v).MatchString(boxName(in)) || regexp.MustCompile(v).MatchString(in.Name)
		case "label":
			return hasLabel(in.Config.Labels, v)
		case "status":
			return in.State.Status == v
		case "exited":
			return in.State.Status == "exited" && strconv.Itoa(in.State.ExitCode) == v
		case "ancestor":
			return isImage(v, in.Config.Image) || strings.HasPrefix(strings.TrimPrefix(in.Image, "sha256:"), strings.TrimPrefix(v, "sha256:"))
		case "before":
			o := find(v)
			return o != nil && in.Created.Before(o.Created)
		case "since":
			o := find(v)
			return o != nil && in.Created.After(o.Created)
		case "health":
			return in.State.Health != nil && in.State.Health.Status == v || in.State.Health == nil && v == "none"
		case "network":
			for name, p := range in.NetworkSettings.Networks {
				if name == v || len(v) >= 4 && strings.HasPrefix(p.NetworkID, v) || name == "bridge" && v == sandbox.NetworkDefault {
					return true
				}
			}
			return false
		case "volume":
			return slices.ContainsFunc(in.Mounts, func(m sandbox.InspectMount) bool { return m.Name == v || m.Source == v || m.Destination == v })
		case "publish":
			for port, bindings := range in.NetworkSettings.Ports {
				if len(bindings) > 0 && portIn(port, v) {
					return true
				}
			}
		case "expose":
			for port := range in.Config.ExposedPorts {
				if portIn(port, v) {
					return true
				}
			}
		case "is-task":
			return v == "false"
		case "isolation":
			return v == "default"
		}
		return false
	})
}

// portIn says whether a port such as 80/tcp is the one, or one of the range, of a filter;
// without a protocol that is TCP's.
func portIn(port, filter string) bool {
	ports, proto, _ := strings.Cut(filter, "/")
	first, last, err := nat.ParsePortRange(ports)
	number, its, _ := strings.Cut(port, "/")
	n, nerr := strconv.ParseUint(number, 10, 16)
	return err == nil && nerr == nil && first <= n && n <= last && its == cmp.Or(strings.ToLower(proto), "tcp")
}

// isImage says whether a name is that of an image, as it was given when the sandbox was
// made: with or without its registry and tag.
func isImage(name, given string) bool {
	a, err := image.ParseReference(name)
	b, berr := image.ParseReference(given)
	return err == nil && berr == nil && a.Familiar() == b.Familiar() || name == given
}
