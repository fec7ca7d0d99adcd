package monitor

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
	"golang.org/x/sys/unix"
)

// watchInterrupts ends the sandbox, as a stop does, when somebody ends its monitor:
// systemd, with a session or with the machine. It is not the user who wants that, so
// that the restart policy holds when there is a machine again.
func (m *monitor) watchInterrupts() (stop func()) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGTERM, syscall.SIGHUP)
	ended := make(chan struct{})
	go func() {
		select {
		case sig := <-sigs:
			m.mu.Lock()
			m.interrupted = "its monitor got " + unix.SignalName(sig.(syscall.Signal)) + ": the session or the machine ended"
			m.mu.Unlock()
			// An error is that of the signal's sending: then it is not there to get one.
			if err := m.stop(context.Background(), proto.Stop{}); err != nil {
				m.kill()
			}
		case <-ended:
		}
	}()
	return func() { close(ended) }
}
