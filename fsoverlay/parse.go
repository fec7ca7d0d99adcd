package fsoverlay

import (
	"encoding/csv"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

const (
	flagVolume = "--volume"
	flagMount  = "--mount"
	flagTmpfs  = "--tmpfs"

	maxMountSpec = 16 << 10 // bytes of one value

	allowOption = "allow=" // of --volume and --mount
)

// ParseVolume reads a value of -v: [SOURCE:]TARGET[:OPTIONS]. A source that
// starts with / or . is a path on the host, made relative to cwd, and created if
// missing; another is the name of a volume; without one the volume is anonymous.
// z and Z, which relabel for SELinux, are accepted and do nothing.
func ParseVolume(s, cwd string) (Mount, error) {
	bad := func(msg string) (Mount, error) { return Mount{}, &ParseError{Flag: flagVolume, Input: s, Msg: msg} }
	if len(s) > maxMountSpec {
		return bad("too long")
	}
	if strings.ContainsRune(s, 0) {
		return bad("it contains a NUL byte")
	}
	parts := strings.Split(s, ":")
	if len(parts) > 3 {
		return bad("too many colons; want [SOURCE:]TARGET[:OPTIONS], or use --mount for paths with colons")
	}
	if slices.Contains(parts, "") {
		return bad("empty part between colons")
	}
	m := Mount{Type: TypeVolume}
	target := parts[0]
	switch {
	case len(parts) == 1:
		m.Anonymous = true
	case len(parts) == 2 && !strings.HasPrefix(parts[1], "/") && isVolumeOptions(parts[1]):
		// "/data:ro": an anonymous volume with options.
		m.Anonymous = true
		if msg := volumeOptions(&m, parts[1]); msg != "" {
			return bad(msg)
		}
	default:
		target = parts[1]
		if msg := volumeSource(&m, parts[0], cwd); msg != "" {
			return bad(msg)
		}
		if len(parts) == 3 {
			if msg := volumeOptions(&m, parts[2]); msg != "" {
				return bad(msg)
			}
		}
	}
	var msg string
	if m.Target, msg = cleanTarget(target); msg == "" {
		msg = m.checkAllow()
	}
	if msg != "" {
		return bad(msg)
	}
	return m, nil
}

func volumeSource(m *Mount, src, cwd string) string {
	if strings.HasPrefix(src, "/") || src == "." || src == ".." || strings.HasPrefix(src, "./") || strings.HasPrefix(src, "../") {
		if !filepath.IsAbs(src) {
			if !filepath.IsAbs(cwd) {
				return "the working directory is not known, use an absolute path"
			}
			src = filepath.Join(cwd, src)
		}
		m.Type, m.Source, m.CreateSource = TypeBind, filepath.Clean(src), true
		return ""
	}
	if !ValidVolumeName(src) {
		return "invalid volume name " + strconv.Quote(src) + ": use letters, digits, '_', '.' and '-', or a path with / or ./ in front"
	}
	m.Source = src
	return ""
}

func isVolumeOptions(s string) bool {
	m := Mount{}
	for _, o := range strings.Split(s, ",") {
		if msg := volumeOption(&m, o); msg != "" && !strings.HasPrefix(o, allowOption) {
			return false
		}
	}
	return true
}

// volumeOptions reads the last part of -v.
func volumeOptions(m *Mount, s string) string {
	seen := map[string]bool{}
	for _, o := range strings.Split(s, ",") {
		if o == "" {
			return "empty option"
		}
		if msg := volumeOption(m, o); msg != "" {
			return msg
		}
		kind := o
		switch {
		case o == "rw" || o == "ro" || o == "readonly":
			kind = "mode"
		case slices.Contains(propagations, o):
			kind = "propagation"
		case strings.HasPrefix(o, allowOption):
			kind = allowOption
		}
		if seen[kind] {
			return "option given twice or against another: " + strconv.Quote(o)
		}
		seen[kind] = true
	}
	if m.NoCopy && m.Type != TypeVolume {
		return "nocopy is for volumes"
	}
	if m.Propagation != "" && m.Type != TypeBind {
		return "a propagation is for host paths"
	}
	return ""
}

// volumeOption reads one of them. The empty message means that it is fine.
func volumeOption(m *Mount, o string) (msg string) {
	switch o {
	case "rw", "z", "Z", "delegated", "cached", "consistent":
	case "ro", "readonly":
		m.ReadOnly = true
	case "nocopy":
		m.NoCopy = true
	case "rbind":
		m.NonRecursive = false
	case "bind":
		m.NonRecursive = true
	default:
		words, ok := strings.CutPrefix(o, allowOption)
		switch {
		case ok:
			m.Allow, msg = parseRights(words)
		case slices.Contains(propagations, o):
			m.Propagation = o
		default:
			msg = "unknown option " + strconv.Quote(o)
		}
	}
	return msg
}

// ParseTmpfs reads a value of --tmpfs: TARGET[:OPTIONS].
func ParseTmpfs(s string) (Mount, error) {
	bad := func(msg string) (Mount, error) { return Mount{}, &ParseError{Flag: flagTmpfs, Input: s, Msg: msg} }
	if len(s) > maxMountSpec {
		return bad("too long")
	}
	target, opts, _ := strings.Cut(s, ":")
	m := Mount{Type: TypeTmpfs, Attrs: tmpfsAttrs}
	var msg string
	if m.Target, msg = cleanTarget(target); msg != "" {
		return bad(msg)
	}
	for _, o := range strings.Split(opts, ",") {
		if o == "" {
			continue
		}
		if msg := tmpfsOption(&m, o); msg != "" {
			return bad(msg)
		}
	}
	return m, nil
}

func tmpfsOption(m *Mount, o string) string {
	k, v, hasValue := strings.Cut(o, "=")
	if !hasValue {
		switch o {
		case "rw", "async", "dirsync", "relatime", "diratime", "atime", "mand", "nomand", "loud", "silent", "private", "rprivate":
		case "ro":
			m.ReadOnly = true
		case "suid":
			m.Attrs &^= NoSuid
		case "dev":
			m.Attrs &^= NoDev
		case "exec":
			m.Attrs &^= NoExec
		case "nosuid":
			m.Attrs |= NoSuid
		case "nodev":
			m.Attrs |= NoDev
		case "noexec":
			m.Attrs |= NoExec
		case "strictatime":
			m.Attrs |= StrictAtime
		default:
			return "unknown option " + strconv.Quote(o)
		}
		return ""
	}
	switch k {
	case "size":
		return tmpfsSize(m, v)
	case "mode":
		return tmpfsMode(m, v)
	case "uid", "gid":
		if _, err := strconv.ParseUint(v, 10, 31); err != nil {
			return k + " is not a number: " + strconv.Quote(v)
		}
	case "nr_inodes", "nr_blocks":
		if _, err := units.RAMInBytes(v); err != nil {
			return k + " is not a number: " + strconv.Quote(v)
		}
	case "huge":
		if !slices.Contains([]string{"never", "always", "within_size", "advise"}, v) {
			return "unknown value of huge: " + strconv.Quote(v)
		}
	default:
		return "unknown option " + strconv.Quote(k)
	}
	m.Options = append(m.Options, k+"="+v)
	return ""
}

func tmpfsSize(m *Mount, v string) string {
	if strings.HasSuffix(v, "%") {
		if n, err := strconv.ParseUint(v[:len(v)-1], 10, 8); err != nil || n == 0 || n > 100 {
			return "size is not between 1% and 100%: " + strconv.Quote(v)
		}
		m.Options = append(m.Options, "size="+v)
		return ""
	}
	n, err := units.RAMInBytes(v)
	if err != nil || n < 0 {
		return "size is not a number of bytes: " + strconv.Quote(v)
	}
	m.Size = n
	return ""
}

func tmpfsMode(m *Mount, v string) string {
	n, err := strconv.ParseUint(v, 8, 12)
	if err != nil {
		return "mode is not octal: " + strconv.Quote(v)
	}
	m.Mode, m.ModeSet = uint32(n), true
	return ""
}

// ParseMount reads a value of --mount: comma-separated key=value pairs, quoted
// as in CSV. A missing host path is an error when the sandbox starts.
func ParseMount(s, cwd string) (Mount, error) {
	bad := func(msg string) (Mount, error) { return Mount{}, &ParseError{Flag: flagMount, Input: s, Msg: msg} }
	if len(s) > maxMountSpec {
		return bad("too long")
	}
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil {
		return bad("not comma-separated: " + err.Error())
	}
	if r.InputOffset() < int64(len(s)) {
		return bad("more than one line")
	}
	m := Mount{Type: TypeVolume}
	given := map[string]bool{}
	for _, f := range fields {
		k, v, hasValue := strings.Cut(f, "=")
		k = canonicalKey(strings.ToLower(k))
		if given[k] && k != "volume-label" {
			return bad(k + " is given twice")
		}
		given[k] = true
		if strings.ContainsRune(v, 0) {
			return bad("it contains a NUL byte")
		}
		if msg := mountField(&m, k, v, hasValue); msg != "" {
			return bad(msg)
		}
	}
	if msg := checkMount(&m, given, cwd); msg != "" {
		return bad(msg)
	}
	return m, nil
}

func canonicalKey(k string) string {
	switch k {
	case "src":
		return "source"
	case "dst", "destination":
		return "target"
	case "ro":
		return "readonly"
	}
	return k
}

func mountField(m *Mount, k, v string, hasValue bool) string {
	flag := func(dst *bool) string {
		if !hasValue {
			*dst = true
			return ""
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return k + " is not true or false: " + strconv.Quote(v)
		}
		*dst = b
		return ""
	}
	switch k {
	case "readonly":
		return flag(&m.ReadOnly)
	case "volume-nocopy":
		return flag(&m.NoCopy)
	case "bind-nonrecursive":
		return flag(&m.NonRecursive)
	case "bind-create-src":
		return flag(&m.CreateSource)
	}
	if !hasValue || v == "" {
		return k + " wants a value"
	}
	switch k {
	case "type":
		m.Type = v
	case "source":
		m.Source = v
	case "allow":
		var msg string
		m.Allow, msg = parseRights(v)
		return msg
	case "target":
		var msg string
		m.Target, msg = cleanTarget(v)
		return msg
	case "bind-propagation":
		if !slices.Contains(propagations, v) {
			return "unknown propagation " + strconv.Quote(v)
		}
		m.Propagation = v
	case "bind-recursive":
		switch v {
		case "enabled", "readonly": // a read-only bind is always so all the way down
		case "disabled":
			m.NonRecursive = true
		case "writable":
			m.SubmountsWritable = true
		default:
			return "unknown value of bind-recursive: " + strconv.Quote(v)
		}
	case "consistency":
	case "tmpfs-size":
		return tmpfsSize(m, v)
	case "tmpfs-mode":
		return tmpfsMode(m, v)
	case "volume-subpath":
		if path.IsAbs(v) {
			return "volume-subpath must be relative"
		}
		m.Subpath = v
	case "volume-label":
		lk, lv, _ := strings.Cut(v, "=")
		if m.Labels == nil {
			m.Labels = map[string]string{}
		}
		m.Labels[lk] = lv
	case "volume-driver":
		if v != "local" {
			return "the only volume driver is local"
		}
	default:
		return "unknown key " + strconv.Quote(k)
	}
	return ""
}

// checkMount looks at what only the whole says.
func checkMount(m *Mount, given map[string]bool, cwd string) string {
	if m.Target == "" {
		return "target is missing"
	}
	for k := range given {
		kind, _, found := strings.Cut(k, "-")
		if found && slices.Contains([]string{TypeBind, TypeVolume, TypeTmpfs}, kind) && kind != m.Type {
			return k + " is for type=" + kind
		}
	}
	switch m.Type {
	case TypeBind:
		if m.Source == "" {
			return "source is missing"
		}
		if !filepath.IsAbs(m.Source) {
			if !filepath.IsAbs(cwd) {
				return "source must be an absolute path"
			}
			m.Source = filepath.Join(cwd, m.Source)
		}
		m.Source = filepath.Clean(m.Source)
		if m.SubmountsWritable && !m.ReadOnly && m.Allow == 0 {
			return "bind-recursive=writable is for read-only mounts"
		}
	case TypeVolume:
		if m.Anonymous = m.Source == ""; !m.Anonymous && !ValidVolumeName(m.Source) {
			return "invalid volume name " + strconv.Quote(m.Source) + ": use letters, digits, '_', '.' and '-'"
		}
	case TypeTmpfs:
		if m.Source != "" {
			return "a tmpfs has no source"
		}
		m.Attrs = tmpfsAttrs
	default:
		return "unknown type " + strconv.Quote(m.Type) + ": use bind, volume or tmpfs"
	}
	return m.checkAllow()
}
