package sandbox

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
	"github.com/rootless-sbx/sbx/userns"
)

// ConfigError says which part of a Config is wrong.
type ConfigError struct {
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return fmt.Sprintf("%s: %v", e.Field, e.Err) }
func (e *ConfigError) Unwrap() error { return e.Err }

func badConfig(field, format string, args ...any) error {
	return &ConfigError{Field: field, Err: fmt.Errorf(format, args...)}
}

// checkConfig refuses what can be refused before anything is done, and fills in
// the defaults.
func (s *Sandbox) checkConfig() error {
	for _, check := range []func(*Config) error{checkLimits, checkChoices, checkNames, checkWorkload, checkAttachments, checkLinks, checkNetwork, checkMounts, checkResources} {
		if err := check(&s.cfg); err != nil {
			return err
		}
	}
	return nil
}

func checkLimits(c *Config) error {
	switch {
	case (c.Image == "") == (c.RootFS == ""):
		return badConfig("image", "give an image or a root directory (--rootfs), one of them")
	case c.StopTimeout < 0:
		return badConfig("stop timeout", "%v is negative", c.StopTimeout)
	case c.MTU != 0 && (c.MTU < 576 || c.MTU > 65520):
		return badConfig("mtu", "%d is not between 576 and 65520", c.MTU)
	case c.ShmSize < 0:
		return badConfig("shm size", "%d is negative", c.ShmSize)
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 10 * time.Second
	}
	return checkLife(c)
}

func checkLife(c *Config) error {
	if err := oneOf("log driver", &c.Log.Driver, "", "json-file", "none"); err != nil {
		return err
	}
	if err := checkRestart(&c.Restart); err != nil {
		return err
	}
	r := c.Restart
	switch {
	case c.Log.MaxSize < 0 || c.Log.MaxFiles < 0:
		return badConfig("log", "a size or number of files is negative")
	case c.Log.MaxSize > 0 && c.Log.MaxSize < 64<<10:
		return badConfig("log", "files of %d bytes are too small, at least 64k", c.Log.MaxSize)
	case r.Name != "no" && !c.Keep:
		return badConfig("restart policy", "a sandbox that is removed when it ends (--rm) cannot be started again")
	case r.Name != "no" && !c.Detach:
		return badConfig("restart policy", "a sandbox in the foreground ends with its command: start it with -d")
	}
	if h := c.Health; h != nil {
		if h.Interval < 0 || h.Timeout < 0 || h.StartPeriod < 0 || h.StartInterval < 0 || h.Retries < 0 {
			return badConfig("health check", "a time or number is negative")
		}
		if len(h.Test) > 0 && h.Test[0] != "NONE" && (len(h.Test) < 2 || h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL") {
			return badConfig("health check", "%q is neither CMD nor CMD-SHELL and a command", h.Test)
		}
	}
	return nil
}

func checkRestart(r *RestartPolicy) error {
	if err := oneOf("restart policy", &r.Name, "no", "on-failure", "always", "unless-stopped"); err != nil {
		return err
	}
	if r.Max < 0 || r.Max > 0 && r.Name != "on-failure" {
		return badConfig("restart policy", "%s:%d: only on-failure has a number of times", r.Name, r.Max)
	}
	return nil
}

func checkChoices(c *Config) error {
	mode := string(c.UserNS)
	for _, f := range []struct {
		field   string
		v       *string
		allowed []string // the first is the default
	}{
		{"pull policy", &c.Pull, []string{PullMissing, PullAlways, PullNever}},
		{"link driver", &c.LinkDriver, []string{"", "tap", "packet"}},
		{"port driver", &c.PortDriver, []string{"", portfwd.DriverDirect, portfwd.DriverStack, portfwd.DriverBuiltin}},
		{"storage driver", &c.StorageDriver, append([]string{""}, fsoverlay.Drivers...)},
		{"user namespace", &mode, []string{string(userns.ModeAuto), string(userns.ModeSingle), string(userns.ModeKeepID)}},
	} {
		if err := oneOf(f.field, f.v, f.allowed...); err != nil {
			return err
		}
	}
	c.UserNS = userns.Mode(mode)
	return nil
}

func checkNames(c *Config) error {
	if c.Name != "" && !validName(c.Name) {
		return badConfig("name", "%q: only [a-zA-Z0-9][a-zA-Z0-9_.-]* is allowed, at most 128 characters", c.Name)
	}
	if c.Hostname != "" {
		if _, err := fsoverlay.HostnameFile(c.Hostname); err != nil {
			return &ConfigError{Field: "hostname", Err: err}
		}
	}
	size := 0
	for k, v := range c.Labels {
		if k == "" || strings.ContainsAny(k, "=\x00\n") || strings.ContainsRune(v, 0) {
			return badConfig("label", "%q: a label needs a name without '='", k+"="+v)
		}
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return badConfig("label", "%d bytes in all, limit %d", size, maxLabels)
	}
	if c.Platform != "" {
		if _, err := image.ParsePlatform(c.Platform); err != nil {
			return &ConfigError{Field: "platform", Err: err}
		}
	}
	return nil
}

// maxLabels is how many bytes of labels a sandbox may have.
const maxLabels = 64 << 10

func checkWorkload(c *Config) error {
	for field, path := range map[string]string{"working directory": c.WorkDir, "root directory": c.RootFS} {
		if !utf8.ValidString(path) {
			return badConfig(field, "%q is not UTF-8", path)
		}
	}
	if c.WorkDir != "" && !path.IsAbs(c.WorkDir) {
		return badConfig("working directory", "%q is not an absolute path", c.WorkDir)
	}
	if c.StopSignal != "" {
		if _, err := workload.ParseSignal(c.StopSignal); err != nil {
			return &ConfigError{Field: "stop signal", Err: err}
		}
	}
	for _, e := range c.Env {
		if e == "" || e[0] == '=' || strings.ContainsRune(e, 0) {
			return badConfig("environment", "%q is not NAME=VALUE", e)
		}
	}
	if _, err := workload.ParseCapabilities(c.CapAdd, c.CapDrop); err != nil {
		return &ConfigError{Field: "capability", Err: err}
	}
	return nil
}

func checkNetwork(c *Config) error {
	if err := checkShared(c); err != nil {
		return err
	}
	for _, d := range c.DNS {
		if _, err := netip.ParseAddr(d); err != nil {
			return badConfig("dns", "%q is not an IP address", d)
		}
	}
	for _, h := range c.AddHost {
		e, err := fsoverlay.ParseAddHost(h)
		if err == nil && e.Gateway && c.mode() != NetworkDefault {
			err = fmt.Errorf("%q: there is no gateway with --network %s", h, c.mode())
		}
		if err != nil {
			return &ConfigError{Field: "host", Err: err}
		}
	}
	for _, p := range c.HostAccess {
		if p == 0 {
			return badConfig("host access", "0 is not a port")
		}
	}
	for _, p := range c.Publish {
		if err := checkPort(p); err != nil {
			return &ConfigError{Field: "published port", Err: err}
		}
	}
	if _, err := portfwd.ParseExpose(c.Expose); err != nil {
		return &ConfigError{Field: "exposed port", Err: err}
	}
	return nil
}

func checkPort(p portfwd.Spec) error {
	switch proto, _ := strings.CutSuffix(strings.TrimRight(p.Proto, "46"), "/"); {
	case proto != "tcp" && proto != "udp":
		return fmt.Errorf("%q is not tcp or udp", p.Proto)
	case p.ChildPort < 1 || p.ChildPort > 65535:
		return fmt.Errorf("%d is not a port of the sandbox", p.ChildPort)
	case p.ParentEnd != 0 && (p.ParentPort == 0 || p.ParentEnd < p.ParentPort || p.ParentEnd > 65535):
		return fmt.Errorf("%d-%d is no range of ports of the host", p.ParentPort, p.ParentEnd)
	case p.ParentPort < 0 || p.ParentPort > 65535:
		return fmt.Errorf("%d is not a port of the host", p.ParentPort)
	}
	if p.ParentIP != "" {
		if _, err := netip.ParseAddr(p.ParentIP); err != nil {
			return fmt.Errorf("%q is not an address of the host", p.ParentIP)
		}
	}
	return nil
}

func checkMounts(c *Config) error {
	for _, m := range c.Mounts {
		var err error
		switch {
		case m.Type != fsoverlay.TypeBind && m.Type != fsoverlay.TypeVolume && m.Type != fsoverlay.TypeTmpfs:
			err = fmt.Errorf("%q is not bind, volume or tmpfs", m.Type)
		case m.Type == fsoverlay.TypeBind && !filepath.IsAbs(m.Source):
			err = fmt.Errorf("the host path %q is not absolute", m.Source)
		case m.Type == fsoverlay.TypeVolume && m.Source != "" && !fsoverlay.ValidVolumeName(m.Source):
			err = fmt.Errorf("%w %q", fsoverlay.ErrVolumeName, m.Source)
		case m.Size < 0:
			err = fmt.Errorf("size %d is negative", m.Size)
		case !utf8.ValidString(m.Source) || !utf8.ValidString(m.Target):
			err = fmt.Errorf("%q:%q is not UTF-8", m.Source, m.Target)
		}
		if err != nil {
			return &ConfigError{Field: "mount", Err: err}
		}
	}
	if err := fsoverlay.CheckMounts(c.Mounts); err != nil {
		return &ConfigError{Field: "mount", Err: err}
	}
	return nil
}

// oneOf checks that *v is one of the allowed values; the first is the default.
func oneOf(field string, v *string, allowed ...string) error {
	if *v == "" {
		*v = allowed[0]
		return nil
	}
	for _, a := range allowed {
		if *v == a && a != "" {
			return nil
		}
	}
	names := allowed
	if names[0] == "" {
		names = names[1:]
	}
	return badConfig(field, "%q is not one of %s", *v, strings.Join(names, ", "))
}

func validName(name string) bool {
	if len(name) > 128 {
		return false
	}
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			return false
		}
	}
	return name != ""
}
