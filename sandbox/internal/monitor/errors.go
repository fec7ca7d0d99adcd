package monitor

import (
	"errors"
	"fmt"
	"io"

	"github.com/rootless-sbx/sbx/internal/wire"
)

func isEOF(err error) bool { return errors.Is(err, io.EOF) }

// initError turns the silent end of init into an error that says how it ended.
func (m *monitor) initError(err error) error {
	if !isEOF(err) {
		return err
	}
	ws, werr := m.init.Wait()
	switch {
	case werr != nil:
		return fmt.Errorf("init ended: %w", werr)
	case ws.Signaled():
		return &wire.Error{Code: "init-killed", Step: "start the sandbox", Msg: fmt.Sprintf("init was killed by signal %d (%s)", ws.Signal(), ws.Signal())}
	}
	return &wire.Error{Code: "init-died", Step: "start the sandbox", Msg: fmt.Sprintf("init ended with status %d", ws.ExitStatus())}
}
