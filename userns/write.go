package userns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const helperTimeout = 30 * time.Second // on a machine that is far too busy

var errHelperTimeout = errors.New("it did not finish within 30 seconds")

// write maps the ids of process pid, which is in a new user namespace, and says
// whether setgroups(2) works there.
func (m *Mapping) write(ctx context.Context, pid int) (setgroups bool, err error) {
	if m.Helper {
		err = m.writeByHelpers(ctx, pid)
	} else {
		err = m.writeDirectly(pid)
	}
	if err != nil {
		return false, err
	}
	b, err := os.ReadFile(procFile(pid, "setgroups"))
	if err != nil {
		return false, mapError(m, err)
	}
	return strings.TrimSpace(string(b)) == "allow", nil
}

// entered checks the maps of process pid, which is in a user namespace that was there
// before, and says whether setgroups(2) works there. No mapping fits every map.
func (m *Mapping) entered(pid int) (setgroups bool, err error) {
	if m != nil {
		have, err := ReadMapping(pid)
		if err != nil {
			return false, err
		}
		if !m.Fits(have) {
			return false, &Error{Kind: ErrMap, Step: "enter the user namespace", Msg: fmt.Sprintf("its ids are %s, and not %s", have, m)}
		}
	}
	b, err := os.ReadFile(procFile(pid, "setgroups"))
	return strings.TrimSpace(string(b)) == "allow", err
}

// ReadMapping returns the maps of the user namespace of a process. Only UIDs and GIDs
// are filled in.
func ReadMapping(pid int) (*Mapping, error) {
	m := &Mapping{}
	var err error
	if m.UIDs, err = readMap(procFile(pid, "uid_map")); err == nil {
		m.GIDs, err = readMap(procFile(pid, "gid_map"))
	}
	if err != nil {
		return nil, &Error{Kind: ErrMap, Step: "read the id maps", Errno: errnoOf(err), Msg: err.Error()}
	}
	return m, nil
}

// String lists the extents of both maps.
func (m *Mapping) String() string {
	text := func(l []IDMap) string { return strings.TrimSpace(strings.ReplaceAll(mapText(coalesce(l)), "\n", ", ")) }
	return fmt.Sprintf("uid %s gid %s", strings.TrimSuffix(text(m.UIDs), ","), strings.TrimSuffix(text(m.GIDs), ","))
}

func procFile(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

func (m *Mapping) writeByHelpers(ctx context.Context, pid int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, helperTimeout, errHelperTimeout)
	defer cancel()
	gids := make(chan error, 1)
	go func() { gids <- runHelper(ctx, m.NewGIDMap, pid, m.GIDs) }()
	return errors.Join(runHelper(ctx, m.NewUIDMap, pid, m.UIDs), <-gids)
}

func runHelper(ctx context.Context, path string, pid int, l []IDMap) error {
	args := []string{strconv.Itoa(pid)}
	for _, e := range l {
		args = append(args, strings.Fields(e.String())...)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{} // its messages in English, and nothing it could be misled by
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) { // it has done it, and its silence was not heard in time
		return nil
	}
	msg := strings.TrimSpace(stderr.String())
	if len(msg) > 1024 {
		msg = msg[:1024]
	}
	switch cause := context.Cause(ctx); {
	case cause == errHelperTimeout:
		msg = cause.Error()
	case cause != nil: // the caller's wish
		return fmt.Errorf("map ids with %s: %w", path, cause)
	case msg == "":
		msg = err.Error()
	}
	return &Error{Kind: ErrMap, Step: "map ids with", Path: path, Msg: msg,
		Fix: "check the user's ranges in /etc/subuid and /etc/subgid; --userns single does without them"}
}

// writeDirectly needs no privilege for a single id that is the caller's own, if
// setgroups is given up first: who may drop a group may gain what it is denied.
func (m *Mapping) writeDirectly(pid int) error {
	effective, _, err := ownCaps()
	if err != nil {
		return err
	}
	if effective&(1<<unix.CAP_SETGID) == 0 {
		if err := writeProc(procFile(pid, "setgroups"), "deny"); err != nil {
			return mapError(m, err)
		}
	}
	if err := writeProc(procFile(pid, "uid_map"), mapText(m.UIDs)); err != nil {
		return mapError(m, err)
	}
	if err := writeProc(procFile(pid, "gid_map"), mapText(m.GIDs)); err != nil {
		return mapError(m, err)
	}
	return nil
}

// writeProc writes in one write(2): the kernel takes a map only whole.
func writeProc(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func mapError(m *Mapping, err error) error {
	e := &Error{Kind: ErrMap, Step: "map ids", Errno: errnoOf(err)}
	var pe *os.PathError
	if errors.As(err, &pe) {
		e.Path = pe.Path
	}
	effective, _, cerr := ownCaps()
	_, zeroUID := fromHost(m.UIDs, 0)
	_, zeroGID := fromHost(m.GIDs, 0)
	switch {
	case cerr == nil && (zeroUID || zeroGID) && e.Errno == unix.EPERM && effective&(1<<unix.CAP_SETFCAP) == 0:
		e.Msg = "mapping id 0 needs CAP_SETFCAP in this user namespace"
		e.Fix = "give the outer container CAP_SETFCAP, or run as another user there"
	case e.Errno == unix.EACCES:
		e.Msg = "the child's /proc files belong to somebody else"
		e.Fix = "the program must be readable by the user who runs it"
	default:
		e.Msg = "the kernel refused the map"
	}
	return e
}
