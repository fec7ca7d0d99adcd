package userns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the test binary as the child of its own tests: argv[0] says
// which, as in sbx itself.
func TestMain(m *testing.M) {
	role, ok := strings.CutPrefix(os.Args[0], "test-")
	if !ok {
		os.Exit(m.Run())
	}
	if err := child(role); err != nil { // its parent has it
		os.Exit(3)
	}
	os.Exit(0)
}

// facts is what a child finds around itself.
type facts struct {
	UID, GID   int
	Groups     []int
	UIDMap     string
	GIDMap     string
	SetGroups  string
	CapEff     string
	CapAmb     string
	Files      []string // links of /proc/self/fd from 3 on, without the runtime's
	NotCloexec []int
	PID        int
	Env        []string
	Args       []string
	JoinedAt   int64
}

func child(role string) (err error) {
	switch role {
	case "orphan": // starts a grandchild and waits to be killed
		return orphan()
	case "byhand": // was not started by Start
		conn, err := Join()
		if conn != nil || !errors.Is(err, ErrNotChild) {
			return fmt.Errorf("joined: %w", err)
		}
		fmt.Println(err)
		return nil
	case "unmapped":
		ctx, cancel := testContext()
		defer cancel()
		fmt.Println(Probe(ctx))
		return nil
	case "silent":
		os.Exit(7)
	}
	conn, err := Join()
	if err != nil {
		return err
	}
	now := time.Now().UnixNano()
	defer Recover(conn, &err)
	switch role {
	case "facts":
		f, err := lookAround(now)
		if err != nil {
			return err
		}
		return conn.Send("facts", f)
	case "error":
		_, err := os.Open("/does/not/exist")
		return err
	case "forbidden":
		return &Error{Kind: ErrForbidden, Step: "make a netns", Errno: unix.ENOSPC, Msg: "why", Fix: "how"}
	case "panic":
		doPanic()
	case "wait": // until the parent has gone
		if err := conn.Send("ready", os.Getpid()); err != nil {
			return err
		}
		if _, err := conn.Recv(); !errors.Is(err, io.EOF) {
			return err
		}
		return nil
	case "ids": // becomes other ids, needs a real map
		if err := syscall.Setresgid(33, 33, 33); err != nil {
			return err
		}
		return syscall.Setresuid(33, 33, 33)
	case "nested":
		return nested(conn)
	case "neighbours":
		same, err := neighbours()
		return errors.Join(err, conn.Send("same", same))
	case "obstacle":
		return obstacle(conn)
	case "limited":
		return limited(conn)
	default:
		return fmt.Errorf("no role %q", role)
	}
	return nil
}

func lookAround(joined int64) (*facts, error) {
	f := &facts{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), Env: os.Environ(), Args: os.Args, JoinedAt: joined}
	var err error
	if f.Groups, err = os.Getgroups(); err != nil {
		return nil, err
	}
	for name, to := range map[string]*string{"uid_map": &f.UIDMap, "gid_map": &f.GIDMap, "setgroups": &f.SetGroups} {
		b, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return nil, err
		}
		*to = strings.Join(strings.Fields(string(b)), " ")
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(line, ":")
		switch k {
		case "CapEff":
			f.CapEff = strings.TrimSpace(v)
		case "CapAmb":
			f.CapAmb = strings.TrimSpace(v)
		}
	}
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		n, err := strconv.Atoi(e.Name())
		if err != nil || n < 3 {
			continue
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // the directory itself
		}
		if flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			f.NotCloexec = append(f.NotCloexec, n)
		}
		// Go's runtime has an epoll descriptor and watches its own CPU limit.
		if !strings.HasPrefix(link, "anon_inode:") && !strings.HasPrefix(link, "/sys/fs/cgroup/") {
			f.Files = append(f.Files, link)
		}
	}
	slices.Sort(f.Files)
	return f, nil
}

// expect receives one message of type typ and decodes it.
func expect(t testing.TB, c *Child, typ string, v any) {
	t.Helper()
	if err := c.Conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	m, err := c.Recv()
	if err != nil {
		t.Fatalf("wait for %q: %v (%v)", typ, err, c.Failure(t.Context()))
	}
	defer m.CloseFiles()
	if m.Type != typ {
		t.Fatalf("message %q, want %q", m.Type, typ)
	}
	if err := json.Unmarshal(m.Body, v); err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, role string, s Spec) *Child {
	t.Helper()
	c, err := tryStart(t, role, s)
	if err != nil {
		t.Fatalf("start %s: %v", role, err)
	}
	return c
}

func tryStart(t testing.TB, role string, s Spec) (*Child, error) {
	if s.Args = []string{"test-" + role}; s.Path == "" {
		s.Path = "/proc/self/exe"
	}
	if s.Stderr == nil {
		s.Stderr = os.Stderr
	}
	c, err := Start(t.Context(), s)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		if err := c.Kill(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		c.Wait()
		c.Close()
	})
	return c, nil
}

func mapping(t testing.TB, mode Mode) *Mapping {
	t.Helper()
	m, err := ResolveMapping(MappingConfig{Mode: mode})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func testContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 20*time.Second)
}

func doPanic() { panic("assignment to entry in nil map") }
