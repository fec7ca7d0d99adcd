package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxsock"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/streams"
	"github.com/rootless-sbx/sbx/userns"
)

// FuzzMonitor has a peer say anything at a sandbox's socket: several datagrams, with
// descriptors that nobody asked for, and then hang up, or half. Each request has one answer
// at most, and that is no larger than a datagram; all descriptors and goroutines go with the
// connection, the record can be read, and who comes next is served. The monitor is one that
// runs, in this process, on the host's network and without a group; it executes no program
// any more, for there are too many.
func FuzzMonitor(f *testing.F) {
	request := func(typ, body string, files ...string) string {
		m := wire.Message{V: wire.Version, Type: typ, ID: 7, Files: files}
		if body != "" {
			m.Body = json.RawMessage(body)
		}
		b, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return string(b)
	}
	wait, stop := request(proto.MsgWait, ""), request(proto.MsgStop, `{"signal":99,"timeout":-1}`)
	for i, s := range []string{
		request(proto.MsgSignal, `{"number":0}`), request(proto.MsgSignal, `{"number":-1}`), request(proto.MsgSignal, `{"number":9}`), wait, stop,
		request(proto.MsgPause, ""), request(proto.MsgUnpause, ""), request(proto.MsgDetach, ""), request(proto.MsgRenamed, ""), request(proto.MsgNetNS, ""),
		request(proto.MsgUpdate, `{"restart":{"name":"always"}}`), request(proto.MsgUpdate, `{"limits":{"memory":-1}}`), request(proto.MsgStats, ""),
		request(proto.MsgConnect, `{"network":{"name":"a"},"ip4":"::"}`), request(proto.MsgDisconnect, `{"name":"../x"}`), request(proto.MsgHold, ""),
		request(proto.MsgPorts, `{"add":[{"proto":"tcp","parentPort":8081,"childPort":80}]}`), request(proto.MsgPorts, `{"remove":[{"proto":"u","childPort":80}]}`),
		request(proto.MsgExec, `{"args":["true"],"user":"-1","tty":true,"rows":65535}`, "stdin", "stdout", "stderr"), request(proto.MsgFiles, ""),
		request(proto.MsgAttach, `{"stdin":true}`, "stdout", "stderr", "stdout"), request(proto.MsgStart, `{"id":"x"}`), request("", ""),
		request(proto.MsgAttach, "", "stdout") + "\n" + request(proto.MsgAttach, "", "stdout"),
		wait + "\n" + request(proto.MsgExec, `{"args":["a"]}`, "stdin", "stdout") + "\n" + request(proto.MsgAttach, "", "stdout") + "\n" + stop,
		`{"v":1,"t":"exec","id":1,"spill":true,"files":["stdout"]}`, `{"v":1,"t":"stats","id":18446744073709551615,"re":true}`, `{"v":2,"t":"stats"}`,
		`{"v":1,"t":"signal","id":1,"b":{"number":"9"}}`, `{"v":1,"t":"signal","t":"stats","id":1,"id":2}`, `{"v":1,"t":"update","id":1,"b":` + strings.Repeat("[", 20000) + `}`,
		`{"v":1,"t":"connect","id":1,"b":null}`, `{"v":1,"t":"` + strings.Repeat("x", 40000) + `","id":1}`, "", "\x00", "\n\n\n",
	} {
		f.Add([]byte(s), uint8(i/20), uint8(i%8))
		f.Add([]byte(s), uint8(0), uint8(2))
	}
	// A collection would close what was lost.
	debug.SetGCPercent(-1)
	trim = func() {}
	m, output := fuzzMonitor(f)
	path := proto.BoxSocket(m.spec.RuntimeDir, m.spec.ID)
	served := func(t testing.TB, c *wire.Conn) {
		t.Helper()
		reply, err := c.Call(t.Context(), proto.MsgStats, nil, nil)
		if err != nil {
			t.Fatalf("who comes next is not served: %v", err)
		}
		reply.CloseFiles()
	}
	always := dialFuzzed(f, path)
	served(f, always)
	inputs := 0
	f.Fuzz(func(t *testing.T, data []byte, files, how uint8) {
		if inputs++; inputs%100 == 0 {
			runtime.GC()
		}
		m.mustLive(t)
		fds, goroutines := openFiles(t), runtime.NumGoroutine()
		whole, half, abrupt := how&1 != 0, how&2 != 0, how&4 != 0
		messages := [][]byte{data}
		if !whole {
			messages = bytes.Split(data, []byte("\n"))
		}
		uc, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		asked := map[uint64]int{}
		var kept []int
		for _, b := range messages {
			var h wire.Message
			n := int(files) // more than it says
			if json.Unmarshal(b, &h) == nil {
				asked[h.ID]++
				n += len(h.Files)
			}
			if h.Spill {
				n++
			}
			given, others := descriptors(t, n%40, how)
			kept = append(kept, others...)
			var rights []byte
			if n > 0 {
				rights = unix.UnixRights(given...)
			}
			_, _, err := uc.WriteMsgUnix(b, rights, nil)
			closeFDs(given)
			if err != nil {
				break // too large, or it has hung up
			}
		}
		if half {
			uc.CloseWrite()
		}
		if !abrupt {
			readAnswers(t, uc, asked, half)
		}
		uc.Close()
		closeFDs(kept)

		served(t, always)
		next := dialFuzzed(t, path)
		served(t, next)
		next.Close()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			output.Write([]byte(".")) // those who have gone are let go
			n, g := openFiles(t), runtime.NumGoroutine()
			if n <= fds && g <= goroutines {
				break
			}
			if time.Now().After(end) {
				buf := make([]byte, 1<<20)
				t.Fatalf("%d descriptors before, %d after; %d goroutines before, %d after\n%s", fds, n, goroutines, g, buf[:runtime.Stack(buf, true)])
			}
		}
		if _, err := record.ReadConfig(m.spec.Dir); err != nil {
			t.Fatal(err)
		}
	})
}

// fuzzMonitor is a monitor whose workload is a process that sleeps, and the end of its output.
func fuzzMonitor(f *testing.F) (*liveMonitor, *os.File) {
	dir, err := os.MkdirTemp("", "monitor") // a short path
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	const id = "0123456789abcdef"
	log := slog.New(slog.DiscardHandler)
	m := &liveMonitor{&monitor{
		log: log, journal: &events.Journal{Dir: filepath.Join(dir, "events"), Logger: log}, entry: semaphore.NewWeighted(maxExecs),
		over: make(chan struct{}), quit: make(chan struct{}), ended: make(chan struct{}), started: true, detached: true, execs: maxExecs,
		spec: proto.Start{ID: id, Name: "box", Dir: filepath.Join(dir, id), RuntimeDir: dir, Network: proto.Network{
			Mode: "host", Ports: []portfwd.Spec{{Spec: port.Spec{Proto: "tcp", ParentPort: 8080, ChildPort: 80}}}, // for the next start
		}},
	}}
	if err := errors.Join(os.Mkdir(m.spec.Dir, 0o700), record.WriteConfig(m.spec.Dir, &record.Config{Start: m.spec}),
		os.WriteFile(filepath.Join(m.spec.Dir, "name"), []byte("box"), 0o600)); err != nil {
		f.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		f.Fatal(err)
	}
	out := streams.NewOutput(r, nil)
	m.streams = &workloadStreams{outputs: map[string]*streams.Output{"stdout": out}}
	go out.Run()
	l, err := boxsock.Listen(proto.BoxSocket(dir, id))
	if err != nil {
		f.Fatal(err)
	}
	m.server = newServer(m.monitor, l)
	m.mustLive(f)
	f.Cleanup(func() {
		m.init.Kill()
		w.Close()
		if err := m.server.close(); err != nil {
			f.Error(err)
		}
	})
	return m, w
}

// liveMonitor is one whose workload comes back.
type liveMonitor struct{ *monitor }

// mustLive starts the workload, if it was killed, or stopped for ever.
func (m *liveMonitor) mustLive(t testing.TB) {
	t.Helper()
	if m.init != nil {
		if err := m.init.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Poll([]unix.PollFd{{Fd: int32(m.init.PidFD.Fd()), Events: unix.POLLIN}}, 0); n == 0 || err == unix.EINTR {
			return
		}
		m.init.PidFD.Close()
		if _, err := unix.Wait4(m.init.PID, nil, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	fd := -1
	cmd := exec.Command("sleep", "1000000")
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd, Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	cmd.Process.Release()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.init = &userns.Child{PID: pid, PidFD: os.NewFile(uintptr(fd), "pidfd")}
}

func dialFuzzed(t testing.TB, path string) *wire.Conn {
	t.Helper()
	c, err := boxsock.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	go c.Serve(func(m *wire.Message) { m.CloseFiles() })
	return c
}

// descriptors are n to give away, and the other ends of them.
func descriptors(t *testing.T, n int, how uint8) (given, kept []int) {
	t.Helper()
	for i := range n {
		var fds [2]int
		var err error
		switch (i + int(how>>3)) % 4 {
		case 0:
			err = unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
			fds[0], fds[1] = fds[1], fds[0]
		case 1:
			fds[1] = -1
			fds[0], err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
		case 2:
			fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		case 3:
			fds[1] = -1
			if fds[0], err = unix.MemfdCreate("body", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err == nil {
				unix.Write(fds[0], []byte(`{"args":["x"]}`))
				_, err = unix.FcntlInt(uintptr(fds[0]), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		given = append(given, fds[0])
		if fds[1] >= 0 {
			kept = append(kept, fds[1])
		}
	}
	return given, kept
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// readAnswers reads them to the end of a connection of which our half is closed; else for as
// long as they come one after the other.
func readAnswers(t *testing.T, uc *net.UnixConn, asked map[uint64]int, half bool) {
	t.Helper()
	patience := 20 * time.Millisecond
	if half {
		patience = 20 * time.Second
	}
	b, oob := make([]byte, 1<<20), make([]byte, unix.CmsgSpace(40*4))
	for {
		uc.SetReadDeadline(time.Now().Add(patience))
		n, oobn, _, _, err := uc.ReadMsgUnix(b, oob)
		if scms, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for _, s := range scms {
				fds, _ := unix.ParseUnixRights(&s)
				closeFDs(fds)
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && !half, errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), err == nil && n == 0:
			return
		case err != nil:
			t.Fatalf("the connection does not end: %v", err)
		}
		var m wire.Message
		if err := json.Unmarshal(b[:n], &m); err != nil || n > 64<<10 {
			t.Fatalf("an answer of %d bytes, %v: %.200q", n, err, b[:n])
		}
		if m.Reply {
			if asked[m.ID]--; asked[m.ID] < 0 {
				t.Fatalf("more answers to request %d than there were requests: %.200q", m.ID, b[:n])
			}
		}
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
