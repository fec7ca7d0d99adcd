package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rootless-sbx/sbx/internal/rmtree"
	"github.com/rootless-sbx/sbx/internal/wire"
)

// The test binary runs itself again as other processes, told apart by modeEnv.
const modeEnv = "SBX_IMAGE_TEST"

func TestMain(m *testing.M) {
	switch mode := os.Getenv(modeEnv); mode {
	case "":
		os.Exit(runChecked(m))
	case "unpack", "remove", "stack":
		os.Exit(mappedChild(mode))
	default:
		os.Exit(storeChild(mode))
	}
}

// runChecked runs the tests and then looks for what they have left.
func runChecked(m *testing.M) int {
	fds := countDir("/proc/self/fd")
	code := m.Run()
	if code != 0 {
		return code
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		g, f := runtime.NumGoroutine(), countDir("/proc/self/fd")
		// The signal and timer machinery of the test framework stays.
		if g <= 3 && f <= fds+4 && !hasMounts() && !hasChildren() {
			return 0
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			fmt.Fprintf(os.Stderr, "left over: %d goroutines, %d descriptors (%d before), mounts %v, children %v\n%s",
				g, f, fds, hasMounts(), hasChildren(), buf[:runtime.Stack(buf, true)])
			return 1
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func countDir(p string) int {
	e, _ := os.ReadDir(p)
	return len(e)
}

// hasMounts looks for those of the tests: others of the machine come and go.
func hasMounts() bool {
	b, err := os.ReadFile("/proc/self/mounts")
	return err != nil || bytes.Contains(b, []byte(" "+filepath.Clean(os.TempDir())+"/Test"))
}

func hasChildren() bool {
	var ws syscall.WaitStatus
	_, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
	return !errors.Is(err, syscall.ECHILD)
}

func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Root == "" {
		cfg.Root = filepath.Join(t.TempDir(), "images")
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// childReply is what the mapped child says.
type childReply struct {
	Res    UnpackResult
	Err    *wire.Error
	Stacks []stackReply
}

// mappedChild is root of a fresh user namespace: descriptor 3 is the layer, 4
// ends when the id map is written, 5 is for the reply.
func mappedChild(mode string) int {
	if _, err := io.ReadAll(os.NewFile(4, "mapped")); err != nil {
		return 2
	}
	var reply childReply
	switch mode {
	case "unpack":
		var job UnpackJob
		if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
			return 2
		}
		job.Blob = os.NewFile(3, "layer")
		res, err := Unpack(context.Background(), job)
		reply = childReply{Res: res, Err: WireError(err)}
	case "remove":
		path, err := io.ReadAll(os.Stdin)
		if err != nil {
			return 2
		}
		reply.Err = WireError(rmtree.Remove(string(path)))
	case "stack":
		var job stackJob
		if err := json.NewDecoder(os.Stdin).Decode(&job); err != nil {
			return 2
		}
		stacks, err := job.run()
		reply = childReply{Stacks: stacks, Err: wire.ToError("", err)}
	}
	if err := json.NewEncoder(os.NewFile(5, "reply")).Encode(reply); err != nil {
		return 2
	}
	return 0
}

// inUserns runs this binary as root of a user namespace: 0 is the user, 1 and
// up are subordinate ids, or with single nothing else is mapped.
func inUserns(ctx context.Context, mode, stdin string, blob *os.File, single bool) (childReply, error) {
	var reply childReply
	r, w, err := os.Pipe()
	if err != nil {
		return reply, err
	}
	defer w.Close()
	rr, rw, err := os.Pipe()
	if err != nil {
		r.Close()
		return reply, err
	}
	defer rr.Close()
	if blob == nil {
		if blob, err = os.Open(os.DevNull); err != nil {
			return reply, err
		}
		defer blob.Close()
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), modeEnv+"="+mode)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{blob, r, rw}
	caps := make([]uintptr, 0, 41)
	for c := uintptr(0); c <= 40; c++ {
		caps = append(caps, c)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, AmbientCaps: caps, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	r.Close()
	rw.Close()
	if err != nil {
		return reply, err
	}
	err = writeMaps(cmd.Process.Pid, single)
	w.Close()
	derr := json.NewDecoder(rr).Decode(&reply)
	if werr := cmd.Wait(); err == nil {
		err = errors.Join(derr, werr)
	}
	if err != nil {
		return reply, fmt.Errorf("user namespace: %w", err)
	}
	if reply.Err != nil {
		return reply, reply.Err
	}
	return reply, nil
}

func writeMaps(pid int, single bool) error {
	uid, gid := os.Getuid(), os.Getgid()
	proc := fmt.Sprintf("/proc/%d/", pid)
	if single {
		return errors.Join(
			os.WriteFile(proc+"setgroups", []byte("deny"), 0),
			os.WriteFile(proc+"uid_map", fmt.Appendf(nil, "0 %d 1", uid), 0),
			os.WriteFile(proc+"gid_map", fmt.Appendf(nil, "0 %d 1", gid), 0))
	}
	first := subID()
	if uid == 0 {
		return errors.Join(
			os.WriteFile(proc+"uid_map", fmt.Appendf(nil, "0 0 1\n1 %d 65535", first), 0),
			os.WriteFile(proc+"gid_map", fmt.Appendf(nil, "0 0 1\n1 %d 65535", first), 0))
	}
	for tool, id := range map[string]int{"newuidmap": uid, "newgidmap": gid} {
		out, err := exec.Command(tool, strconv.Itoa(pid), "0", strconv.Itoa(id), "1", "1", strconv.Itoa(first), "65535").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", tool, err, out)
		}
	}
	return nil
}

// subID is the first subordinate id of the user. Root takes any.
func subID() int {
	u, err := user.Current()
	if err != nil || u.Uid == "0" {
		return 100000
	}
	b, _ := os.ReadFile("/etc/subuid")
	for line := range strings.Lines(string(b)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 && (f[0] == u.Username || f[0] == u.Uid) {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return -1
}

func mappedUnpacker(single bool) Unpacker {
	return func(ctx context.Context, job UnpackJob) (UnpackResult, error) {
		job.Single = single
		b, err := json.Marshal(job)
		if err != nil {
			return UnpackResult{}, err
		}
		reply, err := inUserns(ctx, "unpack", string(b), job.Blob, single)
		return reply.Res, err
	}
}

func mappedRemover(ctx context.Context, path string) error {
	_, err := inUserns(ctx, "remove", path, nil, false)
	return err
}
