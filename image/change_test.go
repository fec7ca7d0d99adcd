package image

import (
	"errors"
	"reflect"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestApplyChanges(t *testing.T) {
	base := func() v1.Config {
		return v1.Config{Env: []string{"PATH=/bin", "A=1"}, Cmd: []string{"old"}, Entrypoint: []string{"/entry"},
			WorkingDir: "/srv", Labels: map[string]string{"l": "1"}}
	}
	type m = map[string]struct{}
	for _, c := range []struct {
		in   []string
		want func(*v1.Config)
	}{
		{nil, func(*v1.Config) {}},
		{[]string{`CMD ["a", "b c"]`}, func(c *v1.Config) { c.Cmd = []string{"a", "b c"} }},
		{[]string{`cmd echo "$HOME" | cat`}, func(c *v1.Config) { c.Cmd = []string{"/bin/sh", "-c", `echo "$HOME" | cat`} }},
		{[]string{"CMD []"}, func(c *v1.Config) { c.Cmd = []string{} }},
		{[]string{`ENTRYPOINT ["/x"]`}, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/x"}, nil }},
		{[]string{`CMD ["y"]`, `ENTRYPOINT ["/x"]`}, func(c *v1.Config) { c.Entrypoint, c.Cmd = []string{"/x"}, []string{"y"} }},
		{[]string{`ENV A=2 B="two words" C=three\ words D='$A' E=${A}x`}, func(c *v1.Config) {
			c.Env = []string{"PATH=/bin", "A=2", "B=two words", "C=three words", "D=$A", "E=1x"}
		}},
		{[]string{"ENV A the  rest of it"}, func(c *v1.Config) { c.Env = []string{"PATH=/bin", "A=the  rest of it"} }},
		{[]string{"ENV PATH=/x:$PATH"}, func(c *v1.Config) { c.Env[0] = "PATH=/x:/bin" }},
		{[]string{"EXPOSE 80 53/udp 1000-1002/TCP"}, func(c *v1.Config) {
			c.ExposedPorts = m{"80/tcp": {}, "53/udp": {}, "1000/tcp": {}, "1001/tcp": {}, "1002/tcp": {}}
		}},
		{[]string{`LABEL l=2 "long key"="a b"`}, func(c *v1.Config) { c.Labels = map[string]string{"l": "2", "long key": "a b"} }},
		{[]string{"ONBUILD RUN make"}, func(c *v1.Config) { c.OnBuild = []string{"RUN make"} }},
		{[]string{"USER app:1000"}, func(c *v1.Config) { c.User = "app:1000" }},
		{[]string{`VOLUME ["/a b", "/c"]`, "VOLUME /d /e"}, func(c *v1.Config) { c.Volumes = m{"/a b": {}, "/c": {}, "/d": {}, "/e": {}} }},
		{[]string{"WORKDIR sub/../dir"}, func(c *v1.Config) { c.WorkingDir = "/srv/dir" }},
		{[]string{"WORKDIR /with space"}, func(c *v1.Config) { c.WorkingDir = "/with space" }},
		{[]string{"STOPSIGNAL SIGQUIT"}, func(c *v1.Config) { c.StopSignal = "SIGQUIT" }},
		{[]string{"HEALTHCHECK NONE"}, func(c *v1.Config) { c.Healthcheck = &v1.HealthConfig{Test: []string{"NONE"}} }},
		{[]string{"HEALTHCHECK --interval=5s --retries=3 CMD curl -f http://x || exit 1"}, func(c *v1.Config) {
			c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD-SHELL", "curl -f http://x || exit 1"}, Interval: 5 * time.Second, Retries: 3}
		}},
		{[]string{`HEALTHCHECK CMD ["a","b"]`}, func(c *v1.Config) { c.Healthcheck = &v1.HealthConfig{Test: []string{"CMD", "a", "b"}} }},
	} {
		got, want := base(), base()
		c.want(&want)
		if err := ApplyChanges(&got, c.in); err != nil {
			t.Errorf("%q: %v", c.in, err)
		} else if !reflect.DeepEqual(got, want) {
			t.Errorf("%q:\n%+v, want\n%+v", c.in, got, want)
		}
	}
	for _, in := range []string{
		"", "RUN x", "FROM y", "CMD", "ENV", "ENV A", `ENV A="x`, "ENV A=1 B", "ENV =1", "EXPOSE 0", "EXPOSE 99999", "EXPOSE 5-1", "EXPOSE x/tcp",
		"EXPOSE 80/icmp", "LABEL x", "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", `VOLUME [""]`, "STOPSIGNAL NOPE",
		"HEALTHCHECK", "HEALTHCHECK curl", "HEALTHCHECK CMD", "HEALTHCHECK --interval=x CMD y", "HEALTHCHECK --what=1 CMD y", "ENV A=\x00",
	} {
		cfg := base()
		var ce *ChangeError
		if err := ApplyChanges(&cfg, []string{in}); !errors.As(err, &ce) || ce.Instruction != in {
			t.Errorf("%q: %v", in, err)
		}
	}
}
