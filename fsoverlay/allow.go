package fsoverlay

import (
	"errors"
	"strconv"
	"strings"

	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Rights are what the workload may do beneath a mount.
type Rights uint16

const (
	MayRead    Rights = 1 << iota // files; it may always list directories
	MayWrite                      // files that are there, and cut them short
	MayCreate                     // make files
	MayMkdir                      // make directories
	MayRemove                     // files and directories
	MaySymlink                    // make symbolic links
	MaySpecial                    // make sockets, named pipes and devices
	MayExec                       // execute files
)

const mayChange = MayWrite | MayCreate | MayMkdir | MayRemove | MaySymlink | MaySpecial

// rights have the word for each in allow=, and what it is to Landlock. To execute is a
// flag of the mount, which interpreters and libraries obey too.
var rights = []struct {
	right  Rights
	word   string
	access uint64
}{
	{MayRead, "read", ll.AccessFSReadFile},
	{MayWrite, "write", ll.AccessFSWriteFile | ll.AccessFSTruncate},
	{MayCreate, "create", ll.AccessFSMakeReg},
	{MayMkdir, "mkdir", ll.AccessFSMakeDir},
	{MayRemove, "remove", ll.AccessFSRemoveFile | ll.AccessFSRemoveDir},
	{MaySymlink, "symlink", ll.AccessFSMakeSym},
	{MaySpecial, "special", ll.AccessFSMakeSock | ll.AccessFSMakeFifo | ll.AccessFSMakeChar | ll.AccessFSMakeBlock},
	{MayExec, "exec", 0},
}

// Words are those of allow=.
func (r Rights) Words() (words []string) {
	for _, x := range rights {
		if r&x.right != 0 {
			words = append(words, x.word)
		}
	}
	return words
}

func (r Rights) String() string { return strings.Join(r.Words(), "+") }

// parseRights reads words with + between. The empty message means that it is fine.
func parseRights(s string) (r Rights, msg string) {
next:
	for word := range strings.SplitSeq(s, "+") {
		for _, x := range rights {
			if x.word == word {
				r |= x.right
				continue next
			}
		}
		return 0, "unknown word " + strconv.Quote(word) + " in allow=; use words of " + (^Rights(0)).String()
	}
	return r, ""
}

// MarshalText and UnmarshalText make a record readable.
func (r Rights) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *Rights) UnmarshalText(b []byte) (err error) {
	got, msg := parseRights(string(b))
	if msg != "" {
		return errors.New(msg)
	}
	*r = got
	return nil
}

// Writable says whether the workload may change anything in it.
func (m *Mount) Writable() bool {
	return !m.ReadOnly && (m.Allow == 0 || m.Allow&mayChange != 0)
}

// checkAllow looks at what m.Allow does not go with. The empty message means that it is
// fine.
func (m *Mount) checkAllow() string {
	switch {
	case m.Allow == 0:
	case m.Type == TypeTmpfs:
		return "allow= is for bind mounts and volumes; a tmpfs is gone with the sandbox, give it options such as noexec"
	case m.Allow&(MayExec|MayRead) == MayExec:
		return "allow=exec needs read: what is executed is read"
	case m.SubmountsWritable:
		return "allow= holds for what is mounted below too: leave bind-recursive=writable out"
	case m.ReadOnly && m.Allow&mayChange != 0:
		return "read-only and allow=" + (m.Allow & mayChange).String() + " contradict each other: leave one of them out"
	case strings.HasPrefix(m.Target, "/proc/"):
		return "allow= is for targets outside /proc"
	}
	return ""
}

// attrs are the flags of the mount: they do what they can of m.Allow.
func (m *Mount) attrs() (a Attr) {
	if !m.Writable() {
		a |= ReadOnly
	}
	if m.Allow != 0 && m.Allow&MayExec == 0 {
		a |= NoExec
	}
	return a
}

// access is what Landlock is to do of m.Allow: what it gives beneath the mount, and what
// the workload may have been given above without getting more than that.
func (m *Mount) access() (gives, bears uint64) {
	allow := m.Allow
	if allow == 0 {
		allow = ^Rights(0)
	}
	for _, x := range rights {
		if allow&x.right != 0 {
			gives |= x.access
		}
	}
	if allow&MayRemove != 0 && allow&(MayCreate|MayMkdir) != 0 {
		gives |= ll.AccessFSRefer // move and link between directories
	}
	if m.Writable() || m.SubmountsWritable {
		return gives, gives
	}
	// Whatever is given, the mount is read-only; but for what is no file's contents,
	// such as a pipe in it.
	return gives&ll.AccessFSReadFile | ll.AccessFSWriteFile, gives | anything&^ll.AccessFSReadFile
}
