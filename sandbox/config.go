package sandbox

import (
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/userns"
)

// Networks that always exist.
const (
	NetworkDefault = "default" // shared by the user's sandboxes, NAT to the outside
	NetworkNone    = "none"    // loopback only
	NetworkHost    = "host"    // the host's own, not isolated
)

// Pull policies.
const (
	PullMissing = "missing"
	PullAlways  = "always"
	PullNever   = "never"
)

// Config says what to run. Only Image or RootFS must be set.
type Config struct {
	// Name is the sandbox's name; empty means one is made up.
	Name string
	// Image is a reference, resolved as by docker run, or "demo" for the image
	// that is built from the sbx binary itself.
	Image string
	// RootFS is a directory to run instead of an image. It is not written to.
	RootFS string
	// Pull is one of the pull policies; empty means PullMissing.
	Pull string
	// Platform is os/arch[/variant]; empty means the machine's own.
	Platform string
	// Insecure allows plain HTTP and unverified certificates for the pull.
	Insecure bool
	// Progress receives what the pull does; nil means nobody looks.
	Progress func(image.Event)

	// Entrypoint replaces the image's; nil keeps it, empty clears it.
	Entrypoint []string
	// Cmd replaces the image's default arguments; empty keeps them.
	Cmd []string
	// Env is added to the image's environment, as KEY=VALUE. KEY alone takes the
	// value that LookupEnv has, and removes the variable if it has none.
	Env []string
	// LookupEnv is the caller's environment; nil means an empty one.
	LookupEnv func(string) (string, bool)
	// WorkDir, User and StopSignal replace the image's; empty keeps them.
	WorkDir, User, StopSignal string
	// GroupAdd are supplementary groups, by name or number.
	GroupAdd []string
	// Hostname; empty means the first 12 digits of the id.
	Hostname string
	Labels   map[string]string

	// Stdin is the workload's input; nil means /dev/null. With TTY it feeds the terminal.
	Stdin io.Reader
	// Stdout and Stderr receive its output; nil discards. With TTY all goes to Stdout.
	Stdout, Stderr io.Writer
	// TTY gives the workload a terminal of Rows by Cols characters.
	TTY        bool
	Rows, Cols uint16

	// Init keeps a small init as pid 1 that reaps orphans and forwards signals.
	Init bool
	// StopTimeout is how long Stop waits before it kills; zero means 10 seconds.
	StopTimeout time.Duration

	// UserNS is the id mapping; empty means userns.ModeAuto.
	UserNS userns.Mode

	// Network is one of the networks above; empty means NetworkDefault.
	Network string
	// DNS, DNSSearch and DNSOptions replace what /etc/resolv.conf says inside.
	DNS, DNSSearch, DNSOptions []string
	// AddHost are NAME:IP lines for /etc/hosts; the IP may be "host-gateway".
	AddHost []string
	// MTU of the sandbox's device in bytes; 0 means the network's, 65520.
	MTU int
	// LinkDriver is "tap" or "packet"; empty means the first that works.
	LinkDriver string
	// HostAccess are ports of the host's own loopback that the sandbox may reach
	// as host.sbx.internal.
	HostAccess []uint16
	// Publish are the published ports, see portfwd.ParsePublish.
	Publish []port.Spec
	// PublishAll publishes the ports that the image exposes and those in Expose
	// on random host ports.
	PublishAll bool
	Expose     []string
	// PortDriver is "direct", "stack" or "builtin"; empty chooses for each connection.
	PortDriver string

	// Mounts are volumes, binds and tmpfs.
	Mounts []fsoverlay.Mount
	// ReadOnly makes the root file system read-only.
	ReadOnly bool
	// StorageDriver is "native", "fuse" or "copy"; empty means the first that works.
	StorageDriver string
	// ShmSize is the size of /dev/shm in bytes; 0 means 64 MiB.
	ShmSize int64

	// CapAdd and CapDrop change Docker's default capabilities.
	CapAdd, CapDrop []string
	// SecurityOpt are Docker's: no-new-privileges, seccomp=PROFILE|unconfined.
	SecurityOpt []string
	Ulimits     []units.Ulimit
	Sysctls     map[string]string
	// Resources limit the sandbox as a whole; the zero value does not. They need a
	// cgroup that belongs to the user.
	Resources cgroup.Limits
}
