package userns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
)

func TestStartModes(t *testing.T) {
	checkLeaks(t)
	uid, gid := os.Getuid(), os.Getgid()
	for _, tc := range []struct {
		mode     Mode
		uid, gid int
	}{
		{ModeAuto, 0, 0},
		{ModeSingle, 0, 0},
		{ModeKeepID, uid, gid},
	} {
		t.Run(string(tc.mode), func(t *testing.T) {
			m := mapping(t, tc.mode)
			if tc.mode != ModeSingle && m.Mode == ModeSingle {
				t.Fatalf("this machine has no subordinate ids: %s", m.Reason)
			}
			c := start(t, "facts", Spec{Mapping: m, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID})
			var f facts
			expect(t, c, "facts", &f)
			if f.UID != tc.uid || f.GID != tc.gid {
				t.Errorf("ids inside %d:%d, want %d:%d", f.UID, f.GID, tc.uid, tc.gid)
			}
			if want := strings.Join(strings.Fields(mapText(coalesce(m.UIDs))), " "); f.UIDMap != want {
				t.Errorf("uid_map %q, want %q", f.UIDMap, want)
			}
			if want := strings.Join(strings.Fields(mapText(coalesce(m.GIDs))), " "); f.GIDMap != want {
				t.Errorf("gid_map %q, want %q", f.GIDMap, want)
			}
			if f.CapEff != f.CapAmb || strings.Trim(f.CapEff, "0") != "1ffffffffff" && !strings.HasSuffix(f.CapEff, "ffffffff") {
				t.Errorf("capabilities: effective %s, ambient %s", f.CapEff, f.CapAmb)
			}
			if f.SetGroups == "allow" && len(f.Groups) != 0 {
				t.Errorf("supplementary groups %v are left", f.Groups)
			}
			if (tc.mode == ModeSingle && uid != 0) != (f.SetGroups == "deny") {
				t.Errorf("setgroups is %q", f.SetGroups)
			}
			if f.PID != 1 {
				t.Errorf("pid %d in a new pid namespace", f.PID)
			}
			if len(f.Env) != 0 {
				t.Errorf("environment %v, want none", f.Env)
			}
			if ws, err := c.Wait(); err != nil || ws.ExitStatus() != 0 {
				t.Errorf("status %v, %v", ws, err)
			}
			if err := c.Failure(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A child with mapped ids can become another user.
func TestStartSetIDs(t *testing.T) {
	c := start(t, "ids", Spec{Mapping: mapping(t, ModeAuto)})
	if ws, err := c.Wait(); err != nil || ws.ExitStatus() != 0 {
		t.Errorf("status %d, %v, %v", ws.ExitStatus(), err, c.Failure(t.Context()))
	}
}

// TestStartProgramDescriptor: the program is a descriptor, and those of the child may lie
// right below it.
func TestStartProgramDescriptor(t *testing.T) {
	checkLeaks(t)
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	program, err := unix.FcntlInt(exe.Fd(), unix.F_DUPFD_CLOEXEC, 40)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(program)
	path := fmt.Sprintf("/proc/self/fd/%d", program)
	for below := range 4 {
		fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, program-1-below)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "out")
		c := start(t, "facts", Spec{Path: path, Mapping: mapping(t, ModeSingle), Stdin: f, Stdout: f, Stderr: f, Files: []*os.File{f}})
		f.Close()
		expect(t, c, "facts", new(facts))
		if ws, err := c.Wait(); err != nil || ws.ExitStatus() != 0 {
			t.Errorf("%d below the program: status %d, %v, %v", below+1, ws.ExitStatus(), err, c.Failure(t.Context()))
		}
	}
}

func TestStartDescriptors(t *testing.T) {
	checkLeaks(t)
	// A descriptor that somebody further up forgot to mark close-on-exec.
	stray, err := unix.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stray)
	if flags, _ := unix.FcntlInt(uintptr(stray), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC != 0 {
		t.Fatal("the stray descriptor would not be inherited")
	}
	dir := t.TempDir()
	var files []*os.File
	var want []string
	for i := range 3 {
		f, err := os.Create(fmt.Sprintf("%s/file%d", dir, i))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, want = append(files, f), append(want, f.Name())
	}
	c := start(t, "facts", Spec{Mapping: mapping(t, ModeSingle), Files: files})
	var f facts
	expect(t, c, "facts", &f)
	f.Files = slices.DeleteFunc(f.Files, func(s string) bool { return strings.HasPrefix(s, "socket:") })
	if !slices.Equal(f.Files, want) {
		t.Errorf("the child has %q, want %q", f.Files, want)
	}
	if len(f.NotCloexec) != 0 {
		t.Errorf("descriptors %v would survive an exec", f.NotCloexec)
	}
}

func TestChildError(t *testing.T) {
	checkLeaks(t)
	m := mapping(t, ModeSingle)
	t.Run("error", func(t *testing.T) {
		c := start(t, "error", Spec{Mapping: m})
		c.Wait() // dead before we read: what it said must still be there
		_, err := c.Recv()
		var we *wire.Error
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &we) || we.Path != "/does/not/exist" {
			t.Errorf("got %#v", err)
		}
		if got := c.Failure(t.Context()); got != err {
			t.Errorf("Failure is %v", got)
		}
	})
	t.Run("kind", func(t *testing.T) {
		c := start(t, "forbidden", Spec{Mapping: m})
		_, err := c.Recv()
		var e *Error
		if !errors.Is(err, ErrForbidden) || !errors.Is(err, unix.ENOSPC) || !errors.As(err, &e) || e.Fix != "how" {
			t.Errorf("got %#v", err)
		}
	})
	t.Run("panic", func(t *testing.T) {
		c := start(t, "panic", Spec{Mapping: m})
		c.Wait()
		_, err := c.Recv()
		var we *wire.Error
		if !errors.As(err, &we) || we.Code != "panic" || !strings.Contains(we.Msg, "nil map") || !strings.Contains(we.Stack, "userns.child") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("serve", func(t *testing.T) {
		c := start(t, "error", Spec{Mapping: m})
		if err := c.Serve(func(m *wire.Message) { t.Errorf("message %q", m.Type) }); err != nil {
			t.Error(err)
		}
		if err := c.Failure(t.Context()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Failure is %v", err)
		}
	})
	t.Run("silent", func(t *testing.T) {
		c, err := tryStart(t, "silent", Spec{Mapping: m})
		if err == nil { // the child may die before or after its ids are mapped
			err = c.Failure(t.Context())
		}
		var ee *ExitError
		if !errors.As(err, &ee) || ee.Status.ExitStatus() != 7 || !strings.Contains(err.Error(), "status 7") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		_, err := Start(t.Context(), Spec{Path: "/no/such/program", Args: []string{"x"}, Mapping: m})
		var e *Error
		if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &e) || e.Path != "/no/such/program" || e.Kind != nil {
			t.Errorf("got %#v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("enough")
		cancel(cause)
		if _, err := Start(ctx, Spec{Path: "/proc/self/exe", Args: []string{"test-wait"}, Mapping: m}); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	})
}

func TestKillAndWait(t *testing.T) {
	checkLeaks(t)
	c := start(t, "wait", Spec{Mapping: mapping(t, ModeSingle)})
	var pid int
	expect(t, c, "ready", &pid)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if ws, err := c.Wait(); err != nil || ws.Signal() != unix.SIGKILL {
				t.Errorf("Wait: %v, %v", ws, err)
			}
		})
	}
	if err := c.Failure(cancelled()); !errors.Is(err, context.Canceled) {
		t.Errorf("Failure of a living child: %v", err)
	}
	if err := c.Kill(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := c.Kill(); err != nil {
		t.Errorf("kill the dead: %v", err)
	}
	var ee *ExitError
	if err := c.Failure(t.Context()); !errors.As(err, &ee) || !strings.Contains(err.Error(), "signal 9") {
		t.Errorf("Failure: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// Closing the connection ends a child that listens to it.
func TestCloseEndsChild(t *testing.T) {
	c := start(t, "wait", Spec{Mapping: mapping(t, ModeSingle)})
	var pid int
	expect(t, c, "ready", &pid)
	c.Close()
	if ws, err := c.Wait(); err != nil || ws != 0 {
		t.Errorf("status %v, %v", ws, err)
	}
}

// orphan is a parent that is going to be killed.
func orphan() error {
	sig := syscall.Signal(0)
	if os.Getenv("PDEATHSIG") != "" {
		sig = unix.SIGKILL
	}
	role := "test-wait"
	c, err := Start(context.Background(), Spec{Path: "/proc/self/exe", Args: []string{role}, Pdeathsig: sig,
		Mapping: &Mapping{Mode: ModeSingle, UIDs: []IDMap{{0, uint32(os.Getuid()), 1}}, GIDs: []IDMap{{0, uint32(os.Getgid()), 1}}}})
	if err != nil {
		return err
	}
	if _, err := c.Recv(); err != nil {
		return err
	}
	if sig != 0 { // only the signal may do it
		if _, err := unix.Dup(int(c.PidFD.Fd())); err != nil {
			return err
		}
		if err := c.Signal(unix.SIGSTOP); err != nil {
			return err
		}
	}
	fmt.Println(c.PID)
	time.Sleep(time.Minute)
	return nil
}

// A child ends when its parent is killed, by the end of the connection or, where
// it does not run, by the signal.
func TestParentKilled(t *testing.T) {
	for _, env := range [][]string{nil, {"PDEATHSIG=1"}} {
		t.Run(strings.Join(env, ""), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			p, err := os.StartProcess("/proc/self/exe", []string{"test-orphan"}, &os.ProcAttr{Env: env, Files: []*os.File{nil, w, os.Stderr}})
			w.Close()
			if err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Fscan(r, &pid); err != nil {
				t.Fatal(err)
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := p.Kill(); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Wait(); err != nil {
				t.Fatal(err)
			}
			pfd := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if n, err := unix.Poll(pfd, 5000); n != 1 {
				unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				t.Errorf("the grandchild %d still runs (%v)", pid, err)
			}
		})
	}
}

func TestManyStarts(t *testing.T) {
	checkLeaks(t)
	m := mapping(t, ModeAuto)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			s := Spec{Mapping: m, Path: "/proc/self/exe", Args: []string{"test-facts"}, Pdeathsig: unix.SIGKILL,
				Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
			c, err := Start(t.Context(), s)
			if err != nil {
				t.Errorf("start %d: %v", i, err)
				return
			}
			defer c.Close()
			if msg, err := c.Recv(); err != nil || msg.Type != "facts" {
				t.Errorf("child %d: %v", i, err)
			}
			if ws, err := c.Wait(); err != nil || ws != 0 {
				t.Errorf("child %d: status %v, %v", i, ws, err)
			}
		})
	}
	wg.Wait()
}

// Without a new user namespace the child keeps the capabilities of its parent,
// whatever its uid: so does a sandbox's init, which its monitor clones.
func TestNested(t *testing.T) {
	for _, mode := range []Mode{ModeAuto, ModeKeepID, ModeSingle} {
		t.Run(string(mode), func(t *testing.T) {
			c := start(t, "nested", Spec{Mapping: mapping(t, mode), Cloneflags: unix.CLONE_NEWNS})
			var n nestedResult
			expect(t, c, "nested", &n)
			if strings.TrimLeft(n.Inner.CapEff, "0") == "" || n.Inner.CapEff != n.Own.CapEff {
				t.Errorf("capabilities of the inner child %s, of the outer %s", n.Inner.CapEff, n.Own.CapEff)
			}
			if n.Inner.PID != 1 || n.Inner.UID != n.Own.UID {
				t.Errorf("inner child: pid %d uid %d", n.Inner.PID, n.Inner.UID)
			}
			// A whole sandbox inside: limited to the ids that exist there.
			if err := n.Map.Validate(); err != nil {
				t.Error(err)
			}
			if n.Sub.UID != 0 || strings.TrimLeft(n.Sub.CapEff, "0") == "" {
				t.Errorf("sandbox inside: %+v", n.Sub)
			}
			if mode == ModeSingle != (n.Map.Mode == ModeSingle) && mode != ModeKeepID {
				t.Errorf("map inside %s: %+v", mode, n.Map)
			}
		})
	}
}

type nestedResult struct {
	Own, Inner, Sub facts
	Map             *Mapping
}

func nested(conn *wire.Conn) error {
	var r nestedResult
	own, err := lookAround(0)
	if err != nil {
		return err
	}
	r.Own = *own
	get := func(s Spec, to *facts) error {
		s.Path, s.Args, s.Stderr = "/proc/self/exe", []string{"test-facts"}, os.Stderr
		c, err := Start(context.Background(), s)
		if err != nil {
			return err
		}
		defer c.Close()
		m, err := c.Recv()
		if err != nil {
			return err
		}
		if err := m.Decode(to); err != nil {
			return err
		}
		_, err = c.Wait()
		return err
	}
	if err := get(Spec{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP}, &r.Inner); err != nil {
		return err
	}
	if r.Map, err = ResolveMapping(MappingConfig{}); err != nil {
		return err
	}
	if err := get(Spec{Mapping: r.Map, Cloneflags: unix.CLONE_NEWNS}, &r.Sub); err != nil {
		return err
	}
	return conn.Send("nested", r)
}

// BenchmarkStart is from Start to the child's return from Join.
func BenchmarkStart(b *testing.B) {
	for _, mode := range []Mode{ModeAuto, ModeSingle} {
		b.Run(string(mode), func(b *testing.B) {
			m := mapping(b, mode)
			var sum time.Duration
			for b.Loop() {
				t0 := time.Now()
				c := start(b, "facts", Spec{Mapping: m, Cloneflags: unix.CLONE_NEWNS})
				var f facts
				expect(b, c, "facts", &f)
				sum += time.Unix(0, f.JoinedAt).Sub(t0)
				c.Wait()
				c.Close()
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(b.N), "us-to-join")
		})
	}
}
