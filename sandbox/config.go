package sandbox

import (
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/portfwd"
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

	// Detach lets the sandbox outlive this process: nothing ends it but its workload
	// and Stop, Kill or Remove by anybody. Else it ends with this process.
	Detach bool
	// Keep leaves the sandbox there when it has ended, to be looked at and started
	// again until somebody removes it.
	Keep bool
	// OpenStdin gives the workload an input that Attach may write to. With Stdin
	// it has one anyway. With StdinOnce, and with Stdin, the input ends with the first
	// who writes to it.
	OpenStdin, StdinOnce bool
	// Log says where the output is kept.
	Log LogConfig
	// Restart starts a detached workload again when it has ended.
	Restart RestartPolicy
	// Health replaces the image's check; nil keeps it.
	Health *HealthConfig

	// Init keeps a small init as pid 1 that reaps orphans and forwards signals.
	Init bool
	// StopTimeout is how long Stop waits before it kills; zero means 10 seconds.
	StopTimeout time.Duration

	// UserNS is the id mapping; empty means userns.ModeAuto.
	UserNS userns.Mode

	// Networks are what the sandbox is connected to, as eth0, eth1, ... in this order;
	// empty means NetworkDefault. NetworkNone, NetworkHost and what another one has
	// (NetworkContainer, NetworkPath) stand alone. The way out is the first that is not
	// internal, and there its ports are published.
	Networks []Attachment
	// Links are other sandboxes to be known inside, which must run when this one starts.
	Links []Link
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
	// MetadataAccess lets the sandbox reach the addresses at which a cloud tells its
	// machines their secrets.
	MetadataAccess bool
	// Publish are the published ports, see portfwd.ParsePublish.
	Publish []portfwd.Spec
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
	// OOMScoreAdj is from 0 to 1000: how much sooner than others its processes are killed
	// when the machine's memory is used up.
	OOMScoreAdj int
	Sysctls     map[string]string
	// Resources limit the sandbox as a whole; the zero value does not. They need a
	// cgroup that belongs to the user.
	Resources cgroup.Limits
}

// Attachment is a sandbox's place in one network.
type Attachment struct {
	// Network is its name or id; empty means NetworkDefault.
	Network string
	// Aliases are names that the sandbox has there besides its own; others may have
	// them too.
	Aliases []string
	// Addr4, Addr6 and MAC are addresses that it wants; zero means that the network
	// chooses.
	Addr4, Addr6 netip.Addr
	MAC          net.HardwareAddr
	// DHCP: the IPv4 address is to be one of the segment's server, on an uplink. It is
	// so anyway where that has no subnet.
	DHCP bool
	// GatewayPriority: of several networks the one with the highest is the way out.
	// From -100 to 100.
	GatewayPriority int
}

// On is a sandbox's place in each of these networks, without special wishes.
func On(networks ...string) []Attachment {
	list := make([]Attachment, len(networks))
	for i, n := range networks {
		list[i].Network = n
	}
	return list
}

// mode is what kind of network the sandbox has: NetworkDefault stands for all
// networks that sbx makes, see proto.Network.
func (c *Config) mode() string {
	if n := c.Networks[0].Network; alone(n) {
		return n
	}
	return NetworkDefault
}

// alone says that a sandbox with this network has no other.
func alone(network string) bool {
	return network == NetworkNone || network == NetworkHost || isShared(network)
}

// Streams are a caller's ends of a workload's streams.
type Streams struct {
	// Stdin is its input, nil for none. With a terminal it feeds that.
	Stdin io.Reader
	// Stdout and Stderr receive its output; nil discards, or leaves it to others.
	// With a terminal all goes to Stdout.
	Stdout, Stderr io.Writer
}

func (c *Config) streams() Streams { return Streams{c.Stdin, c.Stdout, c.Stderr} }

// LogConfig says where a workload's output is kept.
type LogConfig struct {
	// Driver is "json-file" or "none"; empty means json-file, but none for a sandbox
	// that is neither detached nor kept.
	Driver string
	// MaxSize is that of a file in bytes, 0 means 10 MiB; MaxFiles are kept, 0
	// means 3.
	MaxSize  int64
	MaxFiles int
}

// RestartPolicy says when a workload that has ended is started again.
type RestartPolicy struct {
	// Name is "no", "on-failure", "always" or "unless-stopped"; empty means no.
	// Without a daemon the last two are the same.
	Name string
	// Max is how often, on-failure; 0 means without end.
	Max int
}

// HealthConfig is how to see whether a workload does its work.
type HealthConfig struct {
	// Test is "CMD" and a command, "CMD-SHELL" and a line for the shell, or "NONE";
	// empty keeps the image's.
	Test []string
	// Interval and Timeout, 0 means 30 s each, or the image's.
	Interval, Timeout time.Duration
	// StartPeriod is how long failures do not count; StartInterval, 0 means 5 s, is
	// the interval then.
	StartPeriod, StartInterval time.Duration
	// Retries is how many failures in a row make it unhealthy; 0 means 3.
	Retries int
}
