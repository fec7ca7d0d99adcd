// Package proto is the language of sbx's own processes: what the caller tells
// the monitor, the monitor tells init, and the caller tells a worker. The
// transport is internal/wire; netd has a protocol of its own.
//
//	from      to        message       body           descriptors        answer
//	-------   -------   -----------   ------------   ----------------   -------------------------------
//	monitor   caller    ready                                           none: it may be moved to a cgroup
//	caller    monitor   start         Start          stdin stdout       Started; pty with a terminal,
//	                                                 stderr lock        stdin if it is through the monitor
//	caller    monitor   detach                                          empty
//	monitor   caller    log           Notice                            none
//	monitor   caller    exited        Exited                            none: the last message, also before
//	                                                                    start is answered with an error
//	anybody   monitor   signal        Signal                            empty
//	anybody   monitor   stop          Stop                              Exited, when all is over
//	anybody   monitor   wait                                            Exited, when all is over
//	anybody   monitor   pause                                           empty
//	anybody   monitor   unpause                                         empty
//	anybody   monitor   update        Update                            empty; the record is written
//	anybody   monitor   stats                                           Stats
//	anybody   monitor   renamed                                         empty; the new name is in the directory
//	anybody   monitor   connect       Attachment                        empty
//	anybody   monitor   disconnect    Name                              empty
//	anybody   monitor   attach        Attach         stdout stderr      empty; stdin or pty; exited follows
//	anybody   monitor   exec          Exec           stdin stdout       Executed; pty with a terminal;
//	                                                 stderr             exited follows
//	anybody   monitor   ports         ChangePorts                       Ports: those that were added
//	anybody   monitor   netns                                           NetNS; netns userns
//	anybody   monitor   hold                                            empty; pid 1 and all stand still
//	                                                                    until the connection ends
//	anybody   monitor   files                                           empty; files, a connection to:
//	anybody   files     stat-path     StatPath                          PathStat
//	anybody   files     pack-path     PackPath       out                archive.Stats, when all is written
//	anybody   files     unpack-path   UnpackPath     in                 archive.Stats, when all is there
//	monitor   files     enter                        pid1 peer          empty; it serves peer from then on
//	monitor   joined    join          Join           pid1               empty; pty with a terminal
//	monitor   joined    exec          workload.Spec  rules              the end of the connection, or an error
//	monitor   init      net           Net                               Link; link netns
//	monitor   linker    net           Net                               Link; link netns
//	monitor   linker    unlink        Name                              empty
//	monitor   init      root          Root                              Rooted; pty with a terminal, rules
//	monitor   init      exec          workload.Spec  rules              the end of the connection, or an error
//	stage     init      ready                                           none; with --init
//	init      stage     exec          workload.Spec  terminal rules     the end of the connection, or an error
//	caller    worker    unpack        Unpack         blob               image.UnpackResult
//	caller    worker    remove-tree   Path                              empty
//	caller    worker    remove-box    Path                              empty
//	caller    worker    probe         Path                              []fsoverlay.ProbeResult
//	caller    worker    mount-root    MountRoot      lock               Mounted; then the worker is
//	                                                                    what files is above
//	caller    worker    tree          Tree           out                archive.Stats, when all is written
//	caller    worker    usage         Paths                             []int64, bytes of each
//
// A linker is a process in the sandbox's network namespace alone, for a link that is
// made or removed while the sandbox runs.
//
// Anybody is the caller, or who connects to the monitor's socket (BoxSocket); an
// exec takes a connection of its own.
//
// The end of a connection is a message too: a monitor whose caller has gone kills
// the sandbox and cleans up, unless it is detached; an init whose monitor has gone
// exits.
package proto

import (
	"github.com/rootless-sbx/sbx/internal/wire"
	"net"
	"net/netip"
	"path/filepath"
	"syscall"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-sbx/sbx/cgroup"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/netstack"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netd"
	"github.com/rootless-sbx/sbx/sandbox/internal/netdef"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// Message types.
const (
	MsgStart      = "start"
	MsgSignal     = "signal"
	MsgStop       = "stop"
	MsgWait       = "wait"
	MsgDetach     = "detach"
	MsgPause      = "pause"
	MsgUnpause    = "unpause"
	MsgUpdate     = "update"
	MsgStats      = "stats"
	MsgRenamed    = "renamed"
	MsgConnect    = "connect"
	MsgDisconnect = "disconnect"
	MsgUnlink     = "unlink"
	MsgMove       = "move"
	MsgAttach     = "attach"
	MsgLog        = "log"
	MsgExited     = "exited"
	MsgNet        = "net"
	MsgRoot       = "root"
	MsgExec       = "exec"
	MsgNetNS      = "netns"
	MsgPorts      = "ports"
	MsgReady      = "ready"
	MsgJoin       = "join"
	MsgUnpack     = "unpack"
	MsgRemoveTree = "remove-tree"
	MsgRemoveBox  = "remove-box"
	MsgProbe      = "probe"
	MsgTree       = "tree"
	MsgHold       = "hold"
	MsgUsage      = "usage"
	MsgFiles      = "files"
	MsgEnter      = "enter"
	MsgMountRoot  = "mount-root"
	MsgStatPath   = "stat-path"
	MsgPackPath   = "pack-path"
	MsgUnpackPath = "unpack-path"
)

// FileRules are the Landlock rules of mounts with allow=, if there are any: init makes them
// of the tree that it has built, and the monitor keeps them for the programs beside it.
const FileRules = "rules"

// Codes of errors that a caller tells apart.
const (
	CodeNotRunning    = "not-running"
	CodeNotAttachable = "not-attachable"
	CodeNotPublished  = "not-published"
	CodePaused        = "paused"
	CodeNotPaused     = "not-paused"
	CodeNoBox         = "no-box" // it has no cgroup
	CodeKernelDir     = "kernel-dir"
)

// LabelSandbox names the sandbox that an anonymous volume belongs to.
const LabelSandbox = "rootless-sbx.sandbox"

// BuiltinDir is where the builtin port driver of a sandbox has its sockets.
func BuiltinDir(runtimeDir, id string) string {
	return filepath.Join(runtimeDir, "b", id[:min(12, len(id))])
}

// BoxSocket is where the monitor of a sandbox listens.
func BoxSocket(runtimeDir, id string) string {
	return filepath.Join(runtimeDir, "box", id[:min(12, len(id))]+".sock")
}

// Roles: argv[0] of the processes that the binary is started as.
const (
	RoleMonitor = "sbx-monitor"
	RoleInit    = "sbx-init"
	RoleExec    = "sbx-exec"
	RoleLinker  = "sbx-linker"
	RoleNetd    = "sbx-netd"
	RoleWorker  = "sbx-worker"
	RoleFiles   = "sbx-files"
)

// Start is a sandbox as the caller has resolved it.
type Start struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Hostname string `json:"hostname"`
	// Image, as it was named, for events.
	Image string `json:"image,omitempty"`
	// Labels are the image's and the user's.
	Labels map[string]string `json:"labels,omitempty"`
	// Dir is the sandbox's own directory; the monitor removes it at the end.
	Dir        string `json:"dir"`
	RuntimeDir string `json:"runtimeDir"`
	DataDir    string `json:"dataDir"`
	VolumesDir string `json:"volumesDir"`
	EventsDir  string `json:"eventsDir"`

	Driver string   `json:"driver"`
	Lowers []string `json:"lowers"` // top first
	Single bool     `json:"single,omitempty"`

	// SystemPathsUnconfined leaves the masks of /proc and /sys out.
	SystemPathsUnconfined bool              `json:"systemPathsUnconfined,omitempty"`
	Mounts                []fsoverlay.Mount `json:"mounts,omitempty"`
	ReadOnly              bool              `json:"readOnly,omitempty"`
	ShmSize               int64             `json:"shmSize,omitempty"`
	TTY                   bool              `json:"tty,omitempty"`
	Rows                  uint16            `json:"rows,omitempty"`
	Cols                  uint16            `json:"cols,omitempty"`
	Init                  bool              `json:"init,omitempty"`
	Sysctls               map[string]string `json:"sysctls,omitempty"`

	// Cgroup is the directory of the sandbox's group, see cgroup.Open; empty: none.
	Cgroup string `json:"cgroup,omitempty"`
	// PidsLimit of it, which init itself may be over; 0 or -1: none.
	PidsLimit int64 `json:"pidsLimit,omitempty"`

	// NetdLinger is passed on to a network process that the monitor has to start.
	NetdLinger time.Duration `json:"netdLinger,omitempty"`

	// TakeStdin hands the workload's input to the caller, see Life.OpenStdin.
	TakeStdin bool `json:"takeStdin,omitempty"`

	Life Life `json:"life"`

	Network Network       `json:"network"`
	Process workload.Spec `json:"process"`
}

// Life is what happens around the workload.
type Life struct {
	// Detach lets the sandbox outlive its caller.
	Detach bool `json:"detach,omitempty"`
	// Keep leaves the sandbox there when it has ended.
	Keep bool `json:"keep,omitempty"`
	// Log through which the monitor passes the workload's output; nil: the caller's
	// descriptors are the workload's own, and nobody else can have it.
	Log *Log `json:"log,omitempty"`
	// OpenStdin gives the workload an input; with StdinOnce it ends when the first
	// who had it lets it go.
	OpenStdin bool `json:"openStdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`

	StopSignal  syscall.Signal `json:"stopSignal,omitempty"`
	StopTimeout time.Duration  `json:"stopTimeout,omitempty"`
	Restart     Restart        `json:"restart"`
	Healthcheck *Healthcheck   `json:"healthcheck,omitempty"`
}

// Log says where the workload's output is kept.
type Log struct {
	Driver   string `json:"driver"` // json-file or none
	MaxSize  int64  `json:"maxSize,omitempty"`
	MaxFiles int    `json:"maxFiles,omitempty"`
}

// Restart is a restart policy.
type Restart struct {
	Name string `json:"name,omitempty"` // no, on-failure, always, unless-stopped
	Max  int    `json:"max,omitempty"`  // for on-failure; 0: as often as it takes
}

// Wants says whether a workload that has ended so, and was started again that often, is
// to be started once more.
func (r Restart) Wants(code, restarts int) bool {
	switch r.Name {
	case "always", "unless-stopped":
		return true
	case "on-failure":
		return code != 0 && (r.Max == 0 || restarts < r.Max)
	}
	return false
}

// Healthcheck is how to see whether the workload does its work.
type Healthcheck struct {
	Test          []string      `json:"test"` // CMD or CMD-SHELL, and the command
	Interval      time.Duration `json:"interval,omitempty"`
	Timeout       time.Duration `json:"timeout,omitempty"`
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`
	StartInterval time.Duration `json:"startInterval,omitempty"`
	Retries       int           `json:"retries,omitempty"`
}

// Health is what the checks found, with Docker's keys.
type Health struct {
	Status        string
	FailingStreak int
	Log           []HealthResult
}

// HealthResult is one check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int
	Output     string
}

// Network says how the sandbox is connected.
type Network struct {
	// Mode is none, host, container:ID or ns:PATH, or default for the networks of
	// Attachments.
	Mode string `json:"mode"`
	// Attachments are the sandbox's places in networks, eth0 first.
	Attachments []Attachment `json:"attachments,omitempty"`
	MTU         int          `json:"mtu,omitempty"`
	LinkDriver  string       `json:"linkDriver,omitempty"`
	HostAccess  []uint16     `json:"hostAccess,omitempty"`
	Metadata    bool         `json:"metadata,omitempty"`
	DNS         []string     `json:"dns,omitempty"`
	DNSSearch   []string     `json:"dnsSearch,omitempty"`
	DNSOptions  []string     `json:"dnsOptions,omitempty"`
	// Links are other sandboxes that this one is to know; Linked are their lines of
	// /etc/hosts at this start, as AddHost.
	Links      []LinkTo       `json:"links,omitempty"`
	Linked     []string       `json:"linked,omitempty"`
	AddHost    []string       `json:"addHost,omitempty"`
	Ports      []portfwd.Spec `json:"ports,omitempty"`
	PortDriver string         `json:"portDriver,omitempty"`
}

// LinkTo is a link to another sandbox.
type LinkTo struct {
	Target string `json:"target"`
	Alias  string `json:"alias"`
}

// Attachment is a sandbox's place in a network as it is wanted.
type Attachment struct {
	// Network as it was when the sandbox was started.
	Network netdef.Network `json:"network"`
	// NetworkID is what users know as its id; the default network's is not in Network.
	NetworkID string           `json:"networkID,omitempty"`
	Aliases   []string         `json:"aliases,omitempty"`
	Addr4     netip.Addr       `json:"addr4,omitzero"`
	Addr6     netip.Addr       `json:"addr6,omitzero"`
	MAC       net.HardwareAddr `json:"mac,omitempty"`
	DHCP      bool             `json:"dhcp,omitempty"`
	Priority  int              `json:"priority,omitempty"` // of its gateway
}

// Endpoint is a sandbox's place in a network while it runs.
type Endpoint struct {
	Network  string       `json:"network"`
	Device   string       `json:"device"`
	Driver   string       `json:"driver"` // of the link
	Prefix4  netip.Prefix `json:"prefix4,omitzero"`
	Prefix6  netip.Prefix `json:"prefix6,omitzero"`
	Gateway4 netip.Addr   `json:"gateway4,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	MAC      string       `json:"mac"`
	// Way says that this is the way out, where ports are published.
	Way bool `json:"way,omitempty"`
}

// Started is what the monitor knows once the workload runs.
type Started struct {
	// PID is the sandbox's pid 1 in the caller's pid namespace: the workload, or
	// with Config.Init its parent.
	PID int `json:"pid"`
	// Networks are eth0, eth1, ... as they are now.
	Networks []Endpoint    `json:"networks,omitempty"`
	Ports    []port.Status `json:"ports,omitempty"`
	// Notes are what the user should know, e.g. a degraded mount.
	Notes []string `json:"notes,omitempty"`
	Marks []Mark   `json:"marks,omitempty"` // the monitor's and init's
}

// Signal is a signal for the workload.
type Signal struct {
	Number int `json:"number"`
}

// Stop ends the sandbox: with Signal, and after Timeout with SIGKILL.
type Stop struct {
	Signal  int           `json:"signal,omitempty"`  // 0: the sandbox's own
	Timeout time.Duration `json:"timeout,omitempty"` // 0: the sandbox's own; negative: never
	// Remove says that it is removed then, which is another event.
	Remove bool `json:"remove,omitempty"`
}

// Update changes what a sandbox may use, and what becomes of it at its end.
type Update struct {
	Limits  cgroup.Limits `json:"limits,omitzero"` // those that are to change
	Restart *Restart      `json:"restart,omitempty"`
}

// Stats is what a sandbox has used.
type Stats struct {
	Group   *cgroup.Stats `json:"group,omitempty"`   // nil: it has no cgroup
	Network *netd.Traffic `json:"network,omitempty"` // nil: nobody counts it
}

// Attach adds a session: the pipes that come with it are written to.
type Attach struct {
	Stdin bool `json:"stdin,omitempty"`
}

// Exec runs another program in the sandbox. Its streams come with it, unless it
// has a terminal.
type Exec struct {
	Args wire.Strings `json:"args"`
	Env  wire.Strings `json:"env,omitempty"` // added to that of the workload
	Cwd  string       `json:"cwd,omitempty"`
	User string       `json:"user,omitempty"`
	TTY  bool         `json:"tty,omitempty"`
	Rows uint16       `json:"rows,omitempty"`
	Cols uint16       `json:"cols,omitempty"`
}

// Join takes a process into a sandbox; the pidfd of its pid 1 comes with it.
type Join struct {
	HostNetwork bool   `json:"hostNetwork,omitempty"` // it has the network namespace already
	TTY         bool   `json:"tty,omitempty"`
	Rows        uint16 `json:"rows,omitempty"`
	Cols        uint16 `json:"cols,omitempty"`
}

// Executed is a program that runs now.
type Executed struct {
	PID int `json:"pid"`
}

// Notice is what the monitor has to say while the sandbox runs.
type Notice struct {
	Text string `json:"text"`
}

// Exited is how the workload ended.
type Exited struct {
	Code   int `json:"code"`             // 0-255, 128+N after signal N
	Signal int `json:"signal,omitempty"` // N
	// OOMKilled: the kernel killed a process for want of memory in the group.
	OOMKilled bool `json:"oomKilled,omitempty"`
	// Notes are what went wrong while cleaning up.
	Notes []string `json:"notes,omitempty"`
	Marks []Mark   `json:"marks,omitempty"` // since the start
}

// Net is the network device that init makes.
type Net struct {
	Loopback bool                 `json:"loopback"` // only lo
	Guest    netstack.GuestConfig `json:"guest"`
}

// Move gives a device other addresses and ways out in place of those it had.
type Move struct {
	Gone  netstack.GuestConfig `json:"gone"`
	Guest netstack.GuestConfig `json:"guest"`
}

// Name is that of a network, or of a device.
type Name struct {
	Name string `json:"name"`
}

// Link describes the device's descriptor.
type Link struct {
	Driver string `json:"driver"`
	HdrLen int    `json:"hdrLen"`
	MTU    int    `json:"mtu"`
	Reason string `json:"reason,omitempty"`
}

// Root is the root file system and everything mounted in it.
type Root struct {
	Spec     fsoverlay.RootSpec   `json:"spec"`
	Plan     fsoverlay.PlanConfig `json:"plan"`
	Hostname string               `json:"hostname"`
	Sysctls  map[string]string    `json:"sysctls,omitempty"`
	TTY      bool                 `json:"tty,omitempty"`
	Rows     uint16               `json:"rows,omitempty"`
	Cols     uint16               `json:"cols,omitempty"`
	Init     bool                 `json:"init,omitempty"`
}

// Rooted is what init noticed while it built the root.
type Rooted struct {
	Notes []string `json:"notes,omitempty"`
	Marks []Mark   `json:"marks,omitempty"`
}

// Path names a directory for a worker.
type Path struct {
	Path string `json:"path"`
}

// Tree asks for the files of a sandbox's root, as they are on the disk.
type Tree struct {
	What string             `json:"what"` // one of those below
	View fsoverlay.ViewSpec `json:"view"`
}

// What a worker writes: a tar stream of the whole root, one of the changes as a layer,
// or the changes themselves, each one a byte for its kind, its path and a NUL.
const (
	TreeAll     = "all"
	TreeLayer   = "layer"
	TreeChanges = "changes"
)

// Paths name files or directories for a worker.
type Paths struct {
	Paths []string `json:"paths"`
}

// Unpack is a layer for a worker; the blob comes as a descriptor.
type Unpack struct {
	Job image.UnpackJob `json:"job"`
}
