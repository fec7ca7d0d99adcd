package monitor

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/rootless-sbx/sbx/internal/wire"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// isEOF says that init has gone, or has become the workload.
func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func errNotRunning() error {
	return &wire.Error{Code: proto.CodeNotRunning, Msg: "the sandbox is not running"}
}

func errNotAttachable() error {
	return &wire.Error{Code: proto.CodeNotAttachable, Msg: "it runs in the foreground of another command, which has its streams",
		Fix: "start it with -d, or without --rm, or look on with sbx exec"}
}

func errPaused() error {
	return &wire.Error{Code: proto.CodePaused, Msg: "the sandbox is paused"}
}

func errNoBox() error { return &wire.Error{Code: proto.CodeNoBox, Msg: "the sandbox has no cgroup"} }

func errForeground() error {
	return &wire.Error{Msg: "a sandbox in the foreground ends with its command", Fix: "start it with -d"}
}

func isNotRunning(err error) bool {
	var we *wire.Error
	return errors.As(err, &we) && we.Code == proto.CodeNotRunning
}

// reported is what init said about its own failure, nil if nothing.
func (m *monitor) reported() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}

// initError turns the silent end of init into an error that says how it ended.
func (m *monitor) initError(err error) error {
	if !isEOF(err) {
		return err
	}
	ws, werr := m.init.Wait()
	reported := m.reported()
	switch {
	case reported != nil:
		return reported
	case werr != nil:
		return fmt.Errorf("init ended: %w", werr)
	case ws.Signaled() && m.oomKilled():
		return &wire.Error{Code: "init-oom", Step: "start the sandbox", Msg: "its memory (--memory) was used up before the command ran", Fix: "give it more: --memory 32m"}
	case ws.Signaled():
		return &wire.Error{Code: "init-killed", Step: "start the sandbox", Msg: fmt.Sprintf("init was killed by signal %d (%s)", ws.Signal(), ws.Signal())}
	}
	return &wire.Error{Code: "init-died", Step: "start the sandbox", Msg: fmt.Sprintf("init ended with status %d", ws.ExitStatus())}
}
