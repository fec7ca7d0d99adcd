package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/sys/signal"
)

// ChangeError is an instruction that cannot be applied to a configuration.
type ChangeError struct {
	Instruction string
	Msg         string
}

func (e *ChangeError) Error() string { return fmt.Sprintf("change %q: %s", e.Instruction, e.Msg) }

// changes are the instructions of a Dockerfile that only concern the configuration.
var changes = map[string]func(*v1.Config, string) error{
	"CMD": func(c *v1.Config, arg string) error {
		c.Cmd = command(c, arg)
		return nil
	},
	"ENTRYPOINT": func(c *v1.Config, arg string) error {
		c.Entrypoint = command(c, arg)
		return nil
	},
	"ENV":    changeEnv,
	"EXPOSE": changeExpose,
	"LABEL": func(c *v1.Config, arg string) error {
		return pairs(c, arg, func(k, v string) { set(&c.Labels, k, v) })
	},
	"ONBUILD": func(c *v1.Config, arg string) error {
		first, _, _ := strings.Cut(arg, " ")
		if slices.Contains([]string{"ONBUILD", "FROM", "MAINTAINER"}, strings.ToUpper(first)) {
			return fmt.Errorf("%s is not allowed as a trigger", strings.ToUpper(first))
		}
		c.OnBuild = append(c.OnBuild, arg)
		return nil
	},
	"USER": func(c *v1.Config, arg string) (err error) {
		c.User, err = one(c, arg)
		return err
	},
	"VOLUME": func(c *v1.Config, arg string) error {
		list, ok := jsonList(arg)
		if !ok {
			var err error
			if list, err = words(c, arg); err != nil {
				return err
			}
		}
		for _, v := range list {
			if v == "" {
				return errors.New("a volume needs a path")
			}
			set(&c.Volumes, v, struct{}{})
		}
		return nil
	},
	"WORKDIR": func(c *v1.Config, arg string) error {
		dir, err := one(c, arg)
		if !path.IsAbs(dir) {
			dir = path.Join("/", c.WorkingDir, dir)
		}
		c.WorkingDir = path.Clean(dir)
		return err
	},
	"STOPSIGNAL": func(c *v1.Config, arg string) (err error) {
		if c.StopSignal, err = one(c, arg); err == nil {
			_, err = signal.ParseSignal(c.StopSignal)
		}
		return err
	},
	"HEALTHCHECK": changeHealth,
}

// ApplyChanges lays instructions over a configuration, as docker commit --change
// does: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME, WORKDIR, STOPSIGNAL
// and HEALTHCHECK, in a Dockerfile's syntax. A new ENTRYPOINT drops the old CMD.
func ApplyChanges(c *v1.Config, list []string) error {
	entrypoint, cmd := false, false
	for _, line := range list {
		bad := func(msg string) error { return &ChangeError{Instruction: line, Msg: msg} }
		name, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, arg = strings.ToUpper(name), strings.TrimSpace(arg)
		apply := changes[name]
		switch {
		case apply == nil:
			return bad("want one of " + strings.Join(slices.Sorted(maps.Keys(changes)), ", "))
		case arg == "":
			return bad(name + " needs an argument")
		case strings.IndexByte(arg, 0) >= 0:
			return bad("it contains a zero byte")
		}
		if err := apply(c, arg); err != nil {
			return bad(err.Error())
		}
		entrypoint, cmd = entrypoint || name == "ENTRYPOINT", cmd || name == "CMD"
	}
	if entrypoint && !cmd {
		c.Cmd = nil
	}
	return nil
}

func set[V any](m *map[string]V, k string, v V) {
	*m = maps.Clone(*m)
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[k] = v
}

// command is a JSON list, or a line for the shell.
func command(c *v1.Config, arg string) []string {
	if list, ok := jsonList(arg); ok {
		return list
	}
	shell := c.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), arg)
}

func jsonList(arg string) (list []string, ok bool) {
	if !strings.HasPrefix(arg, "[") || json.Unmarshal([]byte(arg), &list) != nil {
		return nil, false
	}
	if list == nil {
		list = []string{}
	}
	return list, true
}

func changeEnv(c *v1.Config, arg string) error {
	env := slices.Clone(c.Env)
	err := pairs(c, arg, func(k, v string) {
		kv := k + "=" + v
		if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, k+"=") }); i >= 0 {
			env[i] = kv
		} else {
			env = append(env, kv)
		}
	})
	c.Env = env
	return err
}

// pairs reads KEY=VALUE [KEY=VALUE...], or the old form KEY VALUE.
func pairs(c *v1.Config, arg string, yield func(k, v string)) error {
	if first, rest, _ := strings.Cut(arg, " "); !strings.Contains(first, "=") {
		if rest = strings.TrimSpace(rest); rest == "" {
			return fmt.Errorf("%q is not KEY=VALUE", first)
		}
		list, err := words(c, strings.ReplaceAll(rest, " ", `\ `))
		if err != nil {
			return err
		}
		yield(first, strings.Join(list, " "))
		return nil
	}
	list, err := words(c, arg)
	if err != nil {
		return err
	}
	for _, w := range list {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return fmt.Errorf("%q is not KEY=VALUE", w)
		}
		yield(k, v)
	}
	return nil
}

func changeExpose(c *v1.Config, arg string) error {
	list, err := words(c, arg)
	if err != nil {
		return err
	}
	for _, w := range list {
		ports, proto, ok := strings.Cut(strings.ToLower(w), "/")
		if !ok {
			proto = "tcp"
		}
		from, to, isRange := strings.Cut(ports, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b < a || !slices.Contains([]string{"tcp", "udp", "sctp"}, proto) {
			return fmt.Errorf("%q is no port: want PORT[-PORT][/tcp|udp|sctp]", w)
		}
		for p := a; p <= b; p++ {
			set(&c.ExposedPorts, fmt.Sprintf("%d/%s", p, proto), struct{}{})
		}
	}
	return nil
}

func changeHealth(c *v1.Config, arg string) error {
	if strings.EqualFold(arg, "NONE") {
		c.Healthcheck = &v1.HealthConfig{Test: []string{"NONE"}}
		return nil
	}
	h := &v1.HealthConfig{}
	for strings.HasPrefix(arg, "--") {
		opt, rest, _ := strings.Cut(arg, " ")
		arg = strings.TrimSpace(rest)
		key, val, _ := strings.Cut(opt[2:], "=")
		into := map[string]*time.Duration{"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod}[key]
		var err error
		switch {
		case into != nil:
			if *into, err = time.ParseDuration(val); err != nil || *into < 0 {
				return fmt.Errorf("--%s=%s is no duration such as 30s", key, val)
			}
		case key == "retries":
			if h.Retries, err = strconv.Atoi(val); err != nil || h.Retries < 0 {
				return fmt.Errorf("--retries=%s is no number", val)
			}
		default:
			return fmt.Errorf("unknown option --%s: want --interval, --timeout, --start-period or --retries", key)
		}
	}
	name, rest, _ := strings.Cut(arg, " ")
	if rest = strings.TrimSpace(rest); !strings.EqualFold(name, "CMD") || rest == "" {
		return errors.New("want NONE, or CMD and a command")
	}
	if list, ok := jsonList(rest); ok {
		h.Test = append([]string{"CMD"}, list...)
	} else {
		h.Test = []string{"CMD-SHELL", rest}
	}
	c.Healthcheck = h
	return nil
}

// one reads a single word.
func one(c *v1.Config, arg string) (string, error) {
	list, err := words(c, strings.ReplaceAll(arg, " ", `\ `))
	return strings.Join(list, " "), err
}

// words splits as a Dockerfile does: at blanks, with quotes, backslashes, and $NAME or
// ${NAME} from the configuration's environment.
func words(c *v1.Config, s string) (list []string, err error) {
	var w strings.Builder
	begun, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		ch := s[i]
		switch {
		case quote == 0 && (ch == ' ' || ch == '\t'):
			if begun {
				list = append(list, w.String())
				w.Reset()
				begun = false
			}
			continue
		case quote == 0 && (ch == '\'' || ch == '"'):
			quote = ch
		case quote != 0 && ch == quote:
			quote = 0
		case ch == '\\' && quote != '\'' && i+1 < len(s):
			i++
			if quote == '"' && !strings.ContainsRune(`"\$`, rune(s[i])) {
				w.WriteByte('\\')
			}
			w.WriteByte(s[i])
		case ch == '$' && quote != '\'':
			name, n := variable(s[i+1:])
			if n == 0 {
				w.WriteByte('$')
			}
			w.WriteString(lookup(c.Env, name))
			i += n
		default:
			w.WriteByte(ch)
		}
		begun = true
	}
	if quote != 0 {
		return nil, fmt.Errorf("the quote %c is not closed", quote)
	}
	if begun {
		list = append(list, w.String())
	}
	return list, nil
}

// variable reads a name behind a $; n is its length there.
func variable(s string) (name string, n int) {
	if strings.HasPrefix(s, "{") {
		if end := strings.IndexByte(s, '}'); end > 0 {
			return s[1:end], end + 1
		}
		return "", 0
	}
	for n < len(s) && (s[n] == '_' || s[n] >= 'a' && s[n] <= 'z' || s[n] >= 'A' && s[n] <= 'Z' || n > 0 && s[n] >= '0' && s[n] <= '9') {
		n++
	}
	return s[:n], n
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name && name != "" {
			return v
		}
	}
	return ""
}
