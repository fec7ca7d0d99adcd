package doctor

import (
	"context"
	"slices"
	"strings"
)

// ContainerData is the Data of the check "container".
type ContainerData struct {
	// Inside names what says so: files, a user namespace.
	Inside []string `json:"inside,omitempty"`
	// Masked are the places of /proc that are mounted over.
	Masked []string `json:"masked,omitempty"`
}

func checkContainer(_ context.Context, e Env) Check {
	c := Check{Name: "container", Status: OK, Detail: "not inside a container"}
	d := &ContainerData{}
	for _, f := range []string{"/.dockerenv", "/run/.containerenv", "/run/systemd/container"} {
		if e.exists(f) {
			d.Inside = append(d.Inside, f)
		}
	}
	if m, err := e.read("/proc/self/uid_map", maxFile); err == nil && !slices.Equal(strings.Fields(m), []string{"0", "0", "4294967295"}) {
		d.Inside = append(d.Inside, "a user namespace")
	}
	for _, m := range e.mounts() {
		// The kernel refuses a fresh proc mount where the visible one has been
		// mounted over, except on directories that are always empty.
		if strings.HasPrefix(m.target, "/proc/") && !alwaysEmpty(m) && !slices.Contains(d.Masked, m.target) {
			d.Masked = append(d.Masked, m.target)
		}
	}
	if len(d.Inside) > 0 {
		c.Detail, c.Data = "inside a container ("+strings.Join(d.Inside, ", ")+")", d
	}
	if len(d.Masked) > 0 {
		c.Status, c.Data = Degraded, d
		c.Detail += "; parts of /proc are masked (" + list(d.Masked, 3) +
			"), so a sandbox gets the outer /proc instead of its own"
		c.Fix = "start the outer container with --security-opt systempaths=unconfined (Docker) or --security-opt unmask=ALL (Podman)"
	}
	return c
}

// list joins the first n names.
func list(names []string, n int) string {
	if len(names) > n {
		return strings.Join(names[:n], ", ") + "..."
	}
	return strings.Join(names, ", ")
}

func alwaysEmpty(m mount) bool {
	return m.target == "/proc/sys/fs/binfmt_misc" || m.target == "/proc/fs/nfsd" || m.target == "/proc/xen"
}

type mount struct{ target, fstype string }

// mounts reads mountinfo; what it cannot read or parse is left out.
func (e Env) mounts() []mount {
	text, err := e.read("/proc/self/mountinfo", maxMountinfo)
	if err != nil {
		return nil
	}
	var l []mount
	for line := range strings.Lines(text) {
		left, right, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if ok && len(f) >= 6 && len(g) >= 1 {
			l = append(l, mount{unescape.Replace(f[4]), g[0]})
		}
	}
	return l
}

// unescape undoes what the kernel does to mount points.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
