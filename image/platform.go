package image

import (
	"fmt"
	"runtime"
	"slices"
	"sort"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Platform is what an image was built for.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// DefaultPlatform is this machine's.
func DefaultPlatform() Platform {
	return Platform{OS: "linux", Architecture: runtime.GOARCH}.normal()
}

// ParsePlatform reads "os/arch[/variant]", or "arch" alone. The empty string is
// the default.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return DefaultPlatform(), nil
	}
	f := strings.Split(strings.ToLower(s), "/")
	for _, p := range f {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			f = nil
			break
		}
	}
	switch len(f) {
	case 1:
		if f[0] == "linux" {
			return DefaultPlatform(), nil
		}
		if p := (Platform{OS: "linux", Architecture: f[0]}).normal(); slices.Contains(architectures, p.Architecture) {
			return p, nil
		}
	case 2:
		return Platform{OS: f[0], Architecture: f[1]}.normal(), nil
	case 3:
		return Platform{OS: f[0], Architecture: f[1], Variant: f[2]}.normal(), nil
	}
	return Platform{}, &Error{Kind: ErrPlatform, Subject: fmt.Sprintf("%q", s), Msg: "invalid platform, want os/arch[/variant] such as linux/arm64"}
}

// architectures are those that may stand alone: with any word taken for one, a
// mistyped platform would only be noticed by the registry.
var architectures = []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x"}

// normal maps the common other names to Go's and drops default variants.
func (p Platform) normal() Platform {
	switch p.Architecture {
	case "x86_64", "x86-64":
		p.Architecture = "amd64"
	case "aarch64":
		p.Architecture = "arm64"
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "i386", "i686":
		p.Architecture = "386"
	}
	switch {
	case p.Architecture == "arm64" && (p.Variant == "v8" || p.Variant == "8"),
		p.Architecture == "amd64" && p.Variant == "v1":
		p.Variant = ""
	case p.Architecture == "arm" && p.Variant == "":
		p.Variant = "v7"
	case p.Architecture == "arm" && len(p.Variant) == 1:
		p.Variant = "v" + p.Variant
	}
	return p
}

// score tells how well an image for have serves want: 0 not at all, more is
// better. A 32-bit arm runs the code of lower variants, an amd64 too.
func score(want, have Platform) int {
	want, have = want.normal(), have.normal()
	if want.OS != have.OS || want.Architecture != have.Architecture {
		return 0
	}
	if want.Variant == have.Variant {
		return 100
	}
	switch want.Architecture {
	case "arm":
		if len(have.Variant) == 2 && have.Variant < want.Variant {
			return int(have.Variant[1] - '0')
		}
	case "amd64":
		if have.Variant == "" || (want.Variant != "" && have.Variant < want.Variant) {
			return 50
		}
	case "arm64":
		if have.Variant == "" {
			return 50
		}
	default:
		if want.Variant == "" {
			return 1
		}
	}
	return 0
}

func fromV1Platform(p *v1.Platform) Platform {
	if p == nil {
		return Platform{}
	}
	return Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
}

// choose picks the manifest for the platform; the error lists what exists.
func choose(list []v1.Descriptor, want Platform, subject string) (v1.Descriptor, error) {
	best, bestScore := -1, 0
	var have []string
	for i, d := range list {
		p := fromV1Platform(d.Platform)
		if d.Platform == nil {
			if len(list) == 1 {
				return d, nil // nothing to choose from
			}
			continue
		}
		if p.OS == "unknown" || p.OS == "" {
			continue // build attestations
		}
		have = append(have, p.String())
		if sc := score(want, p); sc > bestScore {
			best, bestScore = i, sc
		}
	}
	if best < 0 {
		sort.Strings(have)
		what := "it exists for " + strings.Join(have, ", ")
		if len(have) == 0 {
			what = "it names no platform at all"
		}
		return v1.Descriptor{}, &Error{Kind: ErrPlatform, Op: "find " + want.String() + " in", Subject: subject, Msg: what,
			Fix: "choose one of them with --platform"}
	}
	return list[best], nil
}
