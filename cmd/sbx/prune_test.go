package main

import (
	"strings"
	"testing"
	"time"
)

func TestPruneFilter(t *testing.T) {
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	labels := map[string]string{"tier": "web", "empty": ""}
	for _, tc := range []struct {
		filters string
		want    bool
	}{
		{"", true},
		{"label=tier", true},
		{"label=tier=web", true},
		{"label=tier=db", false},
		{"label=tier label=none", false},
		{"label=empty=", true},
		{"label!=tier", false},
		{"label!=tier=db", true},
		{"label!=none label!=tier=web", false},
		{"until=2026-01-02T03:04:06Z", true},
		{"until=2026-01-02T03:04:05Z", false},
		{"until=2026-01-03T00:00:00Z label=tier=db", false},
	} {
		f, err := parsePruneFilter(strings.Fields(tc.filters), "until", "label")
		if err != nil || f.match(made, labels) != tc.want {
			t.Errorf("%q: %v, %v", tc.filters, !tc.want, err)
		}
	}
	for _, bad := range []string{"until", "until=", "until=soon", "label!=", "name=x", "until!=1h"} {
		if _, err := parsePruneFilter([]string{bad}, "until", "label"); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := parsePruneFilter([]string{"until=1h"}, "label"); err == nil {
		t.Error("until= is taken where there is no time")
	}
}

// What docker has and we have not says why; what makes no difference is taken.
func TestRefusedElsewhere(t *testing.T) {
	newStore(t, "debian:12")
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"start --checkpoint x y", 125, "--checkpoint is not supported: checkpoints need root"},
		{"rm --link x", 125, "there are no links"},
		{"volume create --driver nfs x", 125, "--driver nfs is not supported: volumes are directories"},
		{"volume create --driver local own", 0, "own\n"},
		{"volume create -o size=1g x", 125, "fix: bind a directory"},
		{"volume ls --cluster", 125, "sbx runs on one machine"},
		{"volume ls -q --filter dangling=true", 0, "own\n"},
		{"volume ls -q --filter dangling=false", 0, ""},
		{"volume ls --filter dangling=x", 125, "want dangling=true"},
		{"images --tree", 125, "one platform"},
		{"images -q --filter before=debian:12", 0, ""},
		{"images -q --filter since=nothing", 125, "not in the local store"},
		{"images --format {{.Tag}} --filter until=2000-01-01", 0, ""},
		{"pull -a debian", 125, "--all-tags is not supported"},
		{"rmi --no-prune --platform linux/amd64 debian:12", 125, "--platform is not supported"},
		{"inspect --type volume own", 0, `"Driver": "local"`},
		{"inspect own", 0, `"Name": "own"`},
		{"inspect nothing", 1, "no such sandbox, image, network or volume: nothing"},
		{"volume prune -f --filter label=x", 0, "Total reclaimed space: 0B\n"},
		{"container ls -a -q", 0, ""},
		{"container prune -f", 0, "Total reclaimed space: 0B\n"},
		{"container stop --help", 0, "Usage: sbx container stop"},
	} {
		out, errs, code := sbx(t, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(out+errs, tc.want) || tc.want == "" && out != "" {
			t.Errorf("%s: %d %q %q", tc.args, code, out, errs)
		}
	}
}
